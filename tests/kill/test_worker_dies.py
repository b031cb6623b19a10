"""The death of a worker: the goroutine that ran there and those at home there end with MDied,
everything else is where it was, another worker takes its place.

The storm kills workers at random moments for MPGORT_STORM_S seconds (default 4); a long one by
    MPGORT_STORM_S=300 pytest tests/kill/test_worker_dies.py -k storm"""

from __future__ import annotations

import functools
import os
import signal

import pytest
from conftest import wait_until

STORM_S = float(os.environ.get("MPGORT_STORM_S", "4"))
MIGRATE = ("auto", "always", "never")


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("procs", (1, 2))
def test_however_a_worker_ends_the_handle_says_how_and_the_others_go_on(program, procs):
    r = program(
        """
        import os, signal, sys, time
        import mpgort
        from mpgort import chan, spawn

        async def die(how):
            if how < 0:
                os._exit(-how)
            os.kill(os.getpid(), how)
            time.sleep(100)

        async def echo(ch, back):
            async for n in ch:
                await back.send(n + 1)

        async def main():
            ch, back = chan(), chan()
            echoing = spawn(echo, ch, back)
            n = 0
            for how in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, -3, -255):
                await ch.send(n)
                n = await back.recv()
                h = spawn(die, int(how))
                try:
                    await h
                except mpgort.MDied as e:
                    dead = e
                assert dead.signal == (how if how > 0 else None), dead
                assert dead.exitcode == (-how if how < 0 else None), dead
                assert dead.goid == h.id and isinstance(dead.m, int), dead
                assert h.done() and h.status() == "died" and h.exception().signal == dead.signal
            ch.close()
            await echoing
            return n

        if __name__ == "__main__":
            print(mpgort.run(main, procs=int(sys.argv[1])))
    """,
        str(procs),
    )
    assert (r.status, r.out) == (0, "5\n"), r.err


def test_several_waiters_and_a_thread_learn_of_the_death(program):
    r = program("""
        import os
        import time
        import mpgort
        from mpgort import spawn

        async def die(gate):
            await gate.recv()
            os._exit(7)

        async def wait(h):
            try:
                await h
            except mpgort.MDied as e:
                return e.exitcode

        with mpgort.Runtime(procs=2) as rt:
            gate = rt.chan()
            h = rt.spawn(die, gate)
            waiters = [rt.spawn(wait, h) for _ in range(5)]
            gate.put(None)
            try:
                h.result(timeout=20)
            except mpgort.MDied as e:
                print(e.exitcode, [w.result(timeout=20) for w in waiters])
            stats = rt.stats()
            while rt.stats()["recoveries"] == 0:      # the handle is told before all is done
                time.sleep(0.001)
            print(stats["deaths"], rt.stats()["recoveries"])
    """)
    assert (r.status, r.out) == (0, "7 [7, 7, 7, 7, 7]\n1 1\n"), r.err


def test_under_go_a_death_is_a_panic_with_it_as_its_cause(program):
    r = program("""
        import os, signal
        import mpgort
        from mpgort import go, sleep

        async def die():
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            go(die)
            await sleep(100)

        try:
            mpgort.run(main, procs=2)
        except mpgort.GoroutinePanic as e:
            print(e.goid, type(e.__cause__).__name__, e.__cause__.signal, e.__cause__.goid)
    """)
    assert (r.status, r.out) == (0, "2 MDied 9 2\n"), r.err


def test_sys_exit_in_a_goroutine_is_an_exception_like_any_other(program):
    r = program("""
        import sys
        import mpgort
        from mpgort import spawn

        async def leave():
            sys.exit(3)

        async def main():
            try:
                await spawn(leave)
            except SystemExit as e:
                return e.code, mpgort._core.current().stats()["deaths"]

        print(mpgort.run(main, procs=1))
    """)
    assert (r.status, r.out) == (0, "(3, 0)\n"), r.err


@pytest.mark.usefixtures("auto")
def test_what_is_at_home_on_a_dead_worker_ends_and_what_is_light_does_not(program):
    r = program("""
        import os, sys
        import mpgort
        from mpgort import chan, sleep, spawn

        async def pinned(ready, gate):
            with open(os.devnull) as f:
                await ready.send(os.getpid())
                await gate.recv()
                return f.name

        def blocked(ready, gate):
            ready.put(os.getpid())
            return gate.get()

        async def light(ready, gate):
            await ready.send(os.getpid())
            return await gate.recv()

        async def asleep(ready):
            await ready.send(os.getpid())
            await sleep(1)
            return "awake"

        async def kill(pid):
            os.kill(pid, 9)
            await sleep(0)

        async def main():
            ready, gate, box = chan(), chan(), chan(3)
            for n in range(3):
                await box.send(n)
            handles = [spawn(pinned, ready, gate), spawn(blocked, ready, gate)]
            pids = {await ready.recv() for _ in handles}
            lights = [spawn(light, ready, gate) for _ in range(4)]
            for _ in lights:
                await ready.recv()
            while {h.status() for h in handles + lights} != {"chan receive"}:
                await sleep(0.001)
            lights.append(spawn(asleep, ready))  # the last: it sleeps a second
            await ready.recv()
            while lights[-1].status() in ("runnable", "running"):
                await sleep(0.001)
            for pid in pids:
                os.kill(pid, 9)
            ends = []
            for h in handles:
                try:
                    ends.append(await h)
                except mpgort.MDied as e:
                    ends.append(e.signal)
            for n in range(4):
                await gate.send(n)
            rest = sorted([str(await h) for h in lights])
            return ends, rest, [await box.recv() for _ in range(3)]

        print(mpgort.run(main, procs=2))
    """)
    assert r.status == 0, r.err
    assert r.out == "([9, 9], ['0', '1', '2', '3', 'awake'], [0, 1, 2])\n"


def two_but(p, dead):
    pids = [w.pid for w in p.workers()]
    return len(pids) == 2 and dead not in pids


def test_an_idle_worker_that_is_killed_is_replaced_and_nobody_notices(program):
    fifo = program.folder / "fifo"
    os.mkfifo(fifo)
    source = """
        import sys
        import mpgort
        from mpgort import chan, spawn

        async def double(n):
            return 2 * n

        with mpgort.Runtime(procs=2) as rt:
            for line in range(5):
                assert rt.spawn(double, 4).result(timeout=20) == 8
                print("idle", rt.stats()["deaths"], flush=True)
                line = open(sys.argv[1]).read()
            print("done", rt.stats()["replacements"])
    """
    p = program.start(source, str(fifo))
    for deaths in range(5):
        assert p.line() == f"idle {deaths}"
        wait_until("two workers", lambda: len(p.workers()) == 2)
        victim = p.workers()[deaths % 2].pid
        os.kill(victim, signal.SIGKILL)
        wait_until("another", functools.partial(two_but, p, victim))
        with open(fifo, "w"):
            pass
    r = p.wait(20)
    assert r.status == 0 and r.out.endswith("done 5\n"), (r.out, r.err)


@pytest.mark.usefixtures("auto")
def test_all_workers_killed_at_once_are_replaced(program):
    source = """
        import os, sys
        import mpgort
        from mpgort import _core, chan, spawn

        async def die(ready, sign):
            await ready.send(None)
            while not os.path.exists(sign):
                pass
            os.kill(os.getpid(), 9)

        async def parked(gate):
            return await gate.recv()

        async def main(sign):
            gate, ready = chan(), chan()
            waiting = [spawn(parked, gate) for _ in range(20)]
            while {h.status() for h in waiting} != {"chan receive"}:
                await mpgort.sleep(0.001)
            busy = [spawn(die, ready, sign) for _ in range(4)]
            for _ in busy:
                await ready.recv()
            open(sign, "w").close()
            for h in busy:
                try:
                    await h
                except mpgort.MDied:
                    pass
            for n in range(20):
                await gate.send(n)
            return sum([await h for h in waiting]), _core.current().stats()["deaths"]

        print(mpgort.run(main, sys.argv[1], procs=4))
    """
    r = program(source, str(program.folder / "sign"))
    assert (r.status, r.out) == (0, "(190, 4)\n"), r.err


def test_the_deadlock_detector_is_right_after_a_death(program):
    r = program("""
        import os
        import mpgort
        from mpgort import chan, sleep, spawn

        async def die():
            os._exit(1)

        async def wait(h, ch):
            try:
                await h
            except mpgort.MDied:
                await sleep(0.05)          # no deadlock: a timer is pending
                await ch.send("told")

        async def main():
            ch = chan()
            spawn(wait, spawn(die), ch)
            assert await ch.recv() == "told"
            await ch.recv()                # nobody is left to send

        try:
            mpgort.run(main, procs=2)
        except mpgort.Deadlock as e:
            print(str(e).splitlines()[0])
    """)
    assert (r.status, r.out) == (0, "all goroutines are asleep - deadlock!\n"), r.err


@pytest.mark.parametrize("code", ("os._exit(3)", "os.kill(os.getpid(), 11)"))
def test_workers_that_die_in_their_initializer_are_not_started_for_ever(program, code):
    r = program(f"""
        import os
        import mpgort

        def init():
            {code}

        async def main():
            await mpgort.spawn(mpgort.sleep, 1)

        mpgort.run(main, procs=1, initializer=init)
    """)
    assert r.status == 1
    how = "exited at their start with status 3"
    if "exit" not in code:
        how = "killed at their start by SIGSEGV"
    assert "3 workers in a row" in r.err and how in r.err, r.err


# main never dies; everything else may. It feeds, collects, and starts again what has died.
STORM = """
    import os, sys, time
    import mpgort
    from mpgort import _core, chan, default, select, sleep, spawn
    from rest import breaches

    STAGES, EACH = 3, 4

    async def stage(inbox, outbox):
        async for n, data in inbox:
            if n % 7 == 0:
                await sleep(0.001)
            await outbox.send((n, data + [n]))

    async def main(seconds):
        pipes = [chan(0 if i % 2 else 5) for i in range(STAGES + 1)]
        crew = [[spawn(stage, pipes[s], pipes[s + 1]) for _ in range(EACH)] for s in range(STAGES)]
        seen, dead, sent = set(), 0, 0
        end = time.monotonic() + seconds
        first, last = pipes[0], pipes[-1]

        def take(v):
            n, data = v
            assert n not in seen and data == [n] * (STAGES + 1), v
            seen.add(n)

        async def again(s):
            nonlocal dead
            for i, h in enumerate(crew[s]):
                if h.done():
                    exc = h.exception()
                    if exc is not None:
                        assert isinstance(exc, mpgort.MDied), exc
                        dead += 1
                        crew[s][i] = spawn(stage, pipes[s], pipes[s + 1])

        print("up", flush=True)
        while time.monotonic() < end:
            i, v = await select((first.send, (sent, [sent])), last.recv, default)
            if i == 0:
                sent += 1
            elif i == 1:
                take(v)
            else:
                await sleep(0.0005)
            if sent % 16 == 0 or i == 2:
                for s in range(STAGES):
                    await again(s)
        print("draining", flush=True)
        for s in range(STAGES):
            pipes[s].close()
            while not all(h.done() and h.exception() is None for h in crew[s]):
                await again(s)
                i, v = await select(last.recv, default)
                if i == 0:
                    take(v)
                else:
                    await sleep(0.0005)
        while len(last):
            take(await last.recv())
        lost = sent - len(seen)
        prog = _core.current()
        stats = prog.stats()
        assert 0 <= lost <= dead, (sent, len(seen), dead)
        return sent, lost, dead, stats["deaths"], breaches(prog)

    if __name__ == "__main__":
        seconds, procs = float(sys.argv[1]), int(sys.argv[2])
        sent, lost, dead, deaths, said = mpgort.run(main, seconds, procs=procs)
        print("sent", sent, "lost", lost, "dead", dead, "deaths", deaths)
        print("\\n".join(said) or "whole")
"""


@pytest.mark.timeout(120 + 3 * STORM_S)
@pytest.mark.parametrize("migrate", MIGRATE)
def test_in_a_storm_of_kills_every_message_arrives_once_or_died_with_its_goroutine(
    program, migrate
):
    r = program.storm(STORM, STORM_S, "4", migrate=migrate)
    assert r.out.endswith("whole\n"), r.out
    words = r.out.splitlines()[-2].split()
    assert int(words[1]) > 0 and int(words[7]) > 0, r.out
