// Create a trivial goroutine and wait for its value, one at a time.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func trivial(x int, out chan int) { out <- x }

func main() {
	n, _ := strconv.Atoi(os.Args[1])
	started := time.Now()
	for i := 0; i < n; i++ {
		out := make(chan int, 1)
		go trivial(i, out)
		<-out
	}
	fmt.Println("spawned", n, "seconds", time.Since(started).Seconds())
}
