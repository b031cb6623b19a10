"""Every way out of a program: an exception, an exit status, a signal, a goroutine that never parks.

The fixture `program` asserts after each test that no process and no shared memory is left."""

from __future__ import annotations

import os
import signal

import pytest
from conftest import wait_until

from mpgort import _monitor


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
