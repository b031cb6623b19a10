"""Everything at once, and whoever may die dies at any moment.

A pipeline over 4 workers: messages and arrays, timers in selects, a mutex whose holder may die.
Every message arrives once, or was in the hands of a goroutine that is reported dead; the segment
is whole; nothing is left. MPGORT_STORM=1: 1,000,000 messages and 1,000 kills for each kind of
storm; else a hundredth, or MPGORT_KILLS and a thousand messages for each. MPGORT_SEED repeats the
draws of one."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

STORM = os.environ.get("MPGORT_STORM", "0") not in ("", "0")
KILLS = int(os.environ.get("MPGORT_KILLS", "1000" if STORM else "10"))
MESSAGES = 1000 * KILLS

PIPELINE = """
    import os, sys, time
    import numpy as np
    import mpgort
    from mpgort import Ticker, _core, after, chan, default, select, sleep, spawn, sync
    from rest import breaches

    STAGES, EACH, LARGE = 3, 4, 9000       # an array of 72,000 bytes crosses without a copy

    async def add(lock, total):
        while True:
            try:
                await lock.lock()
                break
            except mpgort.OwnerDied:
                lock.recover()
        seen = total.load()                 # not atomic: the lock makes it so
        total.store(seen + 1)
        lock.unlock()

    async def stage(inbox, outbox, lock, total):
        ticker, ticks = Ticker(0.02), 0
        while True:
            i, v = await select(inbox.recv_ok, ticker.c.recv, after(5).recv)
            if i != 0:
                ticks += 1
                continue
            (n, data), ok = v if v[1] else ((0, None), False)
            if not ok:
                ticker.stop()
                return ticks
            if data is not None:
                assert len(data) == LARGE and data[0] == data[-1] == n
            if n % 50 == 0:
                await sleep(0.0005)
            if n % 8 == 0:
                await add(lock, total)
            await outbox.send((n, data))

    async def main(messages, enough, draining):
        pipes = [chan(0 if i % 2 else 16) for i in range(STAGES + 1)]
        lock, total = sync.Mutex(), sync.AtomicInt()
        first, last = pipes[0], pipes[-1]
        seen, dead, sent = bytearray(), 0, 0

        def crew_of(s):
            return spawn(stage, pipes[s], pipes[s + 1], lock, total)

        crew = [[crew_of(s) for _ in range(EACH)] for s in range(STAGES)]

        def take(v):
            n, data = v
            assert seen[n] == 0, n
            assert (data is not None) == (n % 64 == 0) and (data is None or data[7] == n)
            seen[n] = 1

        def again(s):
            nonlocal dead
            for i, h in enumerate(crew[s]):
                if h.done() and h.exception() is not None:
                    assert isinstance(h.exception(), mpgort.MDied), h.exception()
                    dead += 1
                    crew[s][i] = crew_of(s)

        print("up", flush=True)
        while sent < messages or sent % 64 or not os.path.exists(enough):
            if len(seen) == sent:
                seen.extend(bytes(4096))
            data = np.full(LARGE, sent) if sent % 64 == 0 else None
            i, v = await select((first.send, (sent, data)), last.recv, after(0.05).recv)
            if i == 0:
                sent += 1
            elif i == 1:
                take(v)
            if i == 2 or sent % 64 == 0:
                for s in range(STAGES):
                    again(s)
        open(draining, "w").close()
        for s in range(STAGES):
            pipes[s].close()
            while not all(h.done() and h.exception() is None for h in crew[s]):
                again(s)
                i, v = await select(last.recv, after(0.002).recv)
                if i == 0:
                    take(v)
        while len(last):
            take(await last.recv())
        lost = sent - sum(seen)
        assert 0 <= lost <= dead, (sent, lost, dead)
        # Each stage counts every eighth once; a dead one's count may be missing, never twice.
        assert total.load() <= STAGES * (sent // 8 + 1), total.load()
        assert total.load() >= STAGES * (sent // 8) - STAGES * dead, (total.load(), dead)
        prog = _core.current()
        print("lost", lost, "dead", dead, "deaths", prog.stats()["deaths"], flush=True)
        del pipes, crew, lock, total, first, last, data, v
        return breaches(prog, 30)

    if __name__ == "__main__":
        print("\\n".join(mpgort.run(main, int(sys.argv[1]), *sys.argv[2:], procs=4)) or "whole")
"""


def kill(pid: int, sig: int) -> bool:
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(3600 if STORM else 120)
@pytest.mark.parametrize("kind", ("kills", "stops", "moves"))
def test_in_a_storm_every_message_arrives_once_or_died_with_its_goroutine(program, kind):
    """stops: processes of all kinds, M0 too, are stopped for a moment, and keepers are killed too.
    moves: under MPGORT_MIGRATE=always."""
    seed = int(os.environ.get("MPGORT_SEED", random.randrange(1 << 30)))
    rng = random.Random(f"{seed} {kind}")
    print("MPGORT_SEED", seed)
    env = {"MPGORT_MIGRATE": "always"} if kind == "moves" else {}
    enough, draining = program.folder / "enough", program.folder / "draining"
    p = program.start(PIPELINE, str(MESSAGES), str(enough), str(draining), env=env)
    assert p.line() == "up"
    killed, stopped = 0, {}
    try:
        while not draining.exists() and p.popen.poll() is None:
            time.sleep(rng.random() * 0.06)
            if kind == "stops":
                now = time.monotonic()
                for pid in [pid for pid, until in stopped.items() if until < now]:
                    kill(pid, signal.SIGCONT)
                    del stopped[pid]
                everybody = p.processes()
                if everybody and rng.random() < 0.4:
                    pid = rng.choice(everybody).pid
                    if kill(pid, signal.SIGSTOP):
                        stopped[pid] = now + rng.random() * 0.1
                if rng.random() < 0.05 and (keeper := p.keeper()):
                    killed += kill(keeper.pid, signal.SIGKILL)
            killed += p.kill_some(rng)
            if killed >= KILLS:
                enough.touch()
    finally:
        for pid in stopped:
            kill(pid, signal.SIGCONT)
    r = p.wait(600 if STORM else 60)
    assert r.status == 0, (r.out, r.err)
    assert r.out.endswith("whole\n"), r.out
    print(killed, "killed;", r.out.splitlines()[-2])
    assert killed >= KILLS and int(r.out.split()[-2]) > 0, (killed, r.out)
