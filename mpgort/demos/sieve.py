"""The prime sieve: a chain of goroutines, each of which filters the multiples of one prime.

The program that Go's own tests and talks have carried since the beginning (test/chan/sieve1.go):
`generate` counts up; whatever passes all filters so far is prime, and gets a filter of its own."""

import argparse
import time

import mpgort
from mpgort import Chan, chan, go
from mpgort.demos import at_least_1


async def generate(out: Chan[int]) -> None:
    n = 2
    while True:
        await out.send(n)
        n += 1


async def drop_multiples(prime: int, source: Chan[int], out: Chan[int]) -> None:
    while True:
        n = await source.recv()
        if n % prime:
            await out.send(n)


async def sieve(primes: Chan[int]) -> None:
    source = chan()
    go(generate, source)
    while True:
        prime = await source.recv()
        await primes.send(prime)
        rest = chan()
        go(drop_multiples, prime, source, rest)
        source = rest


async def main(count: int) -> list[int]:
    primes = chan()
    go(sieve, primes)
    return [await primes.recv() for _ in range(count)]  # main returns: the others end with it


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", type=at_least_1, default=300, metavar="PRIMES", help="how many primes"
    )


def demo(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    primes = mpgort.run(main, args.n, procs=args.procs)
    print(" ".join(map(str, primes)))
    print(f"{len(primes)} primes by as many goroutines in {time.perf_counter() - started:.2f} s")
    return 0
