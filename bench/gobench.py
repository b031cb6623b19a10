"""Go's own benchmarks, here, in Go and in asyncio.

    python bench/gobench.py                 every row
    python bench/gobench.py --quick         a tenth of the counts
    python bench/gobench.py --only create,mutex --json out.json

Each body is that of Go 1.19's source, named by the row, on two workers where Go's has two
processors. Go's side is bench/go/gobench.go; what asyncio has nothing like is not measured there.
There are no bounds: a Go channel costs what a few Python bytecodes do. How the rows are measured
and shown is figures.py's."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import figures
import peers
from figures import Row, clock, medians, per_op

import mpgort
from mpgort import Chan, after_func, chan, default, go, select, spawn, sync

CALLS_PER_SCHED = 1000
PROCS = 2
WAKE_DELAY_S = 5e-6


def golang(name: str, n: int, *args: int) -> float | None:
    return per_op(peers.go_program("gobench", name, n, *args), n)


def ours(main: Callable[..., Awaitable[float]], n: int, *args: object, procs: int = PROCS) -> float:
    seconds: float = mpgort.run(on_worker, main, n, *args, procs=procs)
    return seconds / n


async def on_worker(main: Callable[..., Awaitable[float]], *args: object) -> float:
    seconds: float = await spawn(main, *args)
    return seconds


async def timed(*bodies: Awaitable[object]) -> float:
    """Seconds until all handles of goroutines have ended."""
    started = clock()
    for body in bodies:
        await body
    return clock() - started


def row(key: str, what: str, mine: Callable[[], float], go_side: Callable[[], float | None],
        loop_side: Callable[[], float] | None = None) -> Row:  # fmt: skip
    measured = medians(mine, go_side, *([loop_side] if loop_side else []))
    assert measured[0] is not None
    r = Row(key, what, measured[0])
    r.slower("Go", measured[1])
    if loop_side:
        r.faster("asyncio", measured[2])
    return r


# ---- channels --------------------------------------------------------------------------------


async def sync_party(myc: Chan, rounds: sync.AtomicInt) -> None:
    while (i := rounds.add(-1)) >= 0:
        for _ in range(CALLS_PER_SCHED):
            if i % 2 == 0:
                await myc.recv()
                await myc.send(0)
            else:
                await myc.send(0)
                await myc.recv()


async def chan_sync(n: int) -> float:
    myc, rounds = chan(), sync.AtomicInt(n // CALLS_PER_SCHED // 2 * 2)
    return await timed(*[spawn(sync_party, myc, rounds) for _ in range(2)])


def row_chan_sync(scale: int) -> Row:
    n = 10_000 * scale
    return row(
        "chan-sync",
        "`BenchmarkChanSync`: two goroutines, unbuffered, in lockstep",
        lambda: ours(chan_sync, n),
        lambda: golang("chanSync", 10 * n),
        lambda: peers.asyncio_queue(n // 2) / 2,
    )


async def produce(myc: Chan, rounds: sync.AtomicInt) -> None:
    while rounds.add(-1) >= 0:
        for _ in range(CALLS_PER_SCHED):
            await myc.send(1)
    await myc.send(0)


async def consume(myc: Chan) -> None:
    while await myc.recv() != 0:
        pass


async def prod_cons(n: int, size: int) -> float:
    myc, rounds = chan(size), sync.AtomicInt(n // CALLS_PER_SCHED)
    hs = [spawn(produce, myc, rounds) for _ in range(PROCS)]
    return await timed(*hs, *[spawn(consume, myc) for _ in range(PROCS)])


def asyncio_prod_cons(n: int, size: int) -> float:
    async def produce(q: "asyncio.Queue[int]") -> None:
        for _ in range(n // PROCS):
            await q.put(1)
        await q.put(0)

    async def consume(q: "asyncio.Queue[int]") -> None:
        while await q.get() != 0:
            pass

    async def main() -> float:
        q: asyncio.Queue[int] = asyncio.Queue(max(1, size))
        started = clock()
        await asyncio.gather(*[f(q) for f in (produce, consume) for _ in range(PROCS)])
        return clock() - started

    return asyncio.run(main()) / n


def prod_cons_row(size: int) -> Callable[[int], Row]:
    def measure(scale: int) -> Row:
        n = 10_000 * scale
        return row(
            f"prod-cons-{size}",
            f"`BenchmarkChanProdCons{size}`: {PROCS} producers, {PROCS} consumers, a message",
            lambda: ours(prod_cons, n, size),
            lambda: golang("chanProdCons", 10 * n, size),
            lambda: asyncio_prod_cons(n, size),
        )

    return measure


async def select_party(n: int) -> None:
    c1, c2 = chan(1), chan(1)
    await c1.send(0)
    for _ in range(n):
        i, _ = await select(c1.recv, c2.recv)
        await (c2 if i == 0 else c1).send(0)


async def select_uncontended(n: int) -> float:
    return await timed(*[spawn(select_party, n // PROCS) for _ in range(PROCS)])


def row_select(scale: int) -> Row:
    n = 10_000 * scale
    return row(
        "select",
        "`BenchmarkSelectUncontended`: one of two ready, and a send",
        lambda: ours(select_uncontended, n),
        lambda: golang("selectUncontended", 10 * n),
    )


# ---- goroutines ------------------------------------------------------------------------------


async def hog(stop: Chan) -> None:
    while (await select(stop.recv, default))[0] == 1:
        pass


async def ponger(ping: Chan, pong: Chan, stop: Chan, n: int) -> None:
    for _ in range(n):
        await pong.send(await ping.recv())
    stop.close()


async def pinger(ping: Chan, pong: Chan, n: int) -> None:
    for _ in range(n):
        await ping.send(await pong.recv())


async def pingpong_hog(n: int) -> float:
    stop, ping, pong = chan(), chan(), chan()
    hs = [spawn(hog, stop), spawn(ponger, ping, pong, stop, n), spawn(pinger, ping, pong, n)]
    started = clock()
    await ping.send(True)
    await stop.recv()
    seconds = clock() - started
    await ping.recv()
    for h in hs:
        await h
    return seconds


def row_hog(scale: int) -> Row:
    n = 1_000 * scale
    return row(
        "pingpong-hog",
        "`BenchmarkPingPongHog`: a round beside a goroutine that never waits, one processor",
        lambda: ours(pingpong_hog, n, procs=1),
        lambda: golang("pingPongHog", 10 * n),
    )


async def link(n: int, c: Chan) -> None:
    if n == 0:
        await c.send(True)
    else:
        go(link, n - 1, c)


async def create(n: int, chains: int) -> float:
    c = chan()
    started = clock()
    for _ in range(chains):
        go(link, n // chains, c)
    for _ in range(chains):
        await c.recv()
    return clock() - started


def asyncio_create(n: int) -> float:
    async def link(k: int, done: "asyncio.Future[bool]", tasks: set["asyncio.Task[None]"]) -> None:
        if k == 0:
            done.set_result(True)
            return
        task = asyncio.create_task(link(k - 1, done, tasks))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def main() -> float:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        tasks: set[asyncio.Task[None]] = set()
        started = clock()
        await link(n, done, tasks)
        await done
        return clock() - started

    return asyncio.run(main()) / n


def create_row(chains: int) -> Callable[[int], Row]:
    def measure(scale: int) -> Row:
        n = 10_000 * scale
        name = "CreateGoroutines" + ("Parallel" if chains > 1 else "")
        return row(
            "create-parallel" if chains > 1 else "create",
            f"`Benchmark{name}`: each starts the next" + (", two at once" if chains > 1 else ""),
            lambda: ours(create, n, chains),
            lambda: golang("createGoroutines", 10 * n, chains),
            (lambda: asyncio_create(n)) if chains == 1 else None,
        )

    return measure


def spin(seconds: float) -> None:
    end = clock() + seconds
    while clock() < end:
        pass


async def first_party(ping: Chan, pong: Chan, n: int, delay: float) -> None:
    for _ in range(n):
        spin(delay + WAKE_DELAY_S)
        await ping.send(None)
        spin(delay)
        await pong.recv()


async def second_party(ping: Chan, pong: Chan, n: int, delay: float) -> None:
    for _ in range(n):
        spin(delay)
        await ping.recv()
        spin(delay + WAKE_DELAY_S)
        await pong.send(None)


async def wakeup_parallel(n: int, micros: int) -> float:
    ping, pong = chan(), chan()
    hs = [spawn(f, ping, pong, n, micros * 1e-6) for f in (first_party, second_party)]
    return await timed(*hs)


def wakeup_row(micros: int) -> Callable[[int], Row]:
    def measure(scale: int) -> Row:
        n = 200 * scale
        return row(
            f"wakeup-{micros}",
            f"`BenchmarkWakeupParallelSpinning/{micros}µs`: "
            f"{2 * micros + 10} µs if wakes cost nothing, {4 * micros + 10} µs on one processor",
            lambda: ours(wakeup_parallel, n, micros),
            lambda: golang("wakeupParallel", 10 * n, micros),
        )

    return measure


# ---- sync and time ---------------------------------------------------------------------------


async def locker(m: sync.Mutex, n: int) -> None:
    for _ in range(n):
        await m.lock()
        m.unlock()


async def mutexes(n: int, shared: bool) -> float:
    one = sync.Mutex()
    hs = [spawn(locker, one if shared else sync.Mutex(), n // PROCS) for _ in range(PROCS)]
    return await timed(*hs)


def asyncio_lock(n: int) -> float:
    async def main() -> float:
        lock = asyncio.Lock()
        started = clock()
        for _ in range(n):
            await lock.acquire()
            lock.release()
        return clock() - started

    return asyncio.run(main()) / n


def mutex_row(shared: bool) -> Callable[[int], Row]:
    def measure(scale: int) -> Row:
        n = 20_000 * scale
        name = "Mutex" + ("" if shared else "Uncontended")
        return row(
            "mutex" if shared else "mutex-uncontended",
            f"`Benchmark{name}`: lock and unlock, by two, "
            + ("of one mutex" if shared else "each of its own"),
            lambda: ours(mutexes, n, shared),
            lambda: golang(name[0].lower() + name[1:], 10 * n),
            None if shared else lambda: asyncio_lock(n),
        )

    return measure


async def fired(expected: float, out: Chan) -> None:
    await out.send(clock() - expected)


async def timer_latency(n: int) -> float:
    """The sum of how late n timers are, one at a time, one worker spinning."""
    late, out = 0.0, chan(1)
    for _ in range(n):
        expected = clock() + 1e-3
        after_func(1e-3, fired, expected, out)
        while len(out) == 0:
            pass
        late += max(0.0, await out.recv())
        spin(1e-3)
    return late


def asyncio_latency(n: int) -> float:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        late = 0.0
        for _ in range(n):
            done: asyncio.Future[float] = loop.create_future()
            expected = clock() + 1e-3
            loop.call_later(1e-3, lambda f=done: f.set_result(clock()))  # type: ignore[misc]
            late += max(0.0, await done - expected)
        return late

    return asyncio.run(main()) / n


def row_timer(scale: int) -> Row:
    n = 50 * scale
    return row(
        "timer-late",
        "`BenchmarkParallelTimerLatency`: how late a timer of 1 ms is, on the average",
        lambda: ours(timer_latency, n),
        lambda: golang("timerLatency", n),
        lambda: asyncio_latency(n),
    )


ROWS: dict[str, Callable[[int], Row]] = {
    "chan-sync": row_chan_sync,
    "prod-cons-0": prod_cons_row(0),
    "prod-cons-10": prod_cons_row(10),
    "prod-cons-100": prod_cons_row(100),
    "select": row_select,
    "pingpong-hog": row_hog,
    "create": create_row(1),
    "create-parallel": create_row(2),
    "wakeup-0": wakeup_row(0),
    "wakeup-10": wakeup_row(10),
    "wakeup-100": wakeup_row(100),
    "mutex-uncontended": mutex_row(shared=False),
    "mutex": mutex_row(shared=True),
    "timer-late": row_timer,
}

if __name__ == "__main__":
    sys.exit(figures.report(ROWS, __doc__))
