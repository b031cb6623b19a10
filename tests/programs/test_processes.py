"""The life of a program's processes: started by every method, ended from every way out.

The fixture `program` asserts after each test that no process and no shared memory is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import wait_until

from mpgort import _monitor

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


def test_mains_exception_comes_out_of_run(program):
    r = program("""
        import mpgort

        async def main():
            raise LookupError("mine")

        try:
            mpgort.run(main, procs=2)
        except LookupError as e:
            print(e)
    """)
    assert (r.status, r.out) == (0, "mine\n"), r.err


def test_sys_exit_in_main_exits_with_that_status(program):
    r = program("""
        import sys
        import mpgort

        async def main():
            sys.exit(7)

        mpgort.run(main, procs=2)
    """)
    assert r.status == 7, r.err


def test_os_exit_in_main_takes_everything_along(program):
    r = program("""
        import os
        import mpgort
        from mpgort import sleep, spawn

        async def nap():
            await sleep(100)

        async def main():
            spawn(nap)
            os._exit(3)

        mpgort.run(main, procs=2)
    """)
    assert r.status == 3, r.err


def test_a_goroutine_that_never_parks_does_not_outlive_main(program):
    r = program("""
        import time
        import mpgort
        from mpgort import chan, go

        async def hog(ch):
            await ch.send(None)
            while True:
                pass

        async def main():
            ch = chan()
            go(hog, ch)
            await ch.recv()

        t = time.monotonic()
        mpgort.run(main, procs=2)
        print(time.monotonic() - t)
    """)
    assert r.status == 0, r.err
    assert float(r.out) < 5


INTERRUPTED = """
    import mpgort
    from mpgort import sleep, spawn

    async def nap():
        await sleep(100)

    async def main():
        spawn(nap)
        try:
            print("up")  # the interrupt may come at once, and must find the try
            await sleep(100)
        finally:
            print("main's finally")

    try:
        mpgort.run(main, procs=2)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("to", ("group", "M0"))
def test_ctrl_c_ends_the_program_as_keyboard_interrupt(program, to):
    p = program.start(INTERRUPTED)
    assert p.line() == "up"
    if to == "group":
        os.killpg(p.pid, signal.SIGINT)
    else:
        os.kill(p.pid, signal.SIGINT)
    r = p.wait(10)
    assert (r.status, r.out) == (0, "up\nmain's finally\ninterrupted\n"), r.err
    assert "Traceback" not in r.err


@pytest.mark.parametrize("how", ("go", "spawn"))
def test_without_workers_ctrl_c_while_a_goroutine_computes_is_keyboard_interrupt(program, how):
    p = program.start(
        """
        import sys
        import mpgort

        def computes():
            print("up", flush=True)
            while True:
                pass

        async def main():
            getattr(mpgort, sys.argv[1])(computes)
            await mpgort.sleep(100)

        try:
            mpgort.run(main, procs=0)
        except KeyboardInterrupt:
            print("interrupted")
        """,
        how,
    )
    assert p.line() == "up"
    os.kill(p.pid, signal.SIGINT)
    r = p.wait(10)
    assert (r.status, r.out) == (0, "up\ninterrupted\n"), r.err


def test_a_command_that_a_goroutine_started_is_interrupted_by_ctrl_c_too(program):
    p = program.start("""
        import subprocess
        import mpgort
        from mpgort import spawn

        async def command():
            subprocess.run(["sh", "-c", "echo up; exec sleep 100"])

        async def main():
            await spawn(command)

        mpgort.run(main, procs=1)
    """)
    assert p.line() == "up"
    os.killpg(p.pid, signal.SIGINT)
    assert p.wait(10).status == -signal.SIGINT


def test_sigquit_prints_all_goroutines_and_exits_with_status_2(program):
    p = program.start(INTERRUPTED)
    assert p.line() == "up"
    seen = _monitor.choose(str(p.pid))
    wait_until("both sleep", lambda: _monitor.view(seen.prog, p.pid).waiting["sleep"] == 2)
    seen.prog.detach()
    os.kill(p.pid, signal.SIGQUIT)
    r = p.wait(10)
    assert r.status == 2
    assert "goroutine 1 [sleep" in r.err and "prog0.py" in r.err


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


def test_a_forked_child_of_main_is_no_m_and_leaves_the_program_alone(program):
    r = program("""
        import os
        import mpgort
        from mpgort import chan, spawn

        async def echo(ch):
            await ch.send(await ch.recv())

        async def main():
            ch = chan()
            h = spawn(echo, ch)
            pid = os.fork()
            if pid == 0:
                try:
                    len(ch)
                except mpgort.Killed:
                    os._exit(5)
                os._exit(6)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            await ch.send(1)
            return await ch.recv()

        print(mpgort.run(main, procs=2))
    """)
    assert (r.status, r.out) == (0, "5\n1\n"), r.err


@pytest.mark.parametrize("where", ("ended", "running", "worker"))
def test_what_becomes_garbage_in_a_forked_child_is_not_given_back_for_its_parent(program, where):
    """Of a runtime that has ended, one that runs, and in a child of a worker."""
    r = program(
        """
        import gc
        import os
        import sys
        import mpgort

        class Holder:
            pass

        def garbage_in_a_child(ch):
            holder = Holder()  # in a cycle: it goes when the collector runs, there and here
            holder.me, holder.ch = holder, ch
            del holder, ch
            pid = os.fork()
            if pid == 0:
                gc.collect()
                os._exit(5)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            gc.collect()
            return status

        async def main():
            return await mpgort.spawn(lambda: garbage_in_a_child(mpgort.chan()))

        gc.disable()
        if sys.argv[1] == "worker":
            print(mpgort.run(main, procs=1))
        else:
            rt = mpgort.Runtime(procs=1)
            chans = [rt.chan()]
            if sys.argv[1] == "ended":
                rt.shutdown()
            print(garbage_in_a_child(chans.pop()))
            rt.shutdown()
        """,
        where,
    )
    assert (r.status, r.out, r.err) == (0, "5\n", "")


FORKS = """
    import os, sys
    import numpy as np
    import mpgort
    from mpgort import chan, gosched, spawn

    def mapped():
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        names = [os.readlink(link) for link in links if os.path.islink(link)]
        return any("/dev/shm/mpgort-" in s for s in [open("/proc/self/maps").read(), *names])

    def status_of(child):
        pid = os.fork()
        if pid == 0:
            os._exit(child())
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def here(array):
        assert mapped()
        if array is None:
            return status_of(lambda: int(mapped()))
        return status_of(lambda: 3 if array.sum() == len(array) else 4)
"""


@pytest.mark.parametrize("where", ("main", "worker", "thread"))
def test_a_forked_child_does_not_keep_the_segment_but_for_an_array_it_has(program, where):
    r = program(
        FORKS
        + """
    async def both(ch):
        return here(None), here(await ch.recv())

    async def main():
        ch = chan(1)
        await ch.send(np.ones(100_000))
        return await (both(ch) if sys.argv[1] == "main" else spawn(both, ch))

    if sys.argv[1] == "thread":
        with mpgort.Runtime(procs=1) as rt:
            ch = rt.chan(1)
            ch.put(np.ones(100_000))
            print((here(None), here(ch.get())))
    else:
        print(mpgort.run(main, procs=1))
""",
        where,
    )
    assert (r.status, r.out) == (0, "(0, 3)\n"), r.err


@pytest.mark.parametrize("where", ("main", "worker"))
def test_a_forked_child_that_comes_back_to_the_scheduler_ends_there(program, where):
    r = program(
        FORKS
        + """
    async def parent(how):
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if how == "await":
            await gosched()
        elif how == "exit":
            sys.exit(3)
        elif how == "raise":
            raise ValueError("in the child")

    async def main():
        hows = ("return", "await", "exit", "raise")
        if sys.argv[1] == "main":
            return await parent(sys.argv[2])
        return [await spawn(parent, how) for how in hows]

    print(mpgort.run(main, procs=1))
""",
        where,
        "return",
    )
    assert (r.status, r.out) == (0, "1\n" if where == "main" else "[1, 1, 3, 1]\n"), r.err
    assert r.err.count("end it with os._exit()") == (1 if where == "main" else 3), r.err
    assert where == "main" or "ValueError: in the child" in r.err
