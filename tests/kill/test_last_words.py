"""Where a worker was when a signal killed it: the MDied of the goroutine that ran there says so.

Programs run without PYTHONFAULTHANDLER (which `program` sets), but where it is what they are
about."""

from __future__ import annotations

import pytest

from mpgort import MDied

PLAIN = {"PYTHONFAULTHANDLER": ""}

DIE = """
    import ctypes, faulthandler, os, signal, sys, time
    import mpgort
    from mpgort import chan, go, sleep, spawn

    def fatal():
        ctypes.pythonapi.Py_FatalError(b"no more")

    def outside():
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(100)

    ENDS = {
        "segfault": (lambda: ctypes.string_at(0), 11),
        "abort": (lambda: os.abort(), 6),
        "bus error": (lambda: os.kill(os.getpid(), signal.SIGBUS) or time.sleep(100), 7),
        "overflow": (lambda: faulthandler._stack_overflow(), 11),
        "fatal": (fatal, 6),
        "sent": (outside, 11),
        "thread of C": (lambda: faulthandler._fatal_error_c_thread(), 6),
    }

    def down(n, how):
        if n > 0:
            down(n - 1, how)
        ENDS[how][0]()

    async def inner(how, depth):
        down(depth, how)

    async def outer(how, depth=1):
        await inner(how, depth)

    async def death(h):
        try:
            await h
        except mpgort.MDied as e:
            return e
"""


def dying(body: str) -> str:
    return DIE + body


@pytest.mark.parametrize("method", ("fork", "forkserver", "spawn"))
def test_the_frames_of_the_goroutine_are_there_whatever_killed_it_and_wherever_it_is_run(
    program, method
):
    """A replacement each time: it has last words, too."""
    r = program(
        dying("""
    async def main():
        for how, (_, sig) in ENDS.items():
            e = await death(spawn(outer, how))
            assert e.signal == sig, (how, e)
            lines = e.stack.splitlines()
            names = [line for line in lines if not line.startswith("\\t")]
            assert names[-4:] == ["down(...)", "down(...)", "inner(...)", "outer(...)"], lines
            assert all(line.rpartition(":")[0] == "\\t" + __file__ for line in lines[-7::2]), lines
            assert str(e).endswith(f"goroutine {e.goid} [running]:\\n" + e.stack.rstrip()), e
        print(len(ENDS))

    if __name__ == "__main__":
        mpgort.run(main, procs=1, start_method=sys.argv[1])
"""),
        method,
        env=PLAIN,
    )
    assert (r.status, r.out) == (0, "7\n"), r.err
    assert "Segmentation fault" not in r.err  # faulthandler was not asked for


def test_who_had_no_time_to_say_has_no_stack_nor_has_who_did_not_run_there(program):
    r = program(
        dying("""
    async def leave(how):
        how()

    async def pinned(ready, gate):
        with open("/dev/null"):
            await ready.send(None)
            await gate.recv()

    async def main():
        for how in (lambda: os.kill(os.getpid(), 9), lambda: os._exit(3)):
            e = await death(spawn(leave, how))
            assert e.stack is None and "\\n" not in str(e), e
        ready, gate = chan(), chan()
        h = spawn(pinned, ready, gate)
        await ready.recv()
        while h.status() != "chan receive":
            await sleep(0.001)
        e = await death(spawn(outer, "segfault"))
        at_home = await death(h)
        assert (e.m, e.signal) == (at_home.m, at_home.signal) == (e.m, 11), (e, at_home)
        assert e.stack is not None and at_home.stack is None
        print("said")

    mpgort.run(main, procs=1)
"""),
        env=PLAIN,
    )
    assert (r.status, r.out) == (0, "said\n"), r.err


def test_a_deep_stack_ends_where_the_room_does_and_its_innermost_frames_are_there(program):
    r = program(
        dying("""
    async def named():
        namespace = {}
        place = "ein \\n Ort" + "x" * 5000
        exec(compile("def prüfe_字_𐎠(die): die()", place, "exec"), namespace)
        namespace["prüfe_字_𐎠"](os.abort)

    async def main():
        e = await death(spawn(outer, "segfault", 900))
        assert 3500 < len(e.stack.encode()) < 4096, len(e.stack)
        lines = e.stack.splitlines()
        assert lines[0].startswith("string_at(") and lines[-1] == "...", lines
        assert lines[-2].startswith("\\t") and lines[-3] == "down(...)", lines

        e = await death(spawn(named))
        assert "prüfe_字_𐎠(...)\\n\\tein ? Ortxxx" in e.stack and "xxx...:1\\n" in e.stack, e.stack
        print("cut")

    mpgort.run(main, procs=1)
"""),
        env=PLAIN,
    )
    assert (r.status, r.out) == (0, "cut\n"), r.err


def test_under_go_the_panic_has_the_stack(program):
    r = program(
        dying("""
    async def main():
        go(outer, "segfault")
        await sleep(100)

    try:
        mpgort.run(main, procs=2)
    except mpgort.GoroutinePanic as e:
        assert str(e).endswith("\\n" + e.__cause__.stack.rstrip()), e
        print(e.reason)
        print(e)
"""),
        env=PLAIN,
    )
    assert r.status == 0, r.err
    head, first, *rest = r.out.splitlines()
    assert head.startswith("mpgort._errors.MDied: worker M")
    assert head.endswith("was killed by SIGSEGV under goroutine 2")
    assert first == f"panic: {head}"
    assert rest[:2] == ["", "goroutine 2 [running]:"] and "outer(...)" in rest, r.out


@pytest.mark.parametrize("when", ("before", "in a goroutine", "in the environment"))
def test_a_faulthandler_of_the_users_has_its_say_as_well(program, when):
    r = program(
        dying("""
    async def before(how, path, when):
        if when == "in a goroutine":
            faulthandler.enable(open(path, "w"))
        await inner(how, 0)

    async def main(when):
        for how in ("segfault", "abort"):
            e = await death(spawn(before, how, sys.argv[2], when))
            assert "inner(...)" in e.stack and e.stack.splitlines()[-2] == "before(...)", e.stack
            if when != "in the environment":
                said = open(sys.argv[2]).read()
                assert "Fatal Python error: " in said and " in down\\n" in said, said
        print("both")

    when = sys.argv[1]
    if when == "before":
        faulthandler.enable(open(sys.argv[2], "w"))
    mpgort.run(main, when, procs=1)
"""),
        when,
        str(program.folder / "said"),
        env={"PYTHONFAULTHANDLER": "1" if when == "in the environment" else ""},
    )
    assert (r.status, r.out) == (0, "both\n"), r.err
    assert ("Fatal Python error: Aborted" in r.err) == (when == "in the environment"), r.err


def test_a_signal_that_a_handler_has_survived_leaves_no_words(program):
    """Nor does the death of a child that a goroutine has forked."""
    r = program(
        dying("""
    from mpgort import _core, _segment

    heard = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda sig: None)
    libc = ctypes.CDLL(None)

    async def survive():
        os.kill(os.getpid(), signal.SIGFPE)
        pid = os.fork()
        if pid == 0:
            ctypes.string_at(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def main():
        assert await spawn(survive) == -11
        sigs = _segment.m_table(_core.current())["words_sig"]
        assert not sigs.any(), sigs
        e = await death(spawn(outer, "abort"))
        assert "outer(...)" in e.stack
        print("survived")

    libc.signal(signal.SIGFPE, heard)
    mpgort.run(main, procs=1)
"""),
        env=PLAIN,
    )
    assert (r.status, r.out) == (0, "survived\n"), r.err


def test_in_a_full_heap_the_death_is_told_without_the_stack(program):
    r = program(
        dying("""
    async def full(gate):
        await gate.recv()
        ENDS["segfault"][0]()

    async def main():
        gate = chan(1)
        h = spawn(full, gate)
        while h.status() != "chan receive":
            await sleep(0.001)
        held = chan(100_000)
        for size in (100_000, 10_000, 4000, 2000, 1000, 500):
            try:
                while True:
                    await held.send(bytes(size))
            except mpgort.OutOfSharedMemory:
                pass
        await gate.send(None)
        e = await death(h)
        print(e.signal, e.stack)

    mpgort.run(main, procs=1, heap_bytes=8 << 20)
"""),
        env=PLAIN,
    )
    assert (r.status, r.out) == (0, "11 None\n"), r.err


def test_many_deaths_leave_no_descriptor_and_no_memory(program):
    r = program(
        dying("""
    def held(prog):
        keeper = next(pid for _, kind, pid, _ in prog.slots() if kind == _core.M_KEEPER)
        return (len(os.listdir(f"/proc/{keeper}/fd")), len(os.listdir("/proc/self/fd")),
                prog.stats()["live_blocks"])

    from mpgort import _core

    async def main():
        prog = _core.current()
        for n in (3, 40):
            for _ in range(n):
                e = await death(spawn(outer, "segfault"))
                assert "outer(...)" in e.stack, e
            del e
            if n == 3:
                before = held(prog)
        # A death that is still being tidied up counts a few; each that left one would count 40.
        assert all(now < was + 20 for now, was in zip(held(prog), before)), (before, held(prog))
        print("as before")

    mpgort.run(main, procs=1)
"""),
        env=PLAIN,
    )
    assert (r.status, r.out) == (0, "as before\n"), r.err


def test_the_stack_crosses_with_the_error():
    import pickle

    e = MDied(signal=11, m=2, goid=18, stack="f(...)\n\tx.py:1\n")
    back = pickle.loads(pickle.dumps(e))
    assert (back.stack, back.args, str(back)) == (e.stack, e.args, str(e))
    assert str(e) == (
        "worker M2 was killed by SIGSEGV under goroutine 18\n\n"
        "goroutine 18 [running]:\nf(...)\n\tx.py:1"
    )
