"""Ping-pong: round trips per second of two goroutines over channels, asyncio.Queue beside it.

Neither goroutine is tied to a process: at every message one parks, as bytes in shared memory, and
the other is taken up by whichever M comes first. asyncio does the same between two tasks of one
process, where nothing has to be serialized."""

import argparse
import asyncio
import time

import mpgort
from mpgort import Chan, chan, go, spawn
from mpgort.demos import at_least_1


async def pong(balls: Chan[int], back: Chan[int]) -> None:
    async for ball in balls:
        await back.send(ball)


async def ping(rounds: int) -> float:
    """Seconds for that many round trips with a partner of its own."""
    there, back = chan(), chan()
    go(pong, there, back)
    started = time.perf_counter()
    for ball in range(rounds):
        await there.send(ball)
        if await back.recv() != ball:
            raise AssertionError("another ball came back")
    seconds = time.perf_counter() - started
    there.close()
    return seconds


async def main(rounds: int) -> float:
    seconds: float = await spawn(ping, rounds)
    return seconds


async def with_asyncio(rounds: int) -> float:
    """The same with two tasks and two asyncio.Queue(1)."""
    there: asyncio.Queue[int] = asyncio.Queue(1)
    back: asyncio.Queue[int] = asyncio.Queue(1)

    async def pong_task() -> None:
        while True:
            await back.put(await there.get())

    task = asyncio.create_task(pong_task())
    started = time.perf_counter()
    for ball in range(rounds):
        await there.put(ball)
        await back.get()
    seconds = time.perf_counter() - started
    task.cancel()
    return seconds


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", type=at_least_1, default=100_000, metavar="ROUNDS", help="round trips"
    )


def demo(args: argparse.Namespace) -> int:
    ours = mpgort.run(main, args.n, procs=args.procs)
    theirs = asyncio.run(with_asyncio(args.n))
    for name, seconds in ("goroutines, channels", ours), ("asyncio tasks, queues", theirs):
        print(f"{name:<22} {args.n / seconds:>12,.0f} round trips per second")
    print(f"{'ratio':<22} {theirs / ours:>12.1f}")
    return 0
