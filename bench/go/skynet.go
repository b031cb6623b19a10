// Skynet with the argument as the number of leaves (a power of ten): the peer of mpgort's.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func skynet(first, size int, up chan int) {
	if size == 1 {
		up <- first
		return
	}
	below := make(chan int, 10)
	for i := 0; i < 10; i++ {
		go skynet(first+i*size/10, size/10, below)
	}
	total := 0
	for i := 0; i < 10; i++ {
		total += <-below
	}
	up <- total
}

func main() {
	n, _ := strconv.Atoi(os.Args[1])
	up := make(chan int)
	started := time.Now()
	go skynet(0, n, up)
	total := <-up
	fmt.Println("sum", total, "seconds", time.Since(started).Seconds())
	if total != n*(n-1)/2 {
		os.Exit(1)
	}
}
