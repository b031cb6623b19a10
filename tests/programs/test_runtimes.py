"""A Runtime's life: threads use it, its block drains, and it ends from every way out."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("procs", ("0", "2"))
def test_a_runtime_runs_for_threads_and_its_block_drains(program, procs):
    r = program(
        """
        import sys
        import mpgort
        from mpgort import sleep

        async def late(n):
            await sleep(0.05)
            return n * n

        with mpgort.Runtime(procs=int(sys.argv[1])) as rt:
            first = rt.spawn(late, 3)
            print(first.result(timeout=10))
            last = rt.spawn(late, 4)
        print(last.result())
        """,
        procs,
    )
    assert (r.status, r.out) == (0, "9\n16\n"), r.err


@pytest.mark.parametrize("procs", ("0", "2"))
def test_shutdown_past_its_timeout_ends_the_rest_and_says_so(program, procs):
    r = program(
        """
        import sys
        import mpgort
        from mpgort import sleep

        async def nap():
            await sleep(100)

        rt = mpgort.Runtime(procs=int(sys.argv[1]))
        h = rt.spawn(nap)
        print(rt.shutdown(timeout=0.1), rt.shutdown())
        try:
            h.result(timeout=5)
        except mpgort.Killed as e:
            print("killed")
        try:
            rt.spawn(nap)
        except mpgort.Killed:
            print("over")
        """,
        procs,
    )
    assert (r.status, r.out) == (0, "False True\nkilled\nover\n"), r.err


@pytest.mark.parametrize("procs", ("0", "2"))
def test_goroutines_that_wait_for_ever_do_not_hold_up_a_drain(program, procs):
    r = program(
        """
        import sys
        import mpgort

        async def wait(ch):
            await ch.recv()

        with mpgort.Runtime(procs=int(sys.argv[1])) as rt:
            rt.go(wait, rt.chan())
        print("drained")
        """,
        procs,
    )
    assert (r.status, r.out) == (0, "drained\n"), r.err


@pytest.mark.parametrize("procs", ("0", "1", "2"))
def test_a_runtimes_block_does_not_end_as_if_nothing_were_after_a_panic(program, procs):
    r = program(
        """
        import sys
        import mpgort

        async def lose():
            raise LookupError("lost")

        async def keep():
            pass

        for i in range(20):  # the panic comes before, while and after the drain looks
            try:
                with mpgort.Runtime(procs=int(sys.argv[1])) as rt:
                    rt.go(lose)
                    if i % 2:
                        rt.spawn(keep)
                print("left normally")
            except mpgort.GoroutinePanic as e:
                assert type(e.__cause__) is LookupError
        """,
        procs,
    )
    assert (r.status, r.out, r.err) == (0, "", "")


@pytest.mark.parametrize("procs", ("0", "2"))
@pytest.mark.parametrize("timeout", ("0", "0.01", "5"))
def test_waits_of_any_length_see_a_panic_and_the_end(program, procs, timeout):
    r = program(
        """
        import sys
        import mpgort

        async def lose():
            raise LookupError("lost")

        def poll(ch):
            while True:
                try:
                    ch.get(timeout=float(sys.argv[2]))
                except TimeoutError:
                    pass

        rt = mpgort.Runtime(procs=int(sys.argv[1]))
        ch = rt.chan()
        rt.go(lose)
        try:
            poll(ch)
        except mpgort.GoroutinePanic as e:
            print(type(e.__cause__).__name__)
        rt.shutdown(drain=False)
        """,
        procs,
        timeout,
        limit=20,
    )
    assert (r.status, r.out, r.err) == (0, "LookupError\n", "")


@pytest.mark.parametrize("procs", ("0", "2"))
def test_a_failed_initializer_reaches_every_thread_that_waits(program, procs):
    r = program(
        """
        import sys
        import mpgort

        def init():
            raise ValueError("not today")

        async def f():
            pass

        rt = mpgort.Runtime(procs=int(sys.argv[1]), initializer=init)
        h = None
        for i in range(3):  # by spawn, or by result
            try:
                h = h or rt.spawn(f)
                h.result()
            except ValueError as e:
                print(e)
        assert rt.stack() and rt.stats()["procs"] == int(sys.argv[1])  # it can be looked at
        try:
            rt.shutdown()
        except ValueError as e:
            print(e)
        """,
        procs,
        limit=20,
    )
    assert (r.status, r.out, r.err) == (0, "not today\n" * 4, "")


@pytest.mark.parametrize("procs", ("0", "2"))
@pytest.mark.parametrize("how", ("kept", "dropped", "raised"))
def test_a_runtime_that_is_never_shut_down_ends_with_its_process(program, procs, how):
    r = program(
        """
        import sys
        import mpgort
        from mpgort import sleep

        async def nap():
            await sleep(100)

        rt = mpgort.Runtime(procs=int(sys.argv[1]))
        h = rt.spawn(nap)
        if sys.argv[2] == "dropped":
            del rt
        if sys.argv[2] == "raised":
            raise SystemExit(0)
        print("end")
        """,
        procs,
        how,
    )
    assert r.status == 0, r.err
    assert r.seconds < 10


def test_runtimes_coexist_with_each_other_and_with_run(program):
    r = program("""
        import os
        import mpgort
        from mpgort import spawn

        async def pid():
            return os.getpid()

        async def main(a, b):
            pids = [await spawn(pid), a.spawn(pid).result(), b.spawn(pid).result()]
            return len(set(pids))

        with mpgort.Runtime(procs=1) as a, mpgort.Runtime(procs=1) as b:
            print(mpgort.run(main, a, b, procs=1))
            print(a.spawn(pid).result() != b.spawn(pid).result())
    """)
    assert (r.status, r.out) == (0, "3\nTrue\n"), r.err


@pytest.mark.parametrize("procs", ("0", "1"))
def test_a_keyboard_interrupt_that_a_goroutine_raises_is_its_own(program, procs):
    """As a future's of concurrent.futures. (What Ctrl-C raises is of the thread that waits.)"""
    r = program(
        """
        import sys
        import mpgort

        def interrupts():
            raise KeyboardInterrupt("mine")

        async def parks():
            await mpgort.gosched()
            interrupts()

        with mpgort.Runtime(int(sys.argv[1])) as rt:
            for f in (interrupts, parks):
                try:
                    rt.spawn(f).result(timeout=10)
                except KeyboardInterrupt as e:
                    print(repr(e))
            print(rt.spawn(abs, -1).result(timeout=10))
        """,
        procs,
    )
    assert (r.status, r.out) == (0, "KeyboardInterrupt('mine')\n" * 2 + "1\n"), r.err
