"""A child that the user's code forks, of main or of a worker, is no part of the program.

The fixture `program` asserts after each test that no process and no shared memory is left."""

from __future__ import annotations

import pytest


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
