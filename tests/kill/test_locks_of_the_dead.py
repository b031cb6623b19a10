"""A lock whose holder dies with its worker: INV owner-died. Who waits and who comes is told, until
recover(); no lock, token or wake-up is lost otherwise.

The storm runs MPGORT_STORM_S seconds (default 4)."""

from __future__ import annotations

import os

import pytest

STORM_S = float(os.environ.get("MPGORT_STORM_S", "4"))

LOCKS = """
    import os, signal, sys
    import mpgort
    from mpgort import chan, gosched, spawn, sync
    from rest import breaches

    async def die_in(lock, held):
        async with lock:
            await held.send(True)
            await held.recv()
            os.kill(os.getpid(), signal.SIGKILL)

    async def die_once(once, held):
        async def die():
            await held.send(True)
            await held.recv()
            os.kill(os.getpid(), signal.SIGKILL)
        await once.do(die)

    async def told(awaitable, *args):
        try:
            await awaitable(*args)
            return "not told"
        except mpgort.OwnerDied:
            return "told"

    async def parked(reason, handles):
        while any(h.status() != reason for h in handles):
            await gosched()

    async def nothing():
        pass

    async def run(kind):
        held = chan()
        lock = {"mutex": sync.Mutex, "writer": sync.RWMutex, "reader": sync.RWMutex,
                "once": sync.Once}[kind]()
        inner = {"mutex": lambda: lock, "writer": lambda: lock.writer(),
                 "reader": lambda: lock.reader(), "once": lambda: lock}[kind]()
        victim = spawn(die_once if kind == "once" else die_in, inner, held)
        await held.recv()
        take = (lock.do, nothing) if kind == "once" else (lock.lock,)
        waiters = [spawn(told, *take) for _ in range(40)]
        reason = {"mutex": "sync.Mutex.Lock", "once": "sync.Once.Do"}.get(kind, "sync.RWMutex.Lock")
        await parked(reason, waiters)
        await held.send(True)
        try:
            await victim
        except mpgort.MDied as e:
            print("died", e.signal)
        print({await w for w in waiters}, await told(*take), lock.recover(), lock.recover())
        if kind == "once":
            await lock.do(nothing)
        else:
            await lock.lock()
            lock.unlock()
        print(breaches(mpgort._core.current()))

    if __name__ == "__main__":
        mpgort.run(run, sys.argv[1], procs=int(sys.argv[2]))
"""


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("procs", (1, 2))
@pytest.mark.parametrize("kind", ("mutex", "writer", "reader", "once"))
def test_when_a_holder_dies_with_its_worker_everybody_is_told_until_recover(program, kind, procs):
    r = program(LOCKS, kind, str(procs))
    assert (r.status, r.out) == (0, "died 9\n{'told'} told True False\n[]\n"), r.err


# Goroutines that lock, park inside, wait on each other, and die with their workers at any moment.
STORM = """
    import sys, time
    import mpgort
    from mpgort import _core, gosched, sleep, spawn, sync
    from rest import breaches

    async def churn(m, rw, cond, done):
        while True:
            try:
                async with m:
                    await gosched()
                async with rw.writer():
                    await gosched()
                async with rw.reader():
                    await gosched()
                async with cond.lock:
                    cond.broadcast()
                    await cond.wait()
            except mpgort.OwnerDied:
                for lock in (m, rw, cond.lock):
                    lock.recover()
            done.add(1)
            await gosched()

    async def nudge(cond):
        while True:
            cond.broadcast()
            await sleep(0.001)

    async def main(seconds):
        m, rw, done = sync.Mutex(), sync.RWMutex(), sync.AtomicInt()
        cond = sync.Cond(sync.Mutex())
        crew, dead = [spawn(churn, m, rw, cond, done) for _ in range(12)], 0
        nudger = spawn(nudge, cond)
        print("up", flush=True)
        end, last, moved = time.monotonic() + seconds, 0, time.monotonic()
        while time.monotonic() < end:
            await sleep(0.002)
            for i, h in enumerate(crew):
                if h.done():
                    assert isinstance(h.exception(), mpgort.MDied), h.exception()
                    dead += 1
                    crew[i] = spawn(churn, m, rw, cond, done)
            if nudger.done():
                assert isinstance(nudger.exception(), mpgort.MDied), nudger.exception()
                nudger = spawn(nudge, cond)
            now = done.load()
            if now != last:
                last, moved = now, time.monotonic()
            assert time.monotonic() - moved < 20, ("nobody gets on", m, rw, cond.lock)
        for h in [*crew, nudger]:
            h.cancel()
        for h in [*crew, nudger]:
            try:
                await h
            except (mpgort.Cancelled, mpgort.MDied, mpgort.SyncError):
                pass
        for lock in (m, rw, cond.lock):
            try:
                await lock.lock()
            except mpgort.OwnerDied:
                lock.recover()
                await lock.lock()
            lock.unlock()
        stats = _core.current().stats()
        return done.load(), dead, stats["deaths"], breaches(_core.current())

    if __name__ == "__main__":
        done, dead, deaths, said = mpgort.run(main, float(sys.argv[1]), procs=4)
        print("done", done, "dead", dead, "deaths", deaths)
        print("\\n".join(said) or "whole")
"""


@pytest.mark.timeout(120 + 3 * STORM_S)
@pytest.mark.parametrize("migrate", ("auto", "always", "never"))
def test_in_a_storm_of_kills_no_lock_is_lost(program, migrate):
    r = program.storm(STORM, STORM_S, migrate=migrate)
    assert r.out.endswith("whole\n"), r.out
    words = r.out.splitlines()[-2].split()
    assert int(words[1]) > 0 and int(words[5]) > 0, r.out
