// Go's own benchmarks as programs: gobench NAME N [ARG]. The bodies are those of runtime/chan_test.go,
// runtime/proc_test.go, sync/mutex_test.go and time/sleep_test.go of Go 1.19.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const callsPerSched = 1000

func chanSync(n, _ int) {
	procs := 2
	rounds := int32(n / callsPerSched / procs * procs)
	c := make(chan bool, procs)
	myc := make(chan int)
	for p := 0; p < procs; p++ {
		go func() {
			for {
				i := atomic.AddInt32(&rounds, -1)
				if i < 0 {
					break
				}
				for g := 0; g < callsPerSched; g++ {
					if i%2 == 0 {
						<-myc
						myc <- 0
					} else {
						myc <- 0
						<-myc
					}
				}
			}
			c <- true
		}()
	}
	for p := 0; p < procs; p++ {
		<-c
	}
}

func chanProdCons(n, size int) {
	procs := runtime.GOMAXPROCS(-1)
	rounds := int32(n / callsPerSched)
	c := make(chan bool, 2*procs)
	myc := make(chan int, size)
	for p := 0; p < procs; p++ {
		go func() {
			for atomic.AddInt32(&rounds, -1) >= 0 {
				for g := 0; g < callsPerSched; g++ {
					myc <- 1
				}
			}
			myc <- 0
			c <- true
		}()
		go func() {
			for <-myc != 0 {
			}
			c <- true
		}()
	}
	for p := 0; p < 2*procs; p++ {
		<-c
	}
}

// parallel is testing.B.RunParallel with one goroutine a processor.
func parallel(n int, body func(n int)) {
	var wg sync.WaitGroup
	procs := runtime.GOMAXPROCS(-1)
	wg.Add(procs)
	for p := 0; p < procs; p++ {
		go func() {
			body(n / procs)
			wg.Done()
		}()
	}
	wg.Wait()
}

func selectUncontended(n, _ int) {
	parallel(n, func(n int) {
		myc1 := make(chan int, 1)
		myc2 := make(chan int, 1)
		myc1 <- 0
		for i := 0; i < n; i++ {
			select {
			case <-myc1:
				myc2 <- 0
			case <-myc2:
				myc1 <- 0
			}
		}
	})
}

func pingPongHog(n, _ int) {
	runtime.GOMAXPROCS(1)
	stop, done := make(chan bool), make(chan bool)
	go func() {
		for {
			select {
			case <-stop:
				done <- true
				return
			default:
			}
		}
	}()
	ping, pong := make(chan bool), make(chan bool)
	go func() {
		for j := 0; j < n; j++ {
			pong <- <-ping
		}
		close(stop)
		done <- true
	}()
	go func() {
		for i := 0; i < n; i++ {
			ping <- <-pong
		}
		done <- true
	}()
	ping <- true
	<-stop
	<-ping
	<-done
	<-done
	<-done
}

func createGoroutines(n, procs int) {
	c := make(chan bool)
	var f func(n int)
	f = func(n int) {
		if n == 0 {
			c <- true
			return
		}
		go f(n - 1)
	}
	for i := 0; i < procs; i++ {
		go f(n / procs)
	}
	for i := 0; i < procs; i++ {
		<-c
	}
}

func spin(d time.Duration) {
	end := time.Now().Add(d)
	for time.Now().Before(end) {
	}
}

func wakeupParallel(n, micros int) {
	wakeDelay := 5 * time.Microsecond
	delay := time.Duration(micros) * time.Microsecond
	ping, pong := make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		for i := 0; i < n; i++ {
			spin(delay + wakeDelay)
			ping <- struct{}{}
			spin(delay)
			<-pong
		}
		done <- struct{}{}
	}()
	go func() {
		for i := 0; i < n; i++ {
			spin(delay)
			<-ping
			spin(delay + wakeDelay)
			pong <- struct{}{}
		}
		done <- struct{}{}
	}()
	<-done
	<-done
}

func mutexUncontended(n, _ int) {
	parallel(n, func(n int) {
		var mu sync.Mutex
		for i := 0; i < n; i++ {
			mu.Lock()
			mu.Unlock()
		}
	})
}

func mutex(n, _ int) {
	var mu sync.Mutex
	parallel(n, func(n int) {
		for i := 0; i < n; i++ {
			mu.Lock()
			mu.Unlock()
		}
	})
}

// timerLatency is ParallelTimerLatency for two processors: one timer at a time, the other spins. The
// seconds that main says are the mean lateness times n.
func timerLatency(n, _ int) time.Duration {
	var sum time.Duration
	for i := 0; i < n; i++ {
		var fired int32
		expected := time.Now().Add(time.Millisecond)
		time.AfterFunc(time.Millisecond, func() {
			if late := time.Since(expected); late > 0 {
				sum += late
			}
			atomic.StoreInt32(&fired, 1)
		})
		for atomic.LoadInt32(&fired) == 0 {
		}
		spin(time.Millisecond)
	}
	return sum
}

var benchmarks = map[string]func(n, arg int){
	"chanSync": chanSync, "chanProdCons": chanProdCons, "selectUncontended": selectUncontended,
	"pingPongHog": pingPongHog, "createGoroutines": createGoroutines,
	"wakeupParallel": wakeupParallel, "mutexUncontended": mutexUncontended, "mutex": mutex,
}

func main() {
	n, _ := strconv.Atoi(os.Args[2])
	arg := 0
	if len(os.Args) > 3 {
		arg, _ = strconv.Atoi(os.Args[3])
	}
	runtime.GOMAXPROCS(2)
	if os.Args[1] == "timerLatency" {
		fmt.Println("seconds", timerLatency(n, arg).Seconds())
		return
	}
	started := time.Now()
	benchmarks[os.Args[1]](n, arg)
	fmt.Println("seconds", time.Since(started).Seconds())
}
