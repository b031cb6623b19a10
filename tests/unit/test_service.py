"""A Runtime, or Executor, that stands for long: bound, replacement, SIGTERM, health."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import queue
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from conftest import Programs, wait_until
from goroutines import stands

import mpgort
from mpgort import _m, gosched

PROCS = [0, 1, 2]


async def take(ch: Any) -> Any:
    return await ch.recv()


# ---- max_pending -------------------------------------------------------------------------------


@pytest.mark.parametrize("procs", PROCS)
def test_spawn_waits_at_max_pending_until_one_has_ended(procs: int) -> None:
    with mpgort.Runtime(procs, max_pending=3) as rt:
        ch = rt.chan()
        for _ in range(3):
            rt.spawn(take, ch)
        entered, left = threading.Event(), threading.Event()

        def fourth() -> None:
            entered.set()
            rt.spawn(int)
            left.set()

        t = threading.Thread(target=fourth)
        t.start()
        entered.wait(10)
        assert not left.wait(0.1)
        assert rt.stats()["pending"] == 3
        assert any("max_pending=3" in p for p in rt.stats()["problems"])
        ch.put(1)
        assert left.wait(10)
        t.join()
        ch.close()


@pytest.mark.parametrize("procs", PROCS)
def test_spawn_raises_at_max_pending_if_asked_to(procs: int) -> None:
    with mpgort.Runtime(procs, max_pending=2, when_full="raise") as rt:
        ch = rt.chan()
        rt.spawn(take, ch)
        rt.go(take, ch)
        with pytest.raises(queue.Full, match="max_pending=2"):
            rt.spawn(take, ch)
        with pytest.raises(queue.Full):
            rt.go(take, ch)
        ch.put(7)
        wait_until("there is room", lambda: rt.stats()["pending"] == 1)
        rt.spawn(take, ch)
        ch.close()


def test_what_goroutines_start_is_not_counted_and_never_waits() -> None:
    async def fan(n: int) -> int:
        return sum([await h for h in [mpgort.spawn(int, i) for i in range(n)]])

    with mpgort.Runtime(2, max_pending=1) as rt:
        assert rt.spawn(fan, 50).result(timeout=30) == sum(range(50))
        assert rt.spawn(fan, 50).result(timeout=30) == sum(range(50))


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_and_a_kill_make_room_too() -> None:
    with mpgort.Runtime(2, max_pending=1) as rt:
        ch = rt.chan()
        for _ in range(3):
            h = rt.spawn(kill_me)
            with pytest.raises(mpgort.MDied):
                h.result(timeout=30)
            rt.spawn(take, ch).kill()
            h = rt.spawn(take, ch, timeout=0.01)
            with pytest.raises(TimeoutError, match="longer than its timeout"):
                h.result()
        assert rt.spawn(int, 5).result(timeout=30) == 5


def test_a_go_under_a_bound_that_fails_is_a_panic_all_the_same() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(mpgort.GoroutinePanic, match="no"):
        with mpgort.Runtime(2, max_pending=4) as rt:
            rt.go(fail)


def slow(x: int) -> int:
    time.sleep(0.002)
    return x


def compute_until(told: Path) -> bool:
    """Unlike a sleep, which lets the keeper give others another place to run."""
    end = time.perf_counter() + 20
    while time.perf_counter() < end:
        if told.exists():
            return True
    return False


def test_many_threads_never_have_more_than_max_pending_futures() -> None:
    most = 0
    with mpgort.Executor(2, max_pending=5) as ex:
        room = ex._room
        assert room is not None
        futures: list[Any] = []

        def submit() -> None:
            nonlocal most
            for i in range(30):
                futures.append(ex.submit(slow, i))
                most = max(most, room.pending)

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert sorted(f.result(timeout=30) for f in futures) == sorted([*range(30)] * 4)
        assert 1 < most <= 5
        wait_until("all are given back", lambda: room.pending == 0)


def test_an_executor_raises_at_max_pending_and_cancelling_makes_room(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with mpgort.Executor(1, max_pending=2, when_full="raise") as ex:
        a = ex.submit(compute_until, told)
        wait_until("it has begun", a.running)
        b = ex.submit(slow, 1)
        with pytest.raises(queue.Full):
            ex.submit(slow, 2)
        assert b.cancel()
        last = ex.submit(slow, 3)
        told.touch()
        assert last.result(timeout=30) == 3 and a.result(timeout=30)


def test_a_callback_that_submits_does_not_wait_for_the_room_it_would_make() -> None:
    with mpgort.Executor(2, max_pending=2) as ex:
        done: list[int] = []
        end = threading.Event()

        def again(f: concurrent.futures.Future[int]) -> None:
            done.append(f.result())
            if len(done) < 40:
                for _ in range(2):
                    ex.submit(slow, len(done)).add_done_callback(again)
            else:
                end.set()

        ex.submit(slow, 0).add_done_callback(again)
        assert end.wait(60)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"max_pending": 0}, ValueError, "max_pending=0"),
        ({"max_pending": 1.5}, TypeError, "max_pending"),
        ({"max_pending": 1, "when_full": "drop"}, ValueError, "block, raise"),
    ],
)
@pytest.mark.parametrize("kind", [mpgort.Runtime, mpgort.Executor])
def test_a_bad_bound_is_refused_by_name(
    kind: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        kind(1, **options)


# ---- recycle -----------------------------------------------------------------------------------


def whoami() -> int:
    return os.getpid()


async def wander(n: int) -> int:
    for _ in range(n):
        await gosched()
    return n


def pids(rt: mpgort.Runtime) -> set[int]:
    return {m["pid"] for m in rt.stats()["ms"] if m["kind"] == 2}


def test_recycle_replaces_every_worker_while_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("MPGORT_MIGRATE") == "never":  # there a parked one is at home, and waited for
        monkeypatch.setenv("MPGORT_MIGRATE", "auto")
    with mpgort.Runtime(2) as rt:
        ch = rt.chan()
        wait_until("they stand", lambda: rt.stats()["workers"] == 2)
        before = pids(rt)
        parked = [rt.spawn(take, ch) for _ in range(20)]
        runs = [rt.spawn(wander, 3000) for _ in range(20)]
        sleeps = [rt.spawn(slow, i) for i in range(50)]
        assert rt.recycle(timeout=60)
        assert len(pids(rt)) >= 2 and not pids(rt) & before  # one more for a moment, perhaps
        assert [h.result(timeout=30) for h in runs] == [3000] * 20
        assert [h.result(timeout=30) for h in sleeps] == [*range(50)]
        for i in range(20):
            ch.put(i)
        assert sorted(h.result(timeout=30) for h in parked) == [*range(20)]
        stats = rt.stats()
        assert stats["recycled"] >= 2 and stats["deaths"] == 0 and stats["problems"] == []


async def hold_much(stop: Any) -> int:
    """Heavy: what it holds is not copied at each park, and it is at home."""
    held = list(range(50_000))
    while not len(stop):
        await mpgort.sleep(0.005)
    return sum(held)


def test_recycle_moves_heavy_goroutines_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", "auto")
    with mpgort.Runtime(2) as rt:
        stop = rt.chan(1)
        hs = [rt.spawn(hold_much, stop) for _ in range(4)]
        wait_until("they are at home", lambda: rt.stack().count("heavy") == 4)
        before = pids(rt)
        assert rt.recycle(timeout=60)
        assert not pids(rt) & before
        stop.put(None)
        assert [h.result(timeout=30) for h in hs] == [sum(range(50_000))] * 4
        assert rt.stats()["deaths"] == 0


def test_recycle_waits_for_a_call_and_says_so_at_its_timeout(tmp_path: Path) -> None:
    with mpgort.Runtime(1) as rt:
        wait_until("it stands", lambda: rt.stats()["workers"] == 1)
        before = pids(rt)
        h = rt.spawn(stands, str(tmp_path / "told"))
        wait_until("it runs", lambda: h.status() == "running")
        assert not rt.recycle(timeout=0.05)
        (tmp_path / "told").touch()
        assert h.result(timeout=30)
        wait_until("it goes when it can", lambda: not pids(rt) & before)
        assert rt.spawn(whoami).result(timeout=30) not in before


def test_recycle_runs_the_initializer_again() -> None:
    with mpgort.Runtime(1, initializer=os.putenv, initargs=("X", "1")) as rt:
        assert rt.recycle(timeout=30) and rt.spawn(whoami).result(timeout=30)


def connect(server: Path, tried: Path) -> None:
    """An initializer. The file `server` has how often it still refuses."""
    with tried.open("a") as f:
        f.write("x")
    left = int(server.read_text())
    if left:
        server.write_text(str(left - 1))
        raise ConnectionRefusedError("the server is down")


def test_a_replacement_tries_its_initializer_again_while_the_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_m, "PAUSES_S", (0.02, 0.05, 0.1))
    server, tried = tmp_path / "server", tmp_path / "tried"
    server.write_text("0")
    begin: Any = {"initializer": connect, "initargs": (server, tried), "start_method": "fork"}
    with mpgort.Runtime(2, **begin) as rt:
        wait_until("both stand", lambda: rt.stats()["workers"] == 2)
        server.write_text("3")
        os.kill(pids(rt).pop(), signal.SIGKILL)
        wait_until("it has tried", lambda: len(tried.read_text()) > 2)
        while len(tried.read_text()) < 6:
            assert rt.spawn(abs, -1).result(timeout=30) == 1
        wait_until("all is well", lambda: rt.stats()["workers"] == 2)
        assert rt.stats()["problems"] == [] and len(tried.read_text()) == 6


def test_a_replacement_whose_initializer_goes_on_failing_is_the_end_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_m, "PAUSES_S", (0.02, 0.05))
    server, tried = tmp_path / "server", tmp_path / "tried"
    server.write_text("0")
    begin: Any = {"initializer": connect, "initargs": (server, tried), "start_method": "fork"}
    with mpgort.Executor(1, **begin) as ex:
        pid = ex.submit(os.getpid).result(timeout=30)
        server.write_text("1000")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool) as e:
            while True:
                with contextlib.suppress(mpgort.MDied):  # given to the worker that was killed
                    ex.submit(abs, -1).result(timeout=30)
        assert isinstance(e.value.__cause__, ConnectionRefusedError)
        assert "in the initializer of a worker" in e.value.__cause__.__notes__[0]
        assert len(tried.read_text()) == 4  # the first worker's, and three of its replacement
    server.write_text("1000")  # where none stands yet, one try is enough
    with pytest.raises(ConnectionRefusedError), mpgort.Runtime(1, **begin) as rt:
        rt.spawn(abs, -1).result(timeout=30)
    assert len(tried.read_text()) == 5


def test_recycle_with_procs_0_has_nothing_to_replace() -> None:
    with mpgort.Runtime(0) as rt:
        assert rt.recycle()


# ---- SIGTERM -----------------------------------------------------------------------------------

SERVICE = """
    import os, signal, sys, time
    import mpgort

    def work(i):
        time.sleep(0.2)
        os.write(1, b"done %d\\n" % i)  # whole, beside the others'

    def before(*_):
        print("the former handler", flush=True)

    signal.signal(signal.SIGTERM, before)
    if __name__ == "__main__":
        {setup}
        try:
            with mpgort.Runtime(2, drain_on_sigterm={drain}) as rt:
                for i in range(6):
                    rt.spawn(work, i)
                print("ready", flush=True)
                {wait}
        finally:
            assert signal.getsignal(signal.SIGTERM) is before
            print("cleaned up", flush=True)
"""


# Not time.sleep(30): a signal that comes just before its system call is told when it is over.
SLEEPS = "for _ in range(3000): time.sleep(0.01)"


def service(drain: str = "True", wait: str = SLEEPS, setup: str = "pass") -> str:
    return SERVICE.format(drain=drain, wait=wait, setup=setup)


@pytest.mark.parametrize("everybody", [False, True], ids=["m0", "the whole group"])
@pytest.mark.parametrize("wait", [SLEEPS, "rt.chan().get(timeout=30)"])
def test_sigterm_drains_and_exits_with_143(program: Programs, everybody: bool, wait: str) -> None:
    p = program.start(service(wait=wait))
    assert p.line() == "ready"
    if everybody:
        os.killpg(p.pid, signal.SIGTERM)
    else:
        os.kill(p.pid, signal.SIGTERM)
    r = p.wait()
    assert r.status == 143, r.err
    lines = r.out.splitlines()
    assert sorted(lines[1:-1]) == [f"done {i}" for i in range(6)]
    assert lines[-1] == "cleaned up"


def test_a_keeper_that_is_only_beginning_does_not_run_the_former_handler(program: Programs) -> None:
    """It inherits M0's handlers and, like all of the group, the SIGTERM."""
    early = """
        from mpgort import _keeper
        keep = _keeper.keep

        def begin(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            keep(*args)

        _keeper.keep = begin
"""
    p = program.start(service(wait="pass", setup=early))
    r = p.wait()
    lines = r.out.splitlines()
    assert (r.status, lines[-1]) == (0, "cleaned up"), r.err
    assert "the former handler" not in lines and len(lines) == 8


def test_a_drain_ends_at_its_limit(program: Programs) -> None:
    p = program.start(service(drain="0.3").replace("0.2", "20"))
    assert p.line() == "ready"
    os.kill(p.pid, signal.SIGTERM)
    r = p.wait()
    assert r.status == 143 and "done" not in r.out and "cleaned up" in r.out
    assert r.seconds < 10


TELLS = f"""
                try:
                    print("set", flush=True)
                    {SLEEPS}
                except SystemExit:
                    print("told", flush=True)
                    raise"""


@pytest.mark.parametrize("pause", [0, 0.3], ids=["before it drains, perhaps", "while it drains"])
def test_a_second_sigterm_ends_the_drain(program: Programs, pause: float) -> None:
    """Whenever it comes: before the drain has begun it was lost."""
    p = program.start(service(wait=TELLS).replace("0.2", "20"))
    assert (p.line(), p.line()) == ("ready", "set")
    os.kill(p.pid, signal.SIGTERM)
    assert p.line() == "told"
    time.sleep(pause)
    os.kill(p.pid, signal.SIGTERM)
    r = p.wait(15)
    assert r.status == 143 and "done" not in r.out


def test_a_runtime_without_a_block_drains_at_exit(program: Programs) -> None:
    r = program(
        """
        import os, signal, time, mpgort
        def work(i):
            time.sleep(0.1)
            print("done", i, flush=True)
        if __name__ == "__main__":
            rt = mpgort.Runtime(2, drain_on_sigterm=True)
            for i in range(4):
                rt.spawn(work, i)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        """
    )
    assert r.status == 143 and r.out.count("done") == 4


def test_draining_takes_no_more_work(program: Programs) -> None:
    r = program(
        """
        import os, signal, time, mpgort
        if __name__ == "__main__":
            try:
                with mpgort.Runtime(1, drain_on_sigterm=True) as rt:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(30)
            except SystemExit as e:
                print(e.code, rt.shutdown())
            with mpgort.Runtime(1, drain_on_sigterm=True) as rt:
                while rt.stats()["problems"]:  # until the worker is there
                    time.sleep(0.002)
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(30)
                except SystemExit:
                    print(rt.stats()["problems"])
                    try:
                        rt.spawn(int)
                    except RuntimeError as e:
                        print(e)
        """
    )
    assert r.out.splitlines() == [
        "143 True",
        "['draining']",
        "the runtime is draining, after SIGTERM: it takes no more work",
    ]


def test_without_the_option_sigterm_is_left_alone() -> None:
    was = signal.getsignal(signal.SIGTERM)
    with mpgort.Runtime(1) as rt:
        assert signal.getsignal(signal.SIGTERM) is was
        assert rt.spawn(signal.getsignal, signal.SIGTERM).result(timeout=30) == signal.SIG_DFL


def test_drain_on_sigterm_is_for_the_main_thread_and_seconds() -> None:
    with pytest.raises(ValueError, match="drain_on_sigterm=-1"):
        mpgort.Runtime(0, drain_on_sigterm=-1)
    with pytest.raises(TypeError, match="drain_on_sigterm"):
        mpgort.Runtime(0, drain_on_sigterm="yes")  # type: ignore[arg-type]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        f = pool.submit(lambda: mpgort.Runtime(0, drain_on_sigterm=True))
        with pytest.raises(RuntimeError, match="main thread"):
            f.result()


# ---- health ------------------------------------------------------------------------------------


def computes_until(told: Any) -> None:
    while not told[0]:
        pass


def test_stats_tell_of_health() -> None:
    with mpgort.Runtime(2) as rt:
        wait_until("all stand", lambda: rt.stats()["problems"] == [])
        stats = rt.stats()
        assert stats["workers"] == 2 and stats["pending"] is None and 0 < stats["uptime_s"] < 60
        ch = rt.chan()
        hs = [rt.spawn(take, ch) for _ in range(5)]
        assert rt.stats()["goroutines"] >= 5
        told = mpgort.shared.zeros(1, runtime=rt)
        busy = [rt.spawn(computes_until, told) for _ in range(2)]
        wait_until("both run", lambda: all(h.status() == "running" for h in busy))
        late = [rt.spawn(int, priority="batch") for _ in range(3)] + [rt.spawn(int)]
        stats = rt.stats()
        assert stats["runnable_batch"] <= 3 and stats["runnable"] <= 1
        told[0] = 1
        for h in late + busy:
            h.result(timeout=30)
        ch.close()
        for h in hs:
            assert h.result(timeout=30) is None
        os.kill(pids(rt).pop(), signal.SIGKILL)
        wait_until("it is missed", lambda: rt.stats()["deaths"] == 1)
        wait_until("another stands", lambda: rt.stats()["problems"] == [])
