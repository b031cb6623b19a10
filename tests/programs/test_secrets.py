"""scrub=True: what goroutines and messages leave in shared memory can be found there no more."""

from __future__ import annotations

import pytest

PROGRAM = """
    import os, sys, threading
    import mpgort
    from mpgort import _core, chan, go, select, sleep, spawn, sync

    def found(prog, secret):
        "How often it stands in what the segment has pages for."
        n, at, fd = 0, 0, prog.fd
        while True:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return n
            at = os.lseek(fd, start, os.SEEK_HOLE)
            n += os.pread(fd, at - start, start).count(secret)

    async def keeps(secret, gate, then):
        kept = [secret, {"key": secret * 3}]
        await gate.recv()                   # parked with it, then with less
        del kept
        short = secret[:12]
        await then.recv()
        del short, secret
        await then.recv()

    async def pass_on(inbox, outbox):
        async for v in inbox:
            await outbox.send(v)

    async def fails(secret):
        raise ValueError(secret)

    async def mutates(secret, m):
        m.store("k", secret)
        assert m.load("k")[0] == secret
        m.store("k", None)

    async def dies(secret, gate):
        kept = secret * 2
        await gate.recv()
        os.kill(os.getpid(), 9)

    async def main(scrub):
        prog = _core.current()
        secret = os.urandom(24)
        gate, then, inbox, outbox = chan(), chan(), chan(3), chan()
        crew = [spawn(keeps, secret, gate, then) for _ in range(20)]
        passing = spawn(pass_on, inbox, outbox)
        for k in (1, 4, 1000, 20_000):      # in a block of a class, and in pages
            await inbox.send(secret * k)
            assert await outbox.recv() == secret * k
        await inbox.send((secret[:8],))     # in place
        await outbox.recv()
        inbox.close()
        await passing                       # large ones made it heavy: it would die, too
        try:
            await spawn(fails, secret)
        except ValueError:
            pass
        m = sync.Map()
        await spawn(mutates, secret, m)
        h = spawn(dies, secret, gate)
        while h.status() != "chan receive":
            await sleep(0.001)
        while sum(c.status() == "chan receive" for c in crew) < 20:
            await sleep(0.001)
        before = found(prog, secret)
        for _ in range(21):
            await gate.send(None)
        try:
            await h
        except mpgort.MDied:
            pass
        for _ in range(40):
            await then.send(None)
        for c in crew:
            await c
        del c, crew, h, passing
        import gc
        gc.collect()
        await sleep(0.05)
        return before, found(prog, secret), found(prog, secret[:8])

    if __name__ == "__main__":
        scrub, procs = sys.argv[1] == "1", int(sys.argv[2])
        before, whole, part = mpgort.run(main, scrub, procs=procs, scrub=scrub)
        print(before > 20, whole > 0, part > 0)
"""


@pytest.mark.parametrize("procs", (1, 2))
def test_a_secret_is_gone_from_shared_memory_when_nobody_has_it_any_more(program, procs):
    for migrate in ("auto", "always"):  # never: nothing stands there anyway
        r = program(PROGRAM, "1", str(procs), env={"MPGORT_MIGRATE": migrate})
        assert (r.status, r.out) == (0, "True False False\n"), r.err


def test_without_scrub_it_can_be_found_there(program):
    r = program(PROGRAM, "0", "2", env={"MPGORT_MIGRATE": "auto"})
    assert (r.status, r.out) == (0, "True True True\n"), r.err
