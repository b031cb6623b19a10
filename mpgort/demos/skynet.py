"""Skynet: a tree of goroutines, ten below each, whose leaves send their numbers up; exact sum.

A goroutine that stands for `size` numbers starts ten that stand for a tenth of them each, adds up
what they send and sends the sum up. 100,000 leaves are 111,111 goroutines, all of them parked but
for the few that run; they are made on one M and spread by stealing."""

import argparse
import time

import mpgort
from mpgort import Chan, chan, go


async def skynet(first: int, size: int, up: Chan[int]) -> None:
    if size == 1:
        await up.send(first)
        return
    below = chan(10)
    tenth = size // 10
    for i in range(10):
        go(skynet, first + i * tenth, tenth, below)
    total = 0
    for _ in range(10):
        total += await below.recv()
    await up.send(total)


async def main(size: int) -> tuple[int, float]:
    up = chan()
    started = time.perf_counter()
    go(skynet, 0, size, up)
    total = await up.recv()
    return total, time.perf_counter() - started


def power_of_ten(text: str) -> int:
    n = int(text)
    if n < 1 or int("1" + "0" * (len(str(n)) - 1)) != n:
        raise argparse.ArgumentTypeError(f"{text}: must be 1, 10, 100, 1000, ...")
    return n


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", type=power_of_ten, default=100_000, metavar="LEAVES", help="a power of ten"
    )


def demo(args: argparse.Namespace) -> int:
    total, seconds = mpgort.run(main, args.n, procs=args.procs)
    exact = args.n * (args.n - 1) // 2
    goroutines = sum(10**level for level in range(len(str(args.n))))
    print(f"{goroutines:,} goroutines: sum {total} in {seconds:.2f} s")
    print("exact" if total == exact else f"WRONG: should be {exact}")
    return 0 if total == exact else 1
