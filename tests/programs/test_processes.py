"""The life of a program's processes: started by every method, and what each has of its own.

The fixture `program` asserts after each test that no process and no shared memory is left."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

METHODS = ("fork", "forkserver", "spawn")

PIDS = """
    import os, sys
    import mpgort
    from mpgort import spawn

    async def pid():
        return os.getpid()

    async def main():
        return os.getpid(), await spawn(pid)

    if __name__ == "__main__":
        me, other = mpgort.run(main, procs=2, start_method=sys.argv[1])
        print(me == os.getpid(), other != me)
"""


@pytest.mark.parametrize("method", METHODS)
def test_main_runs_here_and_goroutines_elsewhere(program, method):
    r = program(PIDS, method)
    assert (r.status, r.out) == (0, "True True\n"), r.err


@pytest.mark.parametrize("method", METHODS)
def test_a_main_module_without_a_spec_runs_by_every_method(program, method):
    """As pdb leaves it."""
    r = program(PIDS.replace("    from mpgort", "    del __spec__\n    from mpgort"), method)
    assert (r.status, r.out) == (0, "True True\n"), r.err


NESTED = """
    import sys, time
    import mpgort

    FIGURE = 0

    def init():
        global FIGURE
        FIGURE = 5

    async def parks(ch):
        async def nested():
            await ch.recv()
            return FIGURE
        return await mpgort.spawn(nested)

    if __name__ == "__main__":
        with mpgort.Runtime(2, initializer=init, start_method=sys.argv[1]) as rt:
            ch = rt.chan()
            h = rt.spawn(parks, ch)
            while "[chan receive" not in rt.stack():
                time.sleep(0.001)
            print("pinned" in rt.stack())
            ch.put(1)
            print(h.result(timeout=20))
"""


@pytest.mark.parametrize(
    "method, as_module",
    [("fork", False), ("forkserver", False), ("forkserver", True), ("spawn", False)],
)
def test_functions_of_the_script_move_and_have_one_set_of_globals(
    method, as_module, tmp_path, auto
):
    """The globals of what a worker has imported are those of its main module, not a copy."""
    (tmp_path / "script.py").write_text(textwrap.dedent(NESTED))
    how = ["-m", "script"] if as_module else ["script.py"]
    r = subprocess.run(
        [sys.executable, *how, method], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (r.returncode, r.stdout) == (0, "False\n5\n"), r.stderr


@pytest.mark.parametrize("method, how", [("fork", "-"), ("forkserver", "-c"), ("spawn", "-")])
def test_a_program_without_a_file_runs_by_every_method(method, how):
    program = textwrap.dedent(f"""
        import mpgort, operator
        def init(): print("init", flush=True)
        async def own(): return 3
        async def main():
            print(await mpgort.spawn(operator.add, 1, 1))
            print(await mpgort.spawn(own))
        mpgort.run(main, procs=1, initializer=init, start_method="{method}")
    """)
    argv = [sys.executable, how, *([program] if how == "-c" else [])]
    r = subprocess.run(argv, input=program, capture_output=True, text=True, timeout=60)
    assert (r.returncode, r.stdout) == (0, "init\n2\n3\n"), r.stderr


def test_every_public_module_is_there_with_the_package(program):
    r = program("""
        import mpgort
        print(mpgort.runtime.getg(), mpgort.sync, mpgort.context, mpgort.shared)
    """)
    assert r.status == 0 and r.out.startswith("None "), r.err


def test_procs_0_runs_everything_in_the_calling_process_and_starts_none(program):
    r = program("""
        import os
        import mpgort
        from mpgort import spawn

        async def pid():
            return os.getpid()

        async def main():
            children = open(f"/proc/self/task/{os.getpid()}/children").read()
            return await spawn(pid) == os.getpid(), children

        print(mpgort.run(main, procs=0))
    """)
    assert (r.status, r.out) == (0, "(True, '')\n"), r.err


def test_a_trivial_run_is_short(program, capsys):
    """The figure is printed, not asserted: the machine may be busy."""
    r = program("""
        import time
        import mpgort

        async def main():
            return 1

        best = 9.0
        for _ in range(10):
            t = time.perf_counter()
            mpgort.run(main, procs=2)
            best = min(best, time.perf_counter() - t)
        print(best)
    """)
    assert r.status == 0, r.err
    with capsys.disabled():
        print(f"\nrun of a trivial main, procs=2, start to end: {float(r.out) * 1e3:.1f} ms")


def test_runs_in_a_row_leave_no_descriptor_child_or_mapping(program):
    r = program("""
        import os
        import mpgort
        from mpgort import chan, spawn

        async def echo(ch):
            await ch.send(await ch.recv())

        async def main():
            ch = chan()
            h = spawn(echo, ch)
            await ch.send(1)
            await ch.recv()
            await h

        def state():
            children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
            maps = [line for line in open("/proc/self/maps") if "/dev/shm" in line]
            return len(os.listdir("/proc/self/fd")), len(children), len(maps)

        before = None
        for _ in range(20):
            mpgort.run(main, procs=2)
            if before is None:
                before = state()
        print(before == state(), before[1:])
    """)
    assert (r.status, r.out) == (0, "True (0, 0)\n"), (r.out, r.err)


def test_from_a_process_with_threads_the_keeper_is_not_forked(program):
    r = program("""
        import threading, warnings
        import mpgort
        from mpgort import spawn

        async def square(n):
            return n * n

        async def main():
            return await spawn(square, 7)

        if __name__ == "__main__":
            warnings.simplefilter("error", DeprecationWarning)
            done = threading.Event()
            t = threading.Thread(target=done.wait)
            t.start()
            print(mpgort._options.default_method(), mpgort.run(main, procs=2))
            done.set()
            t.join()
            print(mpgort._options.default_method())
    """)
    assert (r.status, r.out) == (0, "forkserver 49\nfork\n"), r.err


def test_run_works_in_another_thread_than_the_main_one(program):
    r = program("""
        import threading
        import mpgort
        from mpgort import spawn

        async def square(n):
            return n * n

        async def main():
            return await spawn(square, 7)

        def thread():
            print(mpgort.run(main, procs=2))

        if __name__ == "__main__":
            t = threading.Thread(target=thread)
            t.start()
            t.join()
    """)
    assert (r.status, r.out) == (0, "49\n"), r.err


@pytest.mark.parametrize("method", ("forkserver", "spawn"))
def test_a_script_without_the_main_guard_is_told_so(program, method):
    r = program(
        """
        import sys
        import mpgort

        async def main():
            await mpgort.sleep(100)

        mpgort.run(main, procs=1, start_method=sys.argv[1])
        """,
        method,
    )
    assert r.status == 1
    assert "if __name__ == '__main__'" in r.err


def test_a_second_run_in_one_process_is_refused(program):
    r = program("""
        import mpgort

        async def inner():
            pass

        async def main():
            try:
                mpgort.run(inner, procs=1)
            except RuntimeError as e:
                return str(e)

        print(mpgort.run(main, procs=1))
    """)
    assert (r.status, r.out) == (0, r.out) and "inside a goroutine" in r.out, r.err


def test_a_run_in_a_goroutine_on_a_worker_is_refused(program):
    r = program("""
        import mpgort
        from mpgort import spawn

        async def inner():
            pass

        async def nested():
            mpgort.run(inner, procs=1)

        async def main():
            try:
                await spawn(nested)
            except RuntimeError as e:
                return str(e)

        print(mpgort.run(main, procs=1))
    """)
    assert r.status == 0 and "inside a goroutine" in r.out, r.err


INITIALIZER = """
    import sys
    import mpgort
    from mpgort import spawn, sleep

    value = None

    def init(v):
        global value
        if v is None:
            raise LookupError("no value for a worker")
        value = v

    async def get():
        return value

    async def main():
        return await spawn(get)

    if __name__ == "__main__":
        v = sys.argv[2] if len(sys.argv) > 2 else None
        try:
            how = {"initializer": init, "initargs": (v,), "start_method": sys.argv[1]}
            print(mpgort.run(main, procs=2, **how))
        except LookupError as e:
            print(repr(e), e.__notes__[0].splitlines()[0])
"""


@pytest.mark.parametrize("method", METHODS)
def test_the_initializer_runs_in_each_worker(program, method):
    r = program(INITIALIZER, method, "set")
    assert (r.status, r.out) == (0, "set\n"), r.err


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_that_fails_ends_the_program_with_its_error(program, method):
    r = program(INITIALIZER, method)
    expected = "LookupError('no value for a worker') in the initializer of a worker:\n"
    assert (r.status, r.out) == (0, expected), r.err


def test_a_workers_output_comes_line_by_line_and_once(program):
    """What M0 had in its buffer at the fork is written by M0 alone."""
    r = program(
        """
        import sys
        import mpgort
        from mpgort import spawn

        async def say():
            print("worker")
            assert sys.stdin.read() == ""

        async def main():
            await spawn(say)
            sys.stdout.write("main\\n")

        sys.stdout.write("before ")
        mpgort.run(main, procs=2)
        """,
        env={"PYTHONUNBUFFERED": ""},
    )
    assert (r.status, r.out) == (0, "before worker\nmain\n"), r.err


def test_workers_do_not_share_their_random_numbers(program):
    r = program("""
        import os, random
        import mpgort
        from mpgort import chan, go

        random.seed(1)

        async def draw(ch, release):
            n = (os.getpid(), random.random())
            await ch.send(n)
            await release.recv()

        async def main():
            ch, release = chan(), chan()
            seen = {}
            for _ in range(400):
                go(draw, ch, release)
                pid, n = await ch.recv()
                seen.setdefault(pid, n)
                if len(seen) == 2:
                    break
            return len(set(seen.values())) == len(seen)

        print(mpgort.run(main, procs=2))
    """)
    assert (r.status, r.out) == (0, "True\n"), r.err
