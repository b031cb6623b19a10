"""A program: prints for each kind of await what it keeps, or loses, each time it is done, in
references to objects in a debug build of CPython, else in allocated blocks. All is measured within
one goroutine, in a process without workers, where nothing else goes on."""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable

import mpgort.runtime as rt
import mpgort.shared
from mpgort import (
    Cancelled,
    ChanError,
    Group,
    Killed,
    SerializationError,
    Ticker,
    Timer,
    after,
    after_func,
    chan,
    context,
    default,
    go,
    gosched,
    select,
    sleep,
    spawn,
    sync,
    to_thread,
)

DEBUG = hasattr(sys, "gettotalrefcount")
held: Callable[[], int] = sys.gettotalrefcount if DEBUG else sys.getallocatedblocks  # type: ignore[attr-defined]
CALLS = 10
ROUNDS = 60
REASON = rt.WaitReason.register("test of references")


async def hop() -> None:
    await gosched()


async def fail(i: int) -> None:
    await gosched()
    raise KeyError(i)


async def pass_on(ch: mpgort.Chan, out: mpgort.Chan) -> None:
    async for v in ch:
        await out.send(v)
    out.close()


async def pour(ch: mpgort.Chan) -> None:
    while True:
        await ch.send("x" * 100)


async def channels() -> None:
    a, b = chan(), chan(3)
    go(pass_on, a, b)
    for i in range(20):
        await a.send([i, str(i) * 20, {"k": i}])
        await b.recv()
    a.close()
    assert await b.recv_ok() == (None, False)


async def selects() -> None:
    a, b = chan(20), chan()
    h = spawn(pour, b)
    for i in range(10):
        await a.send(i)
        await select(a.recv, b.recv)
        await select(a.recv, b.recv, default)
    b.close()
    try:
        await h
    except ChanError:
        pass


async def locks() -> None:
    m, wg, s = sync.Mutex(), sync.WaitGroup(), sync.Semaphore(2)
    rw, once, cond = sync.RWMutex(), sync.Once(), sync.Cond(m)
    n = sync.AtomicInt()

    async def user(i: int) -> None:
        async with m:
            await gosched()
        async with s:
            await gosched()
        async with rw.reader() if i % 2 else rw.writer():
            await gosched()
        await once.do(hop)
        n.add(1)
        async with m:
            cond.broadcast()

    for i in range(10):
        wg.go(user, i)
    async with m:
        while n.load() < 10:
            await cond.wait()
    await wg.wait()


async def timers() -> None:
    t, k, got = Timer(0.0005), Ticker(0.0005), chan()
    await t.c.recv()
    await k.c.recv()
    k.stop()
    t.reset(10)
    t.stop()
    await select(after(0.0005).recv)
    after_func(0.0005, got.send, 1)
    await got.recv()
    after_func(10, got.send, 1).stop()
    await sleep(0.0005)


async def joins() -> None:
    for h in [spawn(pow, 2, i) for i in range(10)] + [spawn(fail, i) for i in range(3)]:
        try:
            await h
        except KeyError:
            pass
    cancelled, killed = spawn(sleep, 100), spawn(sleep, 100)
    await gosched()
    cancelled.cancel()
    killed.kill()
    for h in cancelled, killed:
        try:
            await h
        except (Cancelled, Killed):
            pass


async def groups() -> None:
    try:
        async with Group(limit=2) as g:
            for _ in range(6):
                g.spawn(hop)
            g.spawn(fail, 1)
    except ExceptionGroup:
        pass


async def contexts() -> None:
    ctx, cancel = context.with_timeout(context.background(), 0.0005)
    below, cancel_below = context.with_cancel(context.with_value(ctx, "k", [1, 2]))
    assert below.value("k") == [1, 2]
    await below.done().recv()
    cancel_below()
    cancel()
    assert below.err() == context.DEADLINE_EXCEEDED


async def maps() -> None:
    m, d = sync.Map(), mpgort.shared.dict()
    for i in range(10):
        m.store(i, [i])
        m.load_or_store(i, 3)
        d[str(i)] = {"a": i}
        d.cas(str(i), {"a": i}, 3)
    assert len(list(m.items())) == len(list(d.items())) == 10
    for i in range(10):
        m.delete(i)
        d.pop(str(i))


async def pinned() -> None:
    with open("/dev/null"):
        for _ in range(5):
            await gosched()


async def heavy() -> int:
    big = [str(i) for i in range(5000)]
    for _ in range(5):
        await gosched()
    return len(big)


async def at_home() -> None:
    await spawn(pinned)
    await spawn(heavy)


async def arrays() -> None:
    import numpy as np

    ch = chan(1)
    await ch.send(np.arange(20000.0))
    assert (await ch.recv())[3] == 3
    z = mpgort.shared.zeros(20000)
    await ch.send(z)
    (await ch.recv())[0] = 1
    assert z[0] == 1


async def threads() -> None:
    await to_thread(len, "abc")


async def refusals() -> None:
    with open("/dev/null") as f:
        try:
            await chan(1).send([f])
        except SerializationError:
            pass
    try:
        spawn(3)  # type: ignore[arg-type]
    except TypeError:
        pass


async def own_primitives() -> None:
    def unlock(g: object, lock: object) -> bool:
        rt.goready(g, "v")
        return True

    def yield_(g: object) -> None:
        rt.casgstatus(g, rt.Grunning, rt.Grunnable)
        rt.dropg()
        rt.globrunqput(g)
        rt.schedule()

    assert await rt.gopark(unlock, None, REASON) == "v"
    await rt.mcall(yield_)


KINDS: list[Callable[[], Awaitable[None]]] = [
    channels, selects, locks, timers, joins, groups, contexts, maps, at_home, arrays, threads,
    refusals, own_primitives,
]  # fmt: skip


async def smallest_change(kind: Callable[[], Awaitable[None]]) -> int:
    """Of `held()`, by a call: the one nearest to 0 of many rounds of CALLS. Tables and pools fill
    up in the first, so it looks on until a round changes less than one a call."""
    least = sys.maxsize
    for _ in range(ROUNDS):
        gc.collect()
        before = held()
        for _ in range(CALLS):
            await kind()
        gc.collect()
        least = min(least, held() - before, key=abs)
        if abs(least) < CALLS:
            return 0
    return round(least / CALLS)


async def main() -> None:
    gc.freeze()
    for kind in KINDS:
        # NumPy is no debug build: what it gives back is not counted.
        if not (DEBUG and kind is arrays):
            print(kind.__name__, await smallest_change(kind))


if __name__ == "__main__":
    mpgort.run(main, procs=0)
