"""A monitor on a segment that is damaged, or changes or is cut short under its eyes: an error or a
wrong figure, never a crash and never a hang; of a command one line, never a traceback. It runs in a
child, for a crash would end the tests.

MPGORT_STORM=1: 5,000 damaged segments; else some. MPGORT_SEED repeats what was drawn."""

from __future__ import annotations

import os
import random

import pytest

STORM = os.environ.get("MPGORT_STORM", "0") not in ("", "0")

FUZZ = """
    import contextlib, io, os, random, sys, tempfile, threading
    from collections import Counter
    import mpgort
    from mpgort import _core, _monitor, _segment, _traceback, chan, cli, sleep, spawn, sync
    from mpgort._errors import BadSegment

    async def wait(ch, n):
        data = [n] * 5
        await ch.recv()

    async def main():
        "A segment with something of everything, copied as it is."
        ch, m = chan(3), sync.Map()
        m.store("a", 1)
        hs = [spawn(wait, ch, i) for i in range(30)] + [spawn(sleep, 100)]
        while sum(h.status() in ("chan receive", "sleep") for h in hs) < 31:
            await sleep(0.001)
        path = f"/dev/shm/mpgort-{os.geteuid()}-{os.getpid()}-f"    # as a program of this process
        fd, out = _core.current().fd, os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.unlink(path)
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

    def attach():
        mine = os.dup(fd)
        try:
            return _core.Program.attach(mine, True)
        except BaseException:
            os.close(mine)
            raise

    def ways(prog):
        return (lambda: _monitor.view(prog, 1), prog.stats, prog.schedtrace, prog.slots,
                lambda: _traceback.dump(prog), lambda: list(_traceback.leaks(prog)),
                lambda: prog.check(False))

    def look():
        try:
            prog = attach()
        except BadSegment:
            return "refused"
        said = "shown"
        for f in ways(prog):
            try:
                f()
            except Exception as e:
                said = "an error"
        prog.detach()
        return said

    def command(*args):
        "A command that says what is wrong in one line, or nothing is; and its status."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(list(args))
        lines = err.getvalue().splitlines()
        if args[0] == "ps":                     # whatever else runs on this machine
            lines = [x for x in lines if not x.startswith("mpgort: program ") or f" {me}: " in x]
        assert len(lines) == (1 if args[0] == "ps" and lines else status // 2), (args, lines)
        assert all(line.startswith("mpgort: ") for line in lines), (args, lines)
        return status, "\\n".join(lines)

    def trace():
        "In a child, which damage may end."
        cli.ANSWER_S = 1
        errors.seek(0)
        errors.truncate()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(errors.fileno(), 2)
                os._exit(cli.main(["trace", me, "-o", os.devnull, "--seconds", "0.01"]))
            except BaseException:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        said = errors.read().decode()
        assert status in (0, 2) and said.count("\\n") == 1, (status, said)
        return status

    def restore():
        os.ftruncate(fd, size)
        for start, data in parts:
            os.pwrite(fd, data, start)

    if __name__ == "__main__":
        me, rng, rounds = str(os.getpid()), random.Random(int(sys.argv[1])), int(sys.argv[2])
        errors = tempfile.TemporaryFile()
        fd, parts = mpgort.run(main, procs=1, heap_bytes=1 << 20, max_goroutines=2000)
        size = os.fstat(fd).st_size
        assert look() == "shown"
        commands = [("stack", me), ("stack", me, "--leaks"), ("top", me, "--count", "1"), ("ps",)]
        for args in commands:
            assert command(*args) == (0, ""), args
        said = Counter()

        def damage():
            start, data = rng.choice(parts)
            word = rng.choice((0, 1, 0xFF, 1 << 16, 1 << 32, 1 << 63, (1 << 64) - 1,
                               rng.getrandbits(64), rng.randrange(1 << 20) * 8))
            os.pwrite(fd, word.to_bytes(8, "little"), start + rng.randrange(0, len(data), 8))

        def churn(stop):
            while not stop.is_set():
                damage()

        def cut(stop):
            while not stop.is_set():
                os.ftruncate(fd, rng.randrange(size))
                restore()

        for i in range(rounds):
            for _ in range(rng.choice((1, 1, 3, 30, 1000))):
                damage()
            stop = threading.Event()
            beside = {3: churn, 5: cut}.get(i % 7)
            t = threading.Thread(target=beside, args=(stop,), daemon=True)
            if beside is not None:
                t.start()
            said[look()] += 1
            command(*rng.choice(commands))
            if i % 5 == 0:
                trace()
            if beside is not None:
                stop.set()
                t.join()
            restore()
        assert look() == "shown"

        prog = attach()
        table = _segment.g_table(prog)
        os.ftruncate(fd, 8192)                        # under the eyes of one that has begun
        assert not table["status"].any()
        for f in (*ways(prog), prog.look):
            try:
                f()
            except BadSegment as e:
                assert "cut short" in str(e), e
            else:
                raise AssertionError(f)
        for short in (0, 100, 4096, size - 4096):
            restore()
            os.ftruncate(fd, short)
            assert look() == "refused", short
            for args in commands[:-1]:
                status, text = command(*args)
                assert status == 2 and f"program {me}: it has " in text, text
            assert trace() == 2
        restore()
        print(sum(said.values()))
"""


@pytest.mark.timeout(3700 if STORM else 120)
def test_a_damaged_segment_neither_crashes_nor_hangs_a_monitor(program):
    seed = int(os.environ.get("MPGORT_SEED", random.randrange(1 << 30)))
    print("MPGORT_SEED", seed)
    rounds = 5000 if STORM else 30
    r = program(FUZZ, str(seed), str(rounds), limit=3600 if STORM else 60)
    assert (r.status, r.out) == (0, f"{rounds}\n"), r.err
