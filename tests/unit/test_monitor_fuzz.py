"""A monitor on a segment that is damaged, or changes under its eyes: an error or a wrong figure,
never a crash and never a hang. It runs in a child, for a crash would end the tests.

MPGORT_STORM=1: 5,000 damaged segments; else some. MPGORT_SEED repeats what was drawn."""

from __future__ import annotations

import os
import random

STORM = os.environ.get("MPGORT_STORM", "0") not in ("", "0")

FUZZ = """
    import os, random, sys, threading
    from collections import Counter
    import mpgort
    from mpgort import _core, _monitor, _traceback, chan, sleep, spawn, sync
    from mpgort._errors import BadSegment

    async def wait(ch, n):
        data = [n] * 5
        await ch.recv()

    async def main(path):
        "A segment with something of everything, copied as it is."
        ch, m = chan(3), sync.Map()
        m.store("a", 1)
        hs = [spawn(wait, ch, i) for i in range(30)] + [spawn(sleep, 100)]
        while sum(h.status() in ("chan receive", "sleep") for h in hs) < 31:
            await sleep(0.001)
        fd, out = _core.current().fd, os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(out, os.fstat(fd).st_size)
        at, parts = 0, []
        while True:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return out, parts
            at = os.lseek(fd, start, os.SEEK_HOLE)
            parts.append((start, os.pread(fd, at - start, start)))
            os.pwrite(out, parts[-1][1], start)

    def look(fd):
        try:
            prog = _core.Program.attach(os.dup(fd), True)
        except BadSegment:
            return "refused"
        said = "shown"
        for f in (lambda: _monitor.view(prog, 1), prog.stats, prog.schedtrace, prog.slots,
                  lambda: _traceback.dump(prog), lambda: list(_traceback.leaks(prog)),
                  lambda: prog.check(False)):
            try:
                f()
            except Exception as e:
                said = "an error"
        prog.detach()
        return said

    if __name__ == "__main__":
        path, rng, rounds = sys.argv[1], random.Random(int(sys.argv[2])), int(sys.argv[3])
        fd, parts = mpgort.run(main, path, procs=1, heap_bytes=1 << 20, max_goroutines=2000)
        assert look(fd) == "shown"
        said = Counter()

        def damage(parts):
            start, data = rng.choice(parts)
            word = rng.choice((0, 1, 0xFF, 1 << 16, 1 << 32, 1 << 63, (1 << 64) - 1,
                               rng.getrandbits(64), rng.randrange(1 << 20) * 8))
            os.pwrite(fd, word.to_bytes(8, "little"), start + rng.randrange(0, len(data), 8))

        for i in range(rounds):
            for _ in range(rng.choice((1, 1, 3, 30, 1000))):
                damage(parts)
            stop = threading.Event()

            def churn():
                while not stop.is_set():
                    damage(parts[1:])        # what it was attached by stays

            t = threading.Thread(target=churn)
            if i % 7 == 3:
                t.start()
            said[look(fd)] += 1
            if i % 7 == 3:
                stop.set()
                t.join()
            for start, data in parts:
                os.pwrite(fd, data, start)
        assert look(fd) == "shown"
        for size in (0, 100, 4096, os.fstat(fd).st_size - 4096):    # cut short
            os.ftruncate(fd, size)
            assert look(fd) == "refused", size
        print(sum(said.values()))
"""


def test_a_damaged_segment_neither_crashes_nor_hangs_a_monitor(program):
    seed = int(os.environ.get("MPGORT_SEED", random.randrange(1 << 30)))
    print("MPGORT_SEED", seed)
    rounds = 5000 if STORM else 30
    path = f"/dev/shm/fuzz-mpgort-{os.getpid()}"
    try:
        r = program(FUZZ, path, str(seed), str(rounds), limit=3600 if STORM else 60)
    finally:
        if os.path.exists(path):
            os.unlink(path)
    assert (r.status, r.out) == (0, f"{rounds}\n"), r.err
