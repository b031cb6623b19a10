"""Executor: what concurrent.futures promises, and what it cannot do.

CPython's own tests of the interface run in test_cpython_futures.py; here is what is ours: lambdas
and coroutines, nested tasks, cancel that is certain, chunks chosen by measuring, the end of
programs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Programs, wait_until

import mpgort
from mpgort import gosched, spawn


@pytest.fixture(scope="module")
def ex() -> Iterator[mpgort.Executor]:
    with mpgort.Executor(2) as executor:
        yield executor


def double(x: int) -> int:
    return 2 * x


async def double_slowly(x: int) -> int:
    await gosched()
    return 2 * x


# ---- what may be submitted ---------------------------------------------------------------------


def test_a_lambda_a_closure_and_a_bound_method_may_be_submitted(ex: mpgort.Executor) -> None:
    n = 20

    def add(x: int) -> int:
        return x + n

    assert ex.submit(lambda x: x + 1, 1).result() == 2
    assert ex.submit(add, 1).result() == 21
    assert ex.submit("-".join, ["a", "b"]).result() == "a-b"
    assert list(ex.map(lambda x: x + n, range(5))) == [20, 21, 22, 23, 24]


def test_a_coroutine_function_is_awaited(ex: mpgort.Executor) -> None:
    assert ex.submit(double_slowly, 4).result() == 8
    assert ex.submit(lambda: double_slowly(5)).result() == 10
    assert list(ex.map(double_slowly, range(5))) == [0, 2, 4, 6, 8]


async def tree(depth: int) -> int:
    if depth == 0:
        return 1
    left, right = spawn(tree, depth - 1), spawn(tree, depth - 1)
    return await left + await right


def blocking_tree(depth: int) -> int:
    if depth == 0:
        return 1
    kids = [spawn(blocking_tree, depth - 1) for _ in range(2)]
    return sum(k.result() for k in kids)


def test_tasks_that_wait_for_tasks_of_their_own_never_deadlock(ex: mpgort.Executor) -> None:
    assert ex.submit(tree, 8).result(timeout=30) == 256
    assert ex.submit(blocking_tree, 4).result(timeout=30) == 16


async def produce(out: mpgort.Chan[int], n: int) -> None:
    for i in range(n):
        await out.send(i)
    out.close()


async def total(src: mpgort.Chan[int]) -> int:
    return sum([x async for x in src])


def test_more_tasks_than_workers_may_wait_for_a_task_submitted_after_them() -> None:
    with mpgort.Executor(1) as ex:
        ex.submit(int).result()
        assert ex._engine is not None
        pipes = [ex._engine.runtime.chan() for _ in range(5)]
        sums = [ex.submit(total, p) for p in pipes]
        for p in pipes:
            ex.submit(produce, p, 10)
        assert [f.result(timeout=30) for f in sums] == [45] * 5


def test_the_executor_itself_does_not_cross_and_says_what_to_use(ex: mpgort.Executor) -> None:
    with pytest.raises(mpgort.SerializationError, match="mpgort.spawn"):
        ex.submit(lambda: ex.submit(int)).result()


# ---- errors ------------------------------------------------------------------------------------


def divide(x: int) -> float:
    return 1 / x


def test_an_exception_has_its_remote_traceback_as_the_cause(ex: mpgort.Executor) -> None:
    with pytest.raises(ZeroDivisionError) as e:
        ex.submit(divide, 0).result()
    assert "return 1 / x" in str(e.value.__cause__)


def test_an_argument_that_cannot_cross_is_the_futures_exception(ex: mpgort.Executor) -> None:
    with socket.socket() as s:
        f = ex.submit(double, s)  # type: ignore[arg-type]
        assert f.done()
        with pytest.raises(mpgort.SerializationError, match=r"args\[0\]"):
            f.result()
        with pytest.raises(mpgort.SerializationError):
            list(ex.map(double, [1, s]))


class Poison:
    """Fails where it arrives."""

    def __reduce__(self) -> Any:
        return divide, (0,)


def poison() -> Poison:
    return Poison()


def test_a_value_that_fails_to_arrive_fails_its_own_task_only(ex: mpgort.Executor) -> None:
    others = [ex.submit(double, i) for i in range(20)]
    for f in [ex.submit(double, Poison()), ex.submit(poison)]:  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            f.result(timeout=30)
    assert [f.result(timeout=30) for f in others] == [2 * i for i in range(20)]


def test_what_is_no_function_is_refused_at_the_call(ex: mpgort.Executor) -> None:
    with pytest.raises(TypeError, match="function"):
        ex.submit(3)  # type: ignore[arg-type]


# ---- cancel ------------------------------------------------------------------------------------


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.002)


def mark(path: str) -> None:
    Path(path).touch()


def test_a_task_that_was_cancelled_before_it_began_never_runs(tmp_path: Path) -> None:
    gate, never = str(tmp_path / "gate"), str(tmp_path / "never")
    with mpgort.Executor(1) as ex:
        running = ex.submit(wait_for, gate)
        queued = ex.submit(mark, never)
        while not running.running():
            time.sleep(0.001)
        told: list[concurrent.futures.Future[None]] = []
        queued.add_done_callback(told.append)
        assert not queued.running() and queued.cancel() and queued.cancelled()
        assert told == [queued]
        assert not running.cancel() and not running.cancelled()
        mark(gate)
        assert running.result(timeout=30) is None
        with pytest.raises(concurrent.futures.CancelledError):
            queued.result()
        done, _ = concurrent.futures.wait([queued], timeout=0)
        assert done == {queued}
        ex.submit(int).result(timeout=30)
    assert not os.path.exists(never)


def test_of_a_cancel_and_a_start_exactly_one_wins(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    with mpgort.Executor(2) as ex:
        held = [ex.submit(wait_for, gate) for _ in range(2)]
        while not all(f.running() for f in held):
            time.sleep(0.001)
        futures = [ex.submit(double, i) for i in range(2000)]
        cancelled = [f.cancel() for f in futures[:100]]
        assert all(cancelled)
        mark(gate)  # now both go for them, and somewhere meet who comes from the other end
        cancelled += reversed([f.cancel() for f in reversed(futures[100:])])
    for i, (f, was) in enumerate(zip(futures, cancelled, strict=True)):
        assert f.cancelled() == was
        assert was or f.result() == 2 * i


# ---- map ---------------------------------------------------------------------------------------


def test_map_takes_several_iterables_and_none(ex: mpgort.Executor) -> None:
    assert list(ex.map(pow, range(5), [2] * 4)) == [0, 1, 4, 9]
    assert list(ex.map(double)) == []  # type: ignore[arg-type]
    assert list(ex.map(double, [])) == []


def test_map_of_many_gives_each_once_and_in_order(ex: mpgort.Executor) -> None:
    n = 200_000
    assert list(ex.map(double, range(n))) == list(range(0, 2 * n, 2))


def uneven(x: int) -> int:
    if x % 1000 == 999:
        time.sleep(0.05)
    return x


def test_a_chunk_that_takes_longer_than_thought_is_dealt_out_anew() -> None:
    """The first thousand items say that an item takes nothing, then each takes 5 ms: one worker
    alone would be busy for long with the chunk it has."""
    with mpgort.Executor(2) as ex:
        list(ex.map(double, range(1000)))

        def item(x: int) -> int:
            if x >= 20_000:
                time.sleep(0.005)
            return os.getpid()

        pids = list(ex.map(item, range(20_400)))
    slow = pids[20_000:]
    assert len(set(slow)) == 2
    assert min(slow.count(p) for p in set(slow)) > 80


def test_map_with_a_buffer_reads_no_further_than_it_may(ex: mpgort.Executor) -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for i in range(1000):
            read.append(i)
            yield i

    results = ex.map(double, source(), buffersize=10)
    assert len(read) == 10
    for i in range(50):
        assert next(results) == 2 * i
        assert len(read) <= i + 1 + 10
    assert list(results) == list(range(100, 2000, 2))


def test_map_with_a_buffer_may_read_what_waits_for_other_results(ex: mpgort.Executor) -> None:
    """The iterable was read under a lock that the thread which brings results needs."""
    for _ in range(5):
        items = (ex.submit(double, i).result(timeout=100) for i in range(400))
        assert list(ex.map(double, items, buffersize=3)) == list(range(0, 1600, 4))


def test_map_stops_giving_out_when_its_reader_has_gone(ex: mpgort.Executor) -> None:
    results = ex.map(double, range(1_000_000))
    assert next(results) == 0
    results.close()
    assert next(results, None) is None
    assert ex.submit(double, 1).result(timeout=30) == 2
    assert ex._engine is not None and not ex._engine.jobs


def test_map_raises_at_the_item_that_failed_after_those_before_it(ex: mpgort.Executor) -> None:
    got = []
    with pytest.raises(ZeroDivisionError):
        for v in ex.map(divide, [*range(5000, 0, -1), 0, *range(1, 100)]):
            got.append(v)
    assert len(got) == 5000


def stops_at_one(x: int) -> int:
    if x == 1:
        raise StopIteration(5)
    return x


@pytest.mark.parametrize("chunksize", [None, 1, 2])
def test_a_task_that_raises_stop_iteration_is_not_the_end_of_the_results(
    ex: mpgort.Executor, chunksize: int | None
) -> None:
    with pytest.raises(RuntimeError, match="StopIteration") as e:
        list(ex.map(stops_at_one, range(3), chunksize=chunksize))
    assert isinstance(e.value.__cause__, StopIteration) and e.value.__cause__.value == 5


def test_a_map_that_is_late_raises_timeout_error(ex: mpgort.Executor, tmp_path: Path) -> None:
    there, late = tmp_path / "there", tmp_path / "late"
    there.touch()
    results = ex.map(is_there, [there, late], timeout=1)
    assert next(results) is None
    with pytest.raises(TimeoutError):
        next(results)
    late.touch()


# ---- who waits ---------------------------------------------------------------------------------


def test_as_completed_callbacks_and_asyncio_see_every_end(ex: mpgort.Executor) -> None:
    futures = [ex.submit(double, i) for i in range(100)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(futures, 30)) == list(
        range(0, 200, 2)
    )
    seen = threading.Event()
    ex.submit(double, 1).add_done_callback(lambda f: seen.set())
    assert seen.wait(30)

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(ex, double, i) for i in range(50)))

    assert asyncio.run(main()) == list(range(0, 100, 2))


def test_many_threads_submit_and_wait_at_once(ex: mpgort.Executor) -> None:
    errors: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for i in range(100):
                assert ex.submit(double, i).result(timeout=30) == 2 * i
            futures = [ex.submit(double, i) for i in range(50)]
            assert sum(f.result(timeout=30) for f in futures) == 2 * sum(range(50))
            assert list(ex.map(double, range(300))) == list(range(0, 600, 2))
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors and not any(t.is_alive() for t in threads)
    engine = ex._engine
    assert engine is not None
    wait_until("every task has been told", lambda: not engine.pending)


def is_there(path: Path) -> None:
    wait_until("the file is there", path.exists)


def test_result_past_its_timeout_raises_and_comes_later(
    ex: mpgort.Executor, tmp_path: Path
) -> None:
    f = ex.submit(is_there, tmp_path / "told")
    with pytest.raises(TimeoutError):
        f.result(timeout=0.05)
    assert not f.done()
    (tmp_path / "told").touch()
    assert f.result(timeout=30) is None


# ---- start and end -----------------------------------------------------------------------------


def test_nothing_is_started_before_the_first_submit() -> None:
    before = threading.active_count()
    ex = mpgort.Executor(2)
    assert ex._engine is None and threading.active_count() == before
    ex.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(int)


def test_shutdown_runs_what_was_submitted_and_leaves_no_thread() -> None:
    before = threading.active_count()
    ex = mpgort.Executor(2)
    futures = [ex.submit(time.sleep, 0.01) for _ in range(20)]
    results = ex.map(double, range(10_000))
    ex.shutdown()
    assert all(f.done() for f in futures)
    assert list(results) == list(range(0, 20_000, 2))
    assert threading.active_count() == before


def test_an_executor_that_is_garbage_runs_what_it_was_given() -> None:
    ex = mpgort.Executor(2)
    engine = ex._start()
    f = ex.submit(double, 4)
    results = ex.map(double, range(1000))
    del ex
    assert f.result(timeout=30) == 8
    assert list(results) == list(range(0, 2000, 2))
    engine.join(30)
    assert not engine.thread.is_alive()


def fails() -> None:
    raise ZeroDivisionError("no initializer")


def test_a_failing_initializer_breaks_the_executor_and_says_why() -> None:
    with mpgort.Executor(2, initializer=fails) as ex:
        f = ex.submit(int)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="no initializer"):
            f.result(timeout=30)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="no initializer"):
            while True:
                ex.submit(int).result(timeout=30)


STATE: list[int] = []


def init(x: int) -> None:
    STATE.append(x)


def state() -> list[int]:
    return STATE


def test_the_initializer_has_run_once_on_the_worker_of_each_task() -> None:
    with mpgort.Executor(2, initializer=init, initargs=(7,)) as ex:
        assert [ex.submit(state).result() for _ in range(20)] == [[7]] * 20


def test_the_end_waits_for_no_slice_of_time(program: Programs) -> None:
    """It took 0.1 s more: the collector saw that all was over, and went to wait for what comes."""
    r = program("""
        import mpgort
        from mpgort import _engine

        if __name__ == "__main__":
            _engine.SLICE_S = 3600
            for waits in (True, False, True):
                with mpgort.Executor(1) as ex:
                    f = ex.submit(abs, -1)
                    waits and f.result()
            print("over")
        """)
    assert r.out == "over\n"


def test_a_worker_is_replaced_after_max_tasks_per_child() -> None:
    with mpgort.Executor(1, max_tasks_per_child=3) as ex:
        pids = [ex.submit(os.getpid).result(timeout=30) for _ in range(9)]
    assert len(set(pids)) >= 3


@pytest.mark.parametrize(
    "options, error",
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": 100_000}, ValueError),
        ({"max_workers": "2"}, TypeError),
        ({"mp_context": 3}, TypeError),
        ({"initializer": 3}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"start_method": "frok"}, ValueError),
        ({"mp_context": "frok"}, ValueError),
    ],
)
def test_a_bad_option_is_refused_at_the_call(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        mpgort.Executor(**options)


def test_a_program_that_ends_without_shutdown_runs_what_was_submitted(program: Any) -> None:
    result = program("""
        import os, time
        import mpgort

        def say(i):
            time.sleep(0.05)
            os.write(1, b"%d\\n" % i)

        if __name__ == "__main__":
            ex = mpgort.Executor(2)
            for i in range(6):
                ex.submit(say, i)
    """)
    assert (result.status, result.err) == (0, "")
    assert sorted(result.out.split()) == list("012345")


def test_submit_at_the_interpreters_end_is_refused(program: Any) -> None:
    result = program("""
        import atexit
        import mpgort

        def late():
            try:
                ex.submit(int)
            except RuntimeError as e:
                print(e)

        if __name__ == "__main__":
            atexit.register(late)
            ex = mpgort.Executor(2)
            print(ex.submit(int).result())
    """)
    assert result.out.splitlines() == [
        "0",
        "cannot schedule new futures after interpreter shutdown",
    ]


def test_a_forked_child_uses_the_executor_with_workers_of_its_own(program: Any) -> None:
    result = program("""
        import os
        import mpgort

        if __name__ == "__main__":
            ex = mpgort.Executor(2)
            mine = ex.submit(os.getppid).result()
            pid = os.fork()
            if pid == 0:
                theirs = ex.submit(os.getppid).result(timeout=30)
                ex.shutdown()
                os._exit(0 if theirs != mine else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert ex.submit(os.getppid).result(timeout=30) == mine
            print("both")
    """)
    assert (result.status, result.out) == (0, "both\n")


@pytest.mark.parametrize("kind", ("KeyboardInterrupt", "Alarm"))
def test_ctrl_c_while_waiting_loses_no_result(program: Any, kind: str) -> None:
    """Each wait is struck once, at a random moment of it, and begun again. (The signal may be given
    to another thread and come late: outside a wait, or after another strike, it is none.)"""
    result = program(
        """
        import random, signal, sys, time
        import mpgort

        class Alarm(Exception):
            pass

        Kind = {"Alarm": Alarm, "KeyboardInterrupt": KeyboardInterrupt}[sys.argv[1]]

        def work(i):
            time.sleep(0.001)
            return i

        waiting = False

        def strike(*_):
            global waiting
            if waiting:
                waiting = False
                raise Kind

        if __name__ == "__main__":
            signal.signal(signal.SIGALRM, strike)
            ex = mpgort.Executor(2)
            futures, struck = [], 0
            for i in range(300):
                futures += [ex.submit(work, n) for n in range(len(futures), min(i + 4, 300))]
                f = futures[i]  # few are ahead of it, so that it is waited for
                while True:
                    try:
                        waiting = True
                        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
                        assert f.result(timeout=30) == i
                        waiting = False
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        break
                    except (Kind, RuntimeError) as e:
                        # threading.Condition.wait, struck between its release and its try, leaves
                        # the lock released: its own `with` says so.
                        assert Kind in (type(e), type(e.__context__)), e
                        struck += 1
            print(struck > 5)
        """,
        kind,
    )
    assert (result.status, result.out) == (0, "True\n"), result.err
