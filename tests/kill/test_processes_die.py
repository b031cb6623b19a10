"""INV nothing-left: whatever is killed, in whatever order and at whatever moment, no process and no
shared memory is left (the fixture `program` looks), and who can go on does.

Each test is repeated MPGORT_KILLS times (default 10) with the kill at random moments; 100 times
with MPGORT_STORM=1."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import Programs, Running, wait_until

from mpgort import _monitor, _segment

STORM = os.environ.get("MPGORT_STORM", "0") not in ("", "0")
KILLS = int(os.environ.get("MPGORT_KILLS", "100" if STORM else "10"))
STOP_S = 2.0

# Says when it is up, works for sys.argv[2] seconds, or until there is a file of that name, says how
# it went.
BUSY = """
    import os, sys, time
    import mpgort
    from mpgort import chan, go, sleep, spawn

    async def echo(jobs, results):
        async for n in jobs:
            await results.send(n + 1)

    async def main(until):
        print("up")
        jobs, results = chan(), chan()
        for _ in range(4):
            go(echo, jobs, results)
        end = time.monotonic() + (100 if os.path.isabs(until) else float(until))
        n = 0
        while time.monotonic() < end and not (n and n % 100 == 0 and os.path.exists(until)):
            await jobs.send(n)
            n = await results.recv()
            if n % 100 == 0:
                await sleep(0.001)
        return n > 0

    if __name__ == "__main__":
        print(mpgort.run(main, sys.argv[2], procs=2, start_method=sys.argv[1]))
"""


def at_random(p, i):
    """Half of the kills hit a program that is up, half one that is somewhere in its start."""
    if i % 2:
        assert p.line() == "up"
    time.sleep(random.random() * 0.15)


def two_workers(p):
    wait_until("two workers", lambda: len(p.workers()) == 2)


def another_keeper(p, than):
    wait_until("another keeper", lambda: (k := p.keeper()) is not None and k.pid != than)


@pytest.mark.timeout(60 + 3 * KILLS)
@pytest.mark.parametrize("method", ("fork", "forkserver", "spawn"))
def test_when_m0_is_killed_everything_is_gone_within_a_second(program, method):
    program.killed = True
    for i in range(KILLS):
        p = program.start(BUSY, method, "100")
        at_random(p, i)
        os.kill(p.pid, signal.SIGKILL)
        assert p.wait(10).status == -signal.SIGKILL
        program.nothing_left(p)


@pytest.mark.timeout(60 + 3 * KILLS)
def test_ctrl_c_at_any_moment_leaves_nothing(program):
    """Once it is imported. Before that it is Python's: site and importlib print it and go on."""
    program.killed = True
    imported = '    print("imported")\n\n    if __name__'
    for i in range(KILLS):
        p = program.start(BUSY.replace("    if __name__", imported), "fork", "100")
        assert p.line() == "imported"
        at_random(p, i)
        os.killpg(p.pid, signal.SIGINT)
        r = p.wait(10)
        assert r.status == -signal.SIGINT, r.err
        program.nothing_left(p)


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.parametrize("method", ("fork", "forkserver"))
def test_a_killed_keeper_is_replaced_and_nobody_notices(program, method):
    for i in range(KILLS):
        stop = program.folder / f"stop{i}"
        p = program.start(BUSY, method, str(stop))
        assert p.line() == "up"
        two_workers(p)
        workers = {w.pid for w in p.workers()}
        keeper = p.keeper()
        time.sleep(random.random() * 0.05)
        os.kill(keeper.pid, signal.SIGKILL)
        another_keeper(p, keeper.pid)
        assert {w.pid for w in p.workers()} == workers
        stop.touch()
        r = p.wait(20)
        assert (r.status, r.out) == (0, "up\nTrue\n"), r.err
        program.nothing_left(p)


@pytest.mark.timeout(60 + 5 * KILLS)
def test_keepers_that_are_killed_again_and_again_do_not_end_the_program(program):
    for i in range(max(1, KILLS // 5)):
        stop = program.folder / f"stop{i}"
        p = program.start(BUSY, "fork", str(stop))
        assert p.line() == "up"
        for _ in range(4):
            wait_until("a keeper", p.keeper)
            os.kill(p.keeper().pid, signal.SIGKILL)
            time.sleep(random.random() * 0.2)
        stop.touch()
        r = p.wait(20)
        assert (r.status, r.out) == (0, "up\nTrue\n"), r.err
        program.nothing_left(p)


@pytest.mark.parametrize("how", ("run", "runtime"))
def test_keepers_that_die_of_a_damaged_segment_end_the_program_and_say_so(program, how):
    r = program(
        """
        import ctypes
        import os
        import signal
        import sys
        import mpgort
        from mpgort import _core, _segment

        def damage():
            # A worker whose undo log claims more notes than it has room for, and its death.
            prog = _core.current()
            slot = next(slot for slot, _, pid, _ in prog.slots() if pid == os.getpid())
            undo_n = _segment.m_table(prog)["undo_n"][slot:].ctypes.data
            ctypes.c_uint32.from_address(undo_n).value = 1 << 20
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            await mpgort.spawn(damage)

        if sys.argv[1] == "run":
            mpgort.run(main, procs=1)
        rt = mpgort.Runtime(procs=1)
        rt.spawn(damage).result()
        """,
        how,
        limit=20,
    )
    assert r.status == 1
    assert "RuntimeError: 3 keepers, one after the other, were killed by SIGABRT" in r.err
    assert r.err.count("rollback: M") == 3


@pytest.mark.timeout(60 + 5 * KILLS)
def test_workers_whose_keeper_and_m0_are_killed_together_end_by_themselves(program):
    """After the keeper's death init is their parent: no signal tells them of M0's death."""
    program.killed = True
    for i in range(KILLS):
        p = program.start(BUSY, "fork", "100")
        assert p.line() == "up"
        two_workers(p)
        os.kill(p.keeper().pid, signal.SIGKILL)
        time.sleep(random.random() * 0.02 if i % 2 else 0)
        os.kill(p.pid, signal.SIGKILL)
        assert p.wait(10).status == -signal.SIGKILL
        program.nothing_left(p)


@pytest.mark.timeout(60 + 5 * KILLS)
def test_all_killed_one_by_one_in_random_order_leaves_nothing(program):
    program.killed = True
    for i in range(KILLS):
        p = program.start(BUSY, "fork", "100")
        at_random(p, i)
        victims = p.processes()
        random.shuffle(victims)
        for v in victims:
            try:
                os.kill(v.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            time.sleep(random.random() * 0.02)
        os.kill(p.pid, signal.SIGKILL)
        p.wait(10)
        program.nothing_left(p)


def is_gone(p, pid):
    return pid not in [w.pid for w in p.workers()]


@pytest.mark.timeout(60 + 5 * KILLS)
def test_a_worker_that_is_killed_is_replaced_or_its_goroutine_named(program):
    """The echoes run under go: one that ran where the signal struck is a panic, with the death as
    its cause; else nobody notices."""
    for i in range(KILLS):
        stop = program.folder / f"stop{i}"
        p = program.start(BUSY, "fork", str(stop))
        if i % 2:
            assert p.line() == "up"
        two_workers(p)
        time.sleep(random.random() * 0.05)
        killed = random.choice(p.workers()).pid
        os.kill(killed, signal.SIGSEGV)
        wait_until("the worker is gone", partial(is_gone, p, killed))
        stop.touch()
        r = p.wait(20)
        if r.status == 0:
            assert r.out == "up\nTrue\n"
        else:
            assert r.status == 1
            assert "GoroutinePanic: panic: mpgort._errors.MDied: worker M" in r.err, r.err
            assert "SIGSEGV under goroutine" in r.err, r.err
        program.nothing_left(p)


@pytest.mark.parametrize("method", ("fork", "forkserver"))
def test_of_a_process_that_is_stopped_for_two_seconds_nothing_but_time_is_lost(program, method):
    """Only the dead are reaped: the same processes go on afterwards."""
    stopped = []
    for who in ("M0", "keeper", "worker", "all workers", "all"):
        stop = program.folder / f"stop {who}"
        p = program.start(BUSY, method, str(stop))
        assert p.line() == "up"
        two_workers(p)
        workers = [w.pid for w in p.workers()]
        keeper = p.keeper().pid
        pids = {
            "M0": [p.pid],
            "keeper": [keeper],
            "worker": workers[:1],
            "all workers": workers,
            "all": [p.pid, keeper, *workers],
        }[who]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stopped.append((p, who, stop, pids, {p.pid, keeper, *workers}))
    time.sleep(STOP_S)
    for p, who, stop, pids, everybody in stopped:
        assert {q.pid for q in p.processes() if q.state != "Z"} == everybody, who
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        stop.touch()
    for p, who, _, _, _ in stopped:
        r = p.wait(20)
        assert (r.status, r.out, r.err) == (0, "up\nTrue\n", ""), who


def test_a_stopped_keeper_does_not_hold_up_the_end(program):
    stop = program.folder / "stop"
    p = program.start(BUSY, "fork", str(stop))
    assert p.line() == "up"
    two_workers(p)
    os.kill(p.keeper().pid, signal.SIGSTOP)
    stop.touch()
    r = p.wait(20)
    assert (r.status, r.out) == (0, "up\nTrue\n"), r.err


def stop_without_locks(p: Running, pid: int) -> None:
    """One that is stopped while it has a lock is waited for by who wants it: INV only-the-dead."""
    seen = _monitor.choose(str(p.pid))
    (slot,) = (slot for slot, _, owner, _ in seen.prog.slots() if owner == pid)
    while True:
        os.kill(pid, signal.SIGSTOP)
        wait_until("stopped", lambda: {q.pid: q.state for q in p.processes()}[pid] == "T")
        m = _segment.m_table(seen.prog)[slot]
        if not (m["held_n"] or m["lockset"] or m["ref_obj"]):
            break
        del m
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)
    del m
    seen.prog.detach()


def test_a_stopped_worker_does_not_hold_up_the_end(program):
    p = program.start(BUSY, "fork", "100")
    assert p.line() == "up"
    two_workers(p)
    stop_without_locks(p, p.workers()[0].pid)
    os.kill(p.pid, signal.SIGINT)
    r = p.wait(20)
    assert r.status == -signal.SIGINT, r.err


def pidfds(pid: int) -> int:
    fds = Path(f"/proc/{pid}/fd")
    try:
        return sum(os.readlink(fd) == "anon_inode:[pidfd]" for fd in fds.iterdir())
    except OSError:
        return 0


def another_adopts(p: Running, begun: Path, adopted: Path) -> None:
    """Once a worker has begun its keeper is killed. It is told when another has taken it over."""
    assert p.line() == "up"
    wait_until("a worker", begun.exists)
    keeper = p.keeper()
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    wait_until("adopted", lambda: (k := p.keeper()) and k.pid != keeper.pid and pidfds(k.pid) >= 2)
    adopted.touch()


def test_workers_killed_at_their_start_under_a_keeper_that_has_adopted_them_are_replaced(
    program, tmp_path
):
    """What they died of is not told to who is not their parent: three such deaths in a row were
    taken for a program whose workers cannot start."""
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    p = program.start(
        """
        import os, sys, time
        import mpgort

        def starts(begun, go_on):
            with open(begun, "a") as f:
                f.write("x")
            while not os.path.exists(go_on):
                time.sleep(0.005)

        async def main():
            print("up")
            print(await mpgort.spawn(pow, 2, 10))

        mpgort.run(main, procs=4, initializer=starts, initargs=sys.argv[1:])
        """,
        str(begun),
        str(go_on),
    )
    assert p.line() == "up"
    wait_until("4 workers", lambda: begun.exists() and len(begun.read_text()) == 4)
    workers, keeper = p.workers(), p.keeper()
    assert keeper is not None and len(workers) == 4
    os.kill(keeper.pid, signal.SIGKILL)
    wait_until("adopted", lambda: (k := p.keeper()) and k.pid != keeper.pid and pidfds(k.pid) >= 5)
    for w in workers:
        os.kill(w.pid, signal.SIGKILL)
    wait_until("4 more workers", lambda: len(begun.read_text()) == 8 or p.popen.poll() is not None)
    go_on.touch()
    r = p.wait(20)
    assert (r.status, r.out) == (0, "up\n1024\n"), r.err


def test_a_worker_that_leaves_since_its_keeper_died_at_its_start_is_replaced_by_who_adopted_it(
    program, tmp_path
):
    begun, adopted = tmp_path / "begun", tmp_path / "adopted"
    p = program.start(
        """
        import os, sys, time, types
        import mpgort
        from mpgort import _m

        begun, adopted = sys.argv[1:]
        getppid = os.getppid

        def late():                          # asked by a worker that has just taken its slot
            if not os.path.exists(begun):
                open(begun, "w").close()
                while not os.path.exists(adopted):
                    time.sleep(0.002)
            return getppid()

        async def main():
            print("up")
            print(await mpgort.spawn(pow, 2, 10))

        _m.os = types.SimpleNamespace(**vars(os))
        _m.os.getppid = late
        mpgort.run(main, procs=1, start_method="fork")
        """,
        str(begun),
        str(adopted),
    )
    another_adopts(p, begun, adopted)
    r = p.wait(20)
    assert (r.status, r.out) == (0, "up\n1024\n"), r.err


def test_a_worker_that_dies_at_its_start_unseen_by_any_keeper_is_no_news_for_ever(
    program, tmp_path
):
    """It took its slot when its keeper had died and another had looked for who lives: nobody
    watched it. A slot of the dead kept a deadlock from being found."""
    begun, adopted, dead = (tmp_path / name for name in ("begun", "adopted", "dead"))
    p = program.start(
        """
        import os, random, signal, sys, time, types
        import mpgort
        from mpgort import _m, chan, sleep

        begun, adopted, dead = sys.argv[1:]
        mine = []

        def late():                          # called by a worker that has no slot yet
            if not os.path.exists(begun):
                mine.append(os.getpid())
                open(begun, "w").close()
                while not os.path.exists(adopted):
                    time.sleep(0.002)

        def dies():                          # asked by one that has just taken it
            if mine:
                open(dead, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return getppid()

        async def main():
            print("up")
            print(await mpgort.spawn(pow, 2, 10))
            while not os.path.exists(dead):
                await sleep(0.005)
            await chan().recv()

        getppid, random.seed = os.getppid, late
        _m.os = types.SimpleNamespace(**vars(os))
        _m.os.getppid = dies
        try:
            mpgort.run(main, procs=1, start_method="fork")
        except mpgort.Deadlock:
            print("deadlock")
        """,
        str(begun),
        str(adopted),
        str(dead),
    )
    another_adopts(p, begun, adopted)
    r = p.wait(20)
    assert (r.status, r.out) == (0, "up\n1024\ndeadlock\n"), r.err


@pytest.mark.parametrize("who", ("spare", "keeper"))
def test_a_spare_worker_that_was_asked_for_comes_whoever_dies(program, tmp_path, who):
    """The one worker waits in a plain function: what it waits for needs another one."""
    r = program(
        """
        import os, signal, sys
        import mpgort
        from mpgort import _keeper, chan, go, spawn

        who, asked = sys.argv[1:]

        def gets(ch):
            return ch.get()

        async def sends(ch):
            await ch.send(7)

        def dies():
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            ch = chan()
            h = spawn(gets, ch)                  # first come, first served: it waits when
            if who == "spare":                   # the next one runs
                try:
                    await spawn(dies)
                except mpgort.MDied:
                    print("died")
            go(sends, ch)
            print(await h)

        start_m = _keeper.Keeper.start_m

        def start(keeper):
            if who == "keeper" and keeper.crew and not os.path.exists(asked):
                open(asked, "w").close()
                dies()
            start_m(keeper)

        _keeper.Keeper.start_m = start
        mpgort.run(main, procs=1, start_method="fork")
        """,
        who,
        str(tmp_path / "asked"),
        limit=20,
    )
    assert (r.status, r.out.splitlines()[-1:]) == (0, ["7"]), r.err
    assert who == "spare" or (tmp_path / "asked").exists()


def test_workers_that_die_at_their_start_are_not_started_for_ever(program):
    r = program("""
        import os, signal
        import mpgort
        from mpgort import _m

        def live(prog, wires, plan, parent):
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            await mpgort.sleep(100)

        _m.live = live
        mpgort.run(main, procs=1)
    """)
    assert r.status == 1
    assert "20 workers in a row were killed at their start by SIGKILL" in r.err


def test_workers_that_somebody_kills_at_their_start_are_replaced_until_he_has_enough(
    program, tmp_path
):
    r = program(f"""
        import os, signal
        import mpgort
        from mpgort import _m

        live = _m.live

        def killed(prog, wires, plan, parent):
            with open({str(tmp_path / "lives")!r}, "a+") as f:
                f.write(".")
                f.flush()
                n = f.tell()
            if n <= 8:
                os.kill(os.getpid(), signal.SIGKILL)
            live(prog, wires, plan, parent)

        async def main():
            return await mpgort.spawn(pow, 2, 5)

        _m.live = killed
        print(mpgort.run(main, procs=1))
    """)
    assert (r.status, r.out) == (0, "32\n"), r.err


def test_a_worker_that_dies_just_when_it_is_to_be_killed_is_buried(program: Programs) -> None:
    """The keeper has stopped it to end its hog, and somebody else's SIGKILL is quicker: that worker
    was named as the one to be killed again and again, and no death was looked at any more."""
    r = program(
        """
        import os, select, signal, time
        import mpgort
        from mpgort import _keeper

        def dies_meanwhile(pid, pidfd):
            os.kill(pid, signal.SIGKILL)
            p = select.poll()
            p.register(pidfd, select.POLLIN)
            p.poll()
            return stopped(pid, pidfd)

        def hog(begun):
            begun[0] = 1  # no runtime call: at one it would end by itself
            while True:
                pass

        if __name__ == "__main__":
            stopped, _keeper.stopped = _keeper.stopped, dies_meanwhile
            with mpgort.Runtime(procs=2, start_method="fork") as rt:
                for _ in range(3):
                    begun = mpgort.shared.zeros(1, runtime=rt)
                    h = rt.spawn(hog, begun)
                    while not begun[0]:
                        time.sleep(0.001)
                    h.kill()
                    try:
                        h.result(timeout=20)
                    except mpgort.Killed as e:
                        print(e)
                print(rt.spawn(pow, 2, 5).result(timeout=20), rt.stats()["deaths"])
        """
    )
    assert r.out.splitlines() == ["the goroutine was killed"] * 3 + ["32 3"]
