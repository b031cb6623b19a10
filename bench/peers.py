"""What a user would pick instead, measured by the same clock in the same run.

Each function does the peer's side of one row of figures.py and returns seconds per operation (or
seconds in all where it says so). Nothing here imports mpgort. Go and Erlang are optional: without
them the function returns None, and figures.py says so."""

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
import time
import types
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
GO = shutil.which("go") or next(iter(sorted(Path("/usr/lib").glob("go-*/bin/go"))), None)
ESCRIPT = shutil.which("escript")


def trivial(x: int) -> int:
    return x


def lap(stamps: Sequence[float], each: int, rank: float = 0.5) -> float:
    """Seconds per operation in the median lap (or that of another rank) of `each` operations.

    A lap is a tenth of a time slice. On a machine that has others to serve the whole of a
    measurement says most of all how long it waited for a processor (/proc/self/schedstat: a switch
    of 250 ns took 600 to 3,700, the rest was that); most laps are run without an interruption. And
    the first, in which a new process touches its memory, is one of many."""
    laps = sorted(b - a for a, b in itertools.pairwise(stamps))
    return laps[int(rank * (len(laps) - 1))] / each


# ---- in one process --------------------------------------------------------------------------


@types.coroutine
def trap() -> Generator[None, None, None]:
    yield


def coro_send(n: int) -> float:
    """A bare coro.send in a Python loop: the yardstick for park + resume."""

    async def body() -> None:
        while True:
            await trap()

    coro = body()
    send = coro.send
    send(None)
    stamps = [time.perf_counter()]
    for _ in range(n // 2000):
        for _ in range(2000):
            send(None)
        stamps.append(time.perf_counter())
    coro.close()
    return lap(stamps, 2000)


def asyncio_queue(n: int) -> float:
    """A round trip between two tasks over two asyncio.Queue(1)."""

    async def pong(there: "asyncio.Queue[int]", back: "asyncio.Queue[int]") -> None:
        while True:
            await back.put(await there.get())

    async def ping() -> float:
        there: asyncio.Queue[int] = asyncio.Queue(1)
        back: asyncio.Queue[int] = asyncio.Queue(1)
        task = asyncio.create_task(pong(there, back))
        stamps = [time.perf_counter()]
        for _ in range(n // 50):
            for i in range(50):
                await there.put(i)
                await back.get()
            stamps.append(time.perf_counter())
        task.cancel()
        return lap(stamps, 50)

    return asyncio.run(ping())


def asyncio_task(n: int) -> float:
    """Create and await a trivial task."""

    async def body(x: int) -> int:
        return x

    async def create() -> float:
        started = time.perf_counter()
        for i in range(n):
            await asyncio.create_task(body(i))
        return time.perf_counter() - started

    return asyncio.run(create()) / n


# ---- over processes --------------------------------------------------------------------------


def executor_submit(n: int, procs: int = 2) -> float:
    """ProcessPoolExecutor.submit(trivial).result(), one at a time, the pool warm."""
    with concurrent.futures.ProcessPoolExecutor(procs) as pool:
        list(pool.map(trivial, range(4 * procs)))
        started = time.perf_counter()
        for i in range(n):
            pool.submit(trivial, i).result()
        return (time.perf_counter() - started) / n


def pool_apply(n: int, procs: int = 2) -> float:
    """multiprocessing.Pool.apply(trivial), one at a time, the pool warm."""
    with multiprocessing.Pool(procs) as pool:
        pool.map(trivial, range(4 * procs))
        started = time.perf_counter()
        for i in range(n):
            pool.apply(trivial, (i,))
        return (time.perf_counter() - started) / n


def seconds_per_item(results: Iterable[int], n: int) -> float:
    """Reads n results in a loop, as a program would."""
    started = time.perf_counter()
    total = 0
    for x in results:
        total += x
    seconds = time.perf_counter() - started
    if total != n * (n - 1) // 2:
        raise AssertionError(f"the results of range({n}) add up to {total}")
    return seconds / n


def pool_imap(n: int, size: int, procs: int = 2) -> float:
    """multiprocessing.Pool.imap_unordered of a trivial function, the pool warm."""
    with multiprocessing.Pool(procs) as pool:
        pool.map(trivial, range(1000))
        return seconds_per_item(pool.imap_unordered(trivial, range(n), size), n)


def best_chunk_size(n: int) -> int:
    """The chunk size that multiprocessing.Pool is fastest with."""
    sizes = [s for s in (100, 1000, 5000, 10_000, 20_000) if s <= n // 4]
    return min(sizes, key=lambda size: min(pool_imap(n, size) for _ in range(2)))


def executor_map(n: int, size: int, procs: int = 2) -> float:
    with concurrent.futures.ProcessPoolExecutor(procs) as pool:
        list(pool.map(trivial, range(4 * procs)))
        return seconds_per_item(pool.map(trivial, range(n), chunksize=size), n)


def executor_array(megabytes: int, procs: int = 2) -> float:
    """A NumPy array of so many MB to a task of a warm ProcessPoolExecutor."""
    import numpy as np

    a = np.zeros(megabytes << 17)
    with concurrent.futures.ProcessPoolExecutor(procs) as pool:
        list(pool.map(trivial, range(4 * procs)))
        started = time.perf_counter()
        pool.submit(len, a).result()
        return time.perf_counter() - started


def executor_start_stop(procs: int = 2) -> float:
    """A ProcessPoolExecutor from start to end with one trivial call on the way."""
    started = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(procs) as pool:
        pool.submit(trivial, 0).result()
    return time.perf_counter() - started


def bare_processes(work: Callable[[int], int], tasks: Sequence[int], procs: int) -> float:
    """Seconds for `tasks` dealt to `procs` forked processes that only compute: the machine's own
    ceiling. The deal is the best that greedy finds: longest task first, to whoever has least."""
    shares: list[list[int]] = [[] for _ in range(procs)]
    for task in sorted(tasks, reverse=True):
        min(shares, key=sum).append(task)
    started = time.perf_counter()
    pids = []
    for share in shares:
        pid = os.fork()
        if pid == 0:
            for task in share:
                work(task)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return time.perf_counter() - started


# ---- other languages -------------------------------------------------------------------------


def go_program(name: str, *args: int) -> float | None:
    """Seconds that bench/go/NAME.go says it took; None without Go. Compiled once per run."""
    if GO is None:
        return None
    binary = Path(tempfile.gettempdir()) / f"mpgort-bench-{os.getuid()}-{name}"
    source = HERE / "go" / f"{name}.go"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        subprocess.run([str(GO), "build", "-o", str(binary), str(source)], check=True)
    return seconds_said([str(binary), *map(str, args)])


def erlang_program(name: str, *args: int) -> float | None:
    """Seconds that bench/erlang/NAME.erl says it took; None without Erlang."""
    if ESCRIPT is None:
        return None
    # +P: a million live processes need a larger table than the default.
    command = [ESCRIPT, str(HERE / "erlang" / f"{name}.erl"), *map(str, args)]
    return seconds_said(command, {**os.environ, "ERL_FLAGS": "+P 4000000"})


def seconds_said(command: list[str], env: dict[str, str] | None = None) -> float:
    """The number after "seconds" in what a program prints."""
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    found = re.search(r"seconds ([0-9.e+-]+)", text)
    if found is None:
        raise ValueError(f"{command[0]} did not say how long it took: {text!r}")
    return float(found[1])
