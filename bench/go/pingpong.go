// Round trips between two goroutines over two unbuffered channels.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	n, _ := strconv.Atoi(os.Args[1])
	there, back := make(chan int), make(chan int)
	go func() {
		for ball := range there {
			back <- ball
		}
	}()
	started := time.Now()
	for i := 0; i < n; i++ {
		there <- i
		<-back
	}
	fmt.Println("rounds", n, "seconds", time.Since(started).Seconds())
}
