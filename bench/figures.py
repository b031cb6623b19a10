"""What this machine gives, as ratios against what a user would pick instead.

    python bench/figures.py                 every row (some minutes)
    python bench/figures.py --quick         smaller counts (under a minute)
    python bench/figures.py --only switch,spawn --json out.json

A row measures mpgort and its peers in turn, ROUNDS times over, and compares the medians: on a
shared machine only ratios of one run mean anything. What is shorter than a microsecond or two is
measured in laps (peers.lap), so that it is not the waiting for a processor that is compared. Each
row has bounds; a bound that is missed is marked, and with --strict the exit status is 1. The table
is Markdown, to be pasted as it is.

Every measurement is a program of its own (`mpgort.run`), and reads the clock inside a goroutine, so
that starting and ending is measured by the row that says so, and nowhere else."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import peers

import mpgort
from mpgort import Chan, chan, go, gosched, spawn
from mpgort.demos import skynet

ROUNDS = 5
LINGER = 10e-6  # long enough for a receiver to park, too short for its M to fall asleep
SWITCHES, TRIPS = 500, 250  # in a lap of some 0.2 ms (peers.lap)
clock = time.perf_counter  # CLOCK_MONOTONIC: the same in every process


@dataclass(frozen=True)
class Beside:
    """One comparison: `ratio` is what the bound is about, said in words by `means`."""

    peer: str
    value: float | None  # seconds (or bytes); None: the peer is not installed
    means: str = ""
    ratio: float | None = None
    least: float | None = None
    most: float | None = None

    def met(self) -> bool | None:
        if self.ratio is None or (self.least is None and self.most is None):
            return None
        return (self.least is None or self.ratio >= self.least) and (
            self.most is None or self.ratio <= self.most
        )


@dataclass
class Row:
    key: str
    what: str
    value: float
    unit: str = "s"
    beside: list[Beside] = field(default_factory=list)

    def faster(self, peer: str, value: float | None, least: float | None = None) -> None:
        """How many times as long the peer takes."""
        ratio = None if value is None else value / self.value
        self.beside.append(Beside(peer, value, "x as fast", ratio, least=least))

    def slower(self, peer: str, value: float | None, most: float | None = None) -> None:
        """How many times as long mpgort takes."""
        ratio = None if value is None else self.value / value
        self.beside.append(Beside(peer, value, "x its time", ratio, most=most))

    def bound(
        self, what: str, ratio: float, *, least: float | None = None, most: float | None = None
    ) -> None:
        self.beside.append(Beside(what, None, "", ratio, least, most))


def medians(*measures: Callable[[], float | None], rounds: int = ROUNDS) -> list[float | None]:
    """The measures in turn, `rounds` times over; the median of each (None: not installed)."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, values in zip(measures, taken, strict=True):
            value = measure()
            if value is not None:
                values.append(value)
    return [statistics.median(values) if values else None for values in taken]


# ---- park and resume -------------------------------------------------------------------------


async def yielder(n: int, stamps: Chan) -> None:
    for i in range(n):
        if i % SWITCHES == 0:
            await stamps.send(clock())
        await gosched()


async def lap(stamps: Chan, each: int, rank: float = 0.5) -> float:
    """Of a channel that is full of stamps: a goroutine would be moved with a list of them."""
    return peers.lap([await stamps.recv() for _ in range(len(stamps))], each, rank)


async def two_yielders(n: int) -> float:
    stamps = chan(n // SWITCHES)
    other = spawn(yielder, n, chan(n // SWITCHES))
    await spawn(yielder, n, stamps)
    await other
    # In a lap the other has switched as often.
    return await lap(stamps, 2 * SWITCHES)


def row_switch(scale: int) -> Row:
    n = 40_000 * scale
    ours, bare = medians(
        lambda: mpgort.run(two_yielders, n, procs=1), lambda: peers.coro_send(10 * n)
    )
    assert ours is not None
    row = Row("switch", "park + resume on the same M (`gosched`, another G runnable)", ours)
    row.slower("bare `coro.send` in a loop", bare, most=2.5)
    return row


async def stamp_sender(n: int, stamps: Chan, taken: Chan) -> None:
    """Sends the time, and computes until it has been taken: so the receiver, readied here, starts
    on the other M. That one is still awake when the next stamp comes: it spins longer than
    LINGER."""
    for i in range(n):
        now = clock()
        await stamps.send((now, os.getpid()))
        while len(taken) <= i:
            pass
        now = clock()
        while clock() < now + LINGER:
            pass
    stamps.close()


async def stamp_reader(stamps: Chan, taken: Chan) -> None:
    """Passes on how late each stamp came, and whether from another M. It keeps none of it: what it
    held it would be moved with, and that is not what is measured."""
    async for sent, pid in stamps:
        late = clock() - sent
        await taken.send((late, pid != os.getpid()))


async def cross(n: int) -> float:
    stamps, taken = chan(), chan(n)
    go(stamp_reader, stamps, taken)
    await spawn(stamp_sender, n, stamps, taken)
    late = [seconds for seconds, crossed in [await taken.recv() for _ in range(n)] if crossed]
    if len(late) < n // 2:
        raise AssertionError(f"only {len(late)} of {n} wakes crossed from one M to another")
    return statistics.median(late)


def row_cross(scale: int) -> Row:
    ours, queue = medians(
        lambda: mpgort.run(cross, 2_000 * scale, procs=2),
        lambda: peers.asyncio_queue(5_000 * scale),
    )
    assert ours is not None
    row = Row("cross", "send on one M → the parked receiver runs on another, both awake", ours)
    row.bound("at most 5 µs", ours / 5e-6, most=1.0)
    row.faster("`asyncio.Queue` round trip, one process", queue, least=1.0)
    return row


# ---- channels --------------------------------------------------------------------------------


async def pong(there: Chan, back: Chan) -> None:
    async for ball in there:
        await back.send(ball)


async def ping(n: int, rank: float = 0.5) -> float:
    there, back, stamps = chan(), chan(), chan(n // TRIPS)
    go(pong, there, back)
    for i in range(n):
        if i % TRIPS == 0:
            await stamps.send(clock())
        await there.send(i)
        await back.recv()
    there.close()
    return await lap(stamps, TRIPS, rank)


async def ping_on_worker(n: int) -> float:
    seconds: float = await spawn(ping, n)
    return seconds


def row_chan(scale: int) -> Row:
    n = 10_000 * scale
    ours, queue, golang = medians(
        lambda: mpgort.run(ping_on_worker, n, procs=2),
        lambda: peers.asyncio_queue(n // 2),
        lambda: per_op(peers.go_program("pingpong", n), n),
    )
    assert ours is not None
    row = Row("chan", "unbuffered round trip between two goroutines, procs=2", ours)
    row.faster("`asyncio.Queue`", queue, least=10)
    row.slower("Go", golang)
    return row


def row_main(scale: int) -> Row:
    n = 10_000 * scale
    # "Both awake" takes two processors at once: where others work too, that is in the better laps.
    ours, queue = medians(
        lambda: mpgort.run(ping, n, 0.1, procs=2), lambda: peers.asyncio_queue(n // 2)
    )
    assert ours is not None
    row = Row("main", "round trip between main and a goroutine on a worker", ours)
    row.faster("`asyncio.Queue`", queue, least=4)
    return row


def per_op(seconds: float | None, n: int) -> float | None:
    return None if seconds is None else seconds / n


# ---- spawn -----------------------------------------------------------------------------------


async def trivial(x: int) -> int:
    return x


async def spawner(n: int) -> float:
    started = clock()
    for i in range(n):
        await spawn(trivial, i)
    return (clock() - started) / n


async def spawner_on_worker(n: int) -> float:
    seconds: float = await spawn(spawner, n)
    return seconds


def row_spawn(scale: int) -> Row:
    n = 5_000 * scale
    ours, executor, pool, task, golang = medians(
        lambda: mpgort.run(spawner_on_worker, n, procs=2),
        lambda: peers.executor_submit(n // 5),
        lambda: peers.pool_apply(n // 5),
        lambda: peers.asyncio_task(n),
        lambda: per_op(peers.go_program("spawn", n), n),
    )
    assert ours is not None
    row = Row("spawn", "spawn + await of a trivial goroutine, by a goroutine", ours)
    row.faster("`ProcessPoolExecutor.submit().result()`", executor, least=50)
    row.faster("`Pool.apply()`", pool, least=25)
    row.faster("`asyncio.create_task` + await", task)
    row.slower("Go, `go` + channel", golang)
    return row


def row_spawn_main(scale: int) -> Row:
    n = 5_000 * scale
    ours, executor, pool = medians(
        lambda: mpgort.run(spawner, n, procs=2),
        lambda: peers.executor_submit(n // 5),
        lambda: peers.pool_apply(n // 5),
    )
    assert ours is not None
    row = Row("spawn-main", "spawn + await of a trivial goroutine, by main", ours)
    row.faster("`ProcessPoolExecutor.submit().result()`", executor, least=20)
    row.faster("`Pool.apply()`", pool, least=10)
    return row


# ---- many ------------------------------------------------------------------------------------


async def sleeper(up: Chan, gate: Chan, number: int) -> None:
    await up.send(number)
    await gate.recv()


async def shared_bytes_per_goroutine(n: int) -> float:
    """What the segment holds more with n goroutines parked than with none, divided by n."""
    up, gate = chan(1024), chan()
    before = shared_bytes()
    go(start_sleepers, n, up, gate)
    for _ in range(n):
        await up.recv()
    while mpgort.num_goroutine() > n + 1:  # start_sleepers itself has ended
        await gosched()
    return (shared_bytes() - before) / n


async def start_sleepers(n: int, up: Chan, gate: Chan) -> None:
    for number in range(n):
        go(sleeper, up, gate, number)
        if number % 256 == 0:
            await gosched()


def shared_bytes() -> int:
    """Bytes of shared memory that this program's segment really has, by the kernel's count: the
    mapping is found in /proc/self/smaps by its name, and Rss counts the pages touched by anybody
    that this process has touched too, so the file's own blocks are asked instead."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "/dev/shm/mpgort" in os.readlink(f"/proc/self/fd/{fd}"):
                return os.fstat(int(fd)).st_blocks * 512
        except OSError:
            continue
    raise AssertionError("this process holds no descriptor of a segment")


def row_memory(scale: int) -> Row:
    n = 100_000 * scale
    (ours,) = medians(lambda: mpgort.run(shared_bytes_per_goroutine, n, procs=2), rounds=1)
    assert ours is not None
    row = Row("memory", f"shared memory of a parked goroutine, {n:,} at once", ours, "bytes")
    row.bound("at most 256 bytes", ours / 256, most=1.0)
    row.beside.append(Beside("a parked goroutine in Go: about 2.6 KB", None))
    return row


def ours_skynet(n: int) -> float:
    total, seconds = mpgort.run(skynet.main, n, procs=2)
    if total != n * (n - 1) // 2:
        raise AssertionError(f"skynet {n}: {total}")
    return seconds


def row_skynet(scale: int) -> Row:
    n = 100_000 if scale < 10 else 1_000_000
    ours, golang, erlang = medians(
        lambda: ours_skynet(n),
        lambda: peers.go_program("skynet", n),
        lambda: peers.erlang_program("skynet", n),
        rounds=3,
    )
    assert ours is not None
    row = Row("skynet", f"skynet {n:,}", ours)
    row.slower("Go", golang, most=5)
    row.faster("Erlang", erlang, least=1)
    return row


# ---- processors ------------------------------------------------------------------------------


def burn(units: int) -> int:
    """CPU-bound Python: about 1 ms a unit."""
    total = 0
    for i in range(units * 16_000):
        total += i & 7
    return total


async def burner(units: int, done: Chan) -> None:
    await done.send(burn(units))


async def burn_all(tasks: list[int]) -> float:
    done = chan(len(tasks))
    started = clock()
    for units in tasks:
        go(burner, units, done)
    for _ in tasks:
        await done.recv()
    return clock() - started


def burn_alone(tasks: list[int]) -> float:
    started = clock()
    for units in tasks:
        burn(units)
    return clock() - started


def row_scaling(scale: int) -> Row:
    tasks = [20] * (12 * scale)
    ours, alone, bare = medians(
        lambda: mpgort.run(burn_all, tasks, procs=2),
        lambda: burn_alone(tasks),
        lambda: peers.bare_processes(burn, tasks, 2),
    )
    assert ours is not None and alone is not None and bare is not None
    row = Row("scaling", f"{len(tasks)} equal CPU-bound tasks on 2 Ms", ours)
    row.faster("serial", alone, least=0.97 * 2)
    row.slower("two bare processes, shared out beforehand", bare)
    return row


def row_skewed(scale: int) -> Row:
    # Lengths 1/k of the longest, in an order that suits nobody: long ones last.
    tasks = sorted(max(1, 40 * scale // k) for k in range(1, 60))
    ours, bare = medians(
        lambda: mpgort.run(burn_all, tasks, procs=2),
        lambda: peers.bare_processes(burn, tasks, 2),
    )
    assert ours is not None
    row = Row("skewed", f"{len(tasks)} tasks of skewed length on 2 Ms", ours)
    row.slower("the best schedule, known beforehand, on two bare processes", bare, most=1.05)
    return row


# ---- the pools -------------------------------------------------------------------------------


def pool_items(n: int) -> float:
    """mpgort.Pool.imap_unordered of a trivial function, default chunk size, the pool warm."""
    with mpgort.Pool(2) as pool:
        pool.map(peers.trivial, range(1000))
        return peers.seconds_per_item(pool.imap_unordered(peers.trivial, range(n)), n)


def executor_items(n: int) -> float:
    with mpgort.Executor(2) as ex:
        list(ex.map(peers.trivial, range(1000)))
        return peers.seconds_per_item(ex.map(peers.trivial, range(n)), n)


def row_pool(scale: int) -> Row:
    n = 50_000 * scale
    size = peers.best_chunk_size(n)
    ours, theirs = medians(lambda: pool_items(n), lambda: peers.pool_imap(n, size))
    assert ours is not None
    row = Row("pool", "`Pool.imap_unordered`, trivial function, default chunk size, an item", ours)
    row.faster(f"`multiprocessing.Pool.imap_unordered`, chunk size {size}", theirs, least=1)
    return row


def row_map(scale: int) -> Row:
    n = 50_000 * scale
    size = peers.best_chunk_size(n)
    ours, theirs, executor = medians(
        lambda: executor_items(n),
        lambda: peers.pool_imap(n, size),
        lambda: peers.executor_map(n, size),
    )
    assert ours is not None
    row = Row("map", "`Executor.map`, trivial function, default chunk size, an item", ours)
    row.faster(f"`multiprocessing.Pool.imap_unordered`, chunk size {size}", theirs, least=1)
    row.faster(f"`ProcessPoolExecutor.map`, chunk size {size}", executor)
    return row


def submit_result(n: int) -> float:
    with mpgort.Executor(2) as ex:
        ex.submit(peers.trivial, 0).result()
        started = clock()
        for i in range(n):
            ex.submit(peers.trivial, i).result()
        return (clock() - started) / n


def row_submit(scale: int) -> Row:
    n = 500 * scale
    ours, theirs = medians(lambda: submit_result(n), lambda: peers.executor_submit(n))
    assert ours is not None
    row = Row("submit", "`Executor.submit().result()`, one at a time", ours)
    row.faster("`ProcessPoolExecutor`", theirs, least=2)
    return row


def submit_behind(n: int, queued: int) -> float:
    """Seconds of one submit() while `queued` tasks wait."""
    with mpgort.Executor(1) as ex:
        gate = ex.submit(time.sleep, 1000)
        for _ in range(queued):
            ex.submit(int)
        started = clock()
        for _ in range(n):
            ex.submit(int)
        took = (clock() - started) / n
        ex.shutdown(wait=False, cancel_futures=True)
        assert ex._engine is not None
        ex._engine.terminate()
        del gate
        return took


def row_queued(scale: int) -> Row:
    n, queued = 2000, 20_000 * scale
    ours, first = medians(lambda: submit_behind(n, queued), lambda: submit_behind(n, 0))
    assert ours is not None
    row = Row("queued", f"`Executor.submit()` with {queued:,} tasks queued", ours)
    row.slower("the same with none", first, most=1.5)
    return row


def array_to_task(ex: mpgort.Executor, megabytes: int) -> float:
    a = mpgort.shared.zeros(megabytes << 17, runtime=ex)
    ex.submit(len, a).result()
    started = clock()
    for _ in range(20):
        ex.submit(len, a).result()
    return (clock() - started) / 20


def row_array(scale: int) -> Row:
    megabytes = 20 * scale
    with mpgort.Executor(2) as ex:
        ours, small, theirs = medians(
            lambda: array_to_task(ex, megabytes),
            lambda: array_to_task(ex, 1),
            lambda: peers.executor_array(megabytes),
        )
    assert ours is not None and small is not None
    row = Row("array", f"{megabytes} MB array (`mpgort.shared`) to a task", ours)
    row.slower("1 MB array to a task", small, most=2)
    row.faster("`ProcessPoolExecutor`", theirs, least=20)
    return row


# ---- from start to end -----------------------------------------------------------------------


async def nothing() -> None:
    pass


def row_start(scale: int) -> Row:
    def start_stop() -> float:
        started = clock()
        mpgort.run(nothing, procs=2)
        return clock() - started

    ours, executor = medians(start_stop, peers.executor_start_stop, rounds=4 * ROUNDS)
    assert ours is not None
    row = Row("start", "`run` of a trivial main, procs=2, start to end", ours)
    row.bound("at most 50 ms", ours / 0.050, most=1.0)
    row.faster("`ProcessPoolExecutor`, one call", executor)
    return row


ROWS: dict[str, Callable[[int], Row]] = {
    "switch": row_switch,
    "cross": row_cross,
    "chan": row_chan,
    "main": row_main,
    "spawn": row_spawn,
    "spawn-main": row_spawn_main,
    "memory": row_memory,
    "skynet": row_skynet,
    "scaling": row_scaling,
    "skewed": row_skewed,
    "pool": row_pool,
    "map": row_map,
    "submit": row_submit,
    "queued": row_queued,
    "array": row_array,
    "start": row_start,
}


# ---- what is shown ---------------------------------------------------------------------------


def quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value:,.0f} bytes"
    for name, one in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= one:
            return f"{value / one:.3g} {name}"
    return f"{value / 1e-9:.0f} ns"


def lines(row: Row) -> list[str]:
    """The Markdown rows of one measurement: a line for each thing it is compared with."""
    out = []
    for i, b in enumerate(row.beside or [Beside("", None)]):
        peer = b.peer
        if b.value is not None:
            peer += f", {quantity(b.value, row.unit)}"
        elif b.means and b.ratio is None:
            peer += " (not installed)"
        ratio = ""
        if b.ratio is not None and b.means:
            ratio = f"{b.ratio:.3g} {b.means}"
        bound = ""
        if b.means and b.least is not None:
            bound = f"{b.least:g} or more"
        elif b.means and b.most is not None:
            bound = f"{b.most:g} or less"
        met = {None: "", True: "yes", False: "**NO**"}[b.met()]
        what, value = (row.what, quantity(row.value, row.unit)) if i == 0 else ("", "")
        out.append(f"| {what} | {value} | {peer} | {ratio} | {bound} | {met} |")
    return out


def machine() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            model = next(x.split(":", 1)[1].strip() for x in f if x.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.machine()
    cpus = len(os.sched_getaffinity(0))
    return f"{cpus} x {model}, Linux {platform.release()}, CPython {platform.python_version()}"


def report(rows: dict[str, Callable[[int], Row]], doc: str | None) -> int:
    """The program: reads its arguments, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the counts")
    parser.add_argument("--only", metavar="ROW[,ROW]", help=f"of {', '.join(rows)}")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--strict", action="store_true", help="status 1 if a bound is missed")
    args = parser.parse_args()
    keys = args.only.split(",") if args.only else list(rows)
    if unknown := [k for k in keys if k not in rows]:
        parser.error(f"no such row: {', '.join(unknown)} (rows: {', '.join(rows)})")

    print(f"{machine()}; load {os.getloadavg()[0]:.1f}")
    for name, there in (("Go", peers.GO), ("Erlang", peers.ESCRIPT)):
        if there is None:
            print(f"NOT MEASURED: {name} is not installed, its column is missing")
    print()
    print("| what | here | beside | ratio | bound | met |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    measured = []
    for key in keys:
        row = rows[key](1 if args.quick else 10)
        measured.append(row)
        print("\n".join(lines(row)), flush=True)
    met = [(r.key, b.peer, b.met()) for r in measured for b in r.beside if b.met() is not None]
    missed = [(key, peer) for key, peer, there in met if not there]
    if met:
        print()
        print(f"{len(missed)} bounds missed" if missed else "every bound is met")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": machine(), "rows": [asdict(r) for r in measured]}, f, indent=2)
    return 1 if missed and args.strict else 0


if __name__ == "__main__":
    sys.exit(report(ROWS, __doc__))
