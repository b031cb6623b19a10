"""Pool: what differs from multiprocessing's, whose own tests run in test_cpython_pool.py."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from goroutines import stands

import mpgort
from mpgort import gosched


@pytest.fixture(scope="module")
def pool() -> Iterator[mpgort.Pool]:
    with mpgort.Pool(2) as p:
        yield p


def double(x: int) -> int:
    return 2 * x


async def double_slowly(x: int) -> int:
    await gosched()
    return 2 * x


def third_fails(x: int) -> int:
    if x % 3 == 0:
        raise ValueError(x)
    return x


def test_lambdas_closures_and_coroutine_functions_may_be_given(pool: mpgort.Pool) -> None:
    n = 3
    assert pool.map(lambda x: x + n, range(4)) == [3, 4, 5, 6]
    assert pool.apply(double_slowly, (4,)) == 8
    assert list(pool.imap(double_slowly, range(4))) == [0, 2, 4, 6]
    assert pool.starmap(lambda a, b: a * b, zip(range(4), range(4), strict=True)) == [0, 1, 4, 9]


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_each_result_of_many_comes_once(pool: mpgort.Pool, chunksize: int) -> None:
    n = 50_000
    wanted = list(range(0, 2 * n, 2))
    assert list(pool.imap(double, range(n), chunksize)) == wanted
    assert sorted(pool.imap_unordered(double, iter(range(n)), chunksize)) == wanted
    assert pool.map(double, range(n), chunksize) == wanted


def test_imap_goes_on_after_an_item_that_failed(pool: mpgort.Pool) -> None:
    """Though items travel together, each is its own failure, as with chunk size 1."""
    n = 3000
    it = pool.imap(third_fails, range(n))
    seen: list[Any] = []
    while True:
        try:
            seen.append(next(it))
        except StopIteration:
            break
        except ValueError as e:
            seen.append(("failed", e.args[0]))
    assert seen == [("failed", i) if i % 3 == 0 else i for i in range(n)]


def test_the_timeout_of_next_is_for_one_item(pool: mpgort.Pool, tmp_path: Path) -> None:
    for rest in (list, lambda it: [next(it), *it]):
        told = tmp_path / rest.__name__
        items = pool.imap(late, [(0, told), (1, None), (2, None)])
        with pytest.raises(multiprocessing.TimeoutError):
            items.next(timeout=0.001)
        told.touch()
        assert rest(items) == [0, 1, 2]


def late(item: tuple[int, Path | None]) -> int:
    n, told = item
    assert told is None or stands(str(told))
    return n


def third_stops(x: int) -> int:
    if x % 3 == 0:
        raise StopIteration
    return x


def test_a_task_that_raises_stop_iteration_is_one_failure_among_the_others(
    pool: mpgort.Pool,
) -> None:
    it, seen = pool.imap(third_stops, range(7)), []
    for _ in range(7):
        try:
            seen.append(next(it))
        except RuntimeError as e:
            assert isinstance(e.__cause__, StopIteration)
            seen.append(-1)
    assert seen == [-1, 1, 2, -1, 4, 5, -1]
    with pytest.raises(StopIteration):
        next(it)


def raises_timeout(x: int) -> None:
    raise TimeoutError(f"the task's own, {x}")


def test_a_task_s_own_timeout_error_is_not_taken_for_that_of_next(pool: mpgort.Pool) -> None:
    with pytest.raises(TimeoutError, match="the task's own, 7"):
        pool.imap(raises_timeout, [7]).next(timeout=60)


def of_many_threads(n: int, do: Callable[[], object]) -> None:
    """n threads do it, switching as often as they can; raises what one of them raised."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(n) as threads:
            for f in [threads.submit(do) for _ in range(n)]:
                f.result(timeout=100)
    finally:
        sys.setswitchinterval(interval)


def test_a_generator_s_items_all_come_however_threads_switch(pool: mpgort.Pool) -> None:
    """An iterable counted as read to its end while another thread was just sending the last that
    it had given: those after were never read."""

    def map_some() -> None:
        for n in [1000, 50] * 10:
            assert sorted(pool.imap_unordered(double, iter(range(n)))) == list(range(0, 2 * n, 2))
            assert list(pool.imap(double, range(7))) == list(range(0, 14, 2))

    of_many_threads(4, map_some)


def test_threads_that_share_an_iterator_get_each_result_once(pool: mpgort.Pool) -> None:
    items, got = pool.imap(double, iter(range(20_000))), []
    of_many_threads(4, lambda: got.extend(items))
    assert sorted(got) == list(range(0, 40_000, 2))


class Result:
    pass


def make(x: int) -> Result:
    return Result()


def test_a_result_is_forgotten_when_it_has_been_given(pool: mpgort.Pool) -> None:
    before: weakref.ref[Result] | None = None
    for result in pool.imap(make, range(3000)):
        assert before is None or before() is None
        before = weakref.ref(result)
        del result


@pytest.mark.parametrize("size, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_chunksize_that_is_none_is_refused_at_the_call(
    pool: mpgort.Pool, size: Any, error: type[Exception]
) -> None:
    """(Of 0 multiprocessing's map makes [None].)"""
    for many in (pool.map, pool.map_async, pool.starmap, pool.imap, pool.imap_unordered):
        with pytest.raises(error, match="(?i)chunksize"):
            many(abs, [1], size)


def test_an_iterable_that_waits_for_its_own_results_goes_on(pool: mpgort.Pool) -> None:
    todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    todo.put(1)
    got = []
    for v in pool.imap_unordered(double, iter(todo.get, None)):
        got.append(v)
        todo.put(v if v < 2000 else None)
    assert got == [2**k for k in range(1, 12)]


def test_an_endless_iterable_is_read_only_so_far_ahead(pool: mpgort.Pool) -> None:
    read = itertools.count()
    it = pool.imap(double, read)
    assert list(itertools.islice(it, 20_000)) == list(range(0, 40_000, 2))
    it._job.cancel()
    assert next(read) < 10_000_000


def test_callbacks_get_the_value_or_the_error(pool: mpgort.Pool) -> None:
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pool.apply_async(double, (2,), callback=told.put)
    assert told.get(timeout=30) == 4
    pool.apply_async(third_fails, (3,), callback=told.put, error_callback=told.put)
    assert isinstance(told.get(timeout=30), ValueError)
    pool.map_async(double, range(3), callback=told.put)
    assert told.get(timeout=30) == [0, 2, 4]


def test_a_callback_that_fails_is_reported_and_hurts_nothing(
    pool: mpgort.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Any) -> None:
        raise ZeroDivisionError("in a callback")

    assert pool.apply_async(double, (2,), callback=fails).get(timeout=30) == 4
    assert "in a callback" in caplog.text
    assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]


def test_an_argument_that_cannot_cross_is_an_error_and_no_hang(pool: mpgort.Pool) -> None:
    lock = threading.Lock()
    with pytest.raises(mpgort.SerializationError):
        pool.apply(double, (lock,))
    with pytest.raises(mpgort.SerializationError):
        pool.map(double, [1, lock])
    assert pool.apply(double, (1,)) == 2


def test_workers_are_replaced_after_maxtasksperchild() -> None:
    with mpgort.Pool(1, maxtasksperchild=2) as p:
        pids = [p.apply(os.getpid) for _ in range(8)]
    assert len(set(pids)) >= 3


def test_leaving_the_block_ends_the_workers_at_once() -> None:
    with mpgort.Pool(2) as p:
        results = [p.apply_async(threading.Event().wait) for _ in range(1)]
        workers = p._pool
    p.join()
    assert len(workers) == 2 and not any(w.is_alive() for w in workers)
    with pytest.raises((RuntimeError, TypeError)):
        results[0].get(timeout=30)


def test_a_program_that_ends_without_close_ends(program: Any) -> None:
    result = program(
        """
        import time
        import mpgort

        if __name__ == "__main__":
            p = mpgort.Pool(2)
            p.map_async(time.sleep, [100] * 10)
            print(p.apply(abs, (-1,)), flush=True) if False else print(1)
        """,
        limit=30,
    )
    assert (result.status, result.out) == (0, "1\n")


def test_after_terminate_no_thread_of_the_pool_is_left(program: Any) -> None:
    """The next runtime of the process may fork again."""
    r = program("""
        import threading
        import mpgort
        from mpgort._options import default_method

        def main():
            for i in range(5):
                with mpgort.Pool(1) as pool:
                    assert pool.apply(abs, (-i,)) == i
                    if i % 2:
                        pool.imap(abs, range(1000))
                print(default_method(), [t.name for t in threading.enumerate()])

        if __name__ == "__main__":
            main()
    """)
    assert (r.status, r.out) == (0, "fork ['MainThread']\n" * 5), r.err


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_what_multiprocessing_shares_reaches_the_workers_by_initargs(
    program: Any, method: str
) -> None:
    """Its locks, values and queues cross to new processes only; and what has a thread or a
    connection in the parent, as the queue and the dict here, has to have its own in each."""
    done = program(f"""
        import multiprocessing
        import mpgort

        def begin(*given):
            global lock, value, array, queue, d
            lock, value, array, queue, d = given

        def task(i):
            with lock:
                value.value += 1
                array[i % 4] += 1
            queue.put((i, multiprocessing.current_process()._identity > (0,)))
            d[i] = d["x"]

        if __name__ == "__main__":
            ctx = multiprocessing.get_context("{method}")
            with ctx.Manager() as manager:
                queue, value, d = ctx.Queue(), ctx.Value("i", 0), manager.dict(x=7)
                queue.put("parent")
                array = ctx.Array("i", 4)
                print(queue.get(timeout=30), d["x"])
                pool = mpgort.Pool(2, begin, (ctx.Lock(), value, array, queue, d), context=ctx)
                pool.map(task, range(40), chunksize=1)
                pool.close()
                pool.join()
                got = sorted(queue.get(timeout=30) for _ in range(40))
                print(got == [(i, True) for i in range(40)], value.value, list(array))
                print(len(d), set(d.values()))
    """)
    assert (done.status, done.err) == (0, "")
    assert done.out == "parent 7\nTrue 40 [10, 10, 10, 10]\n41 {7}\n"


def test_an_initializer_of_a_session_gets_what_multiprocessing_shares(program: Any) -> None:
    done = program(
        """
        import multiprocessing, mpgort
        ctx = multiprocessing.get_context("spawn")
        value = ctx.Value("i", 0)
        def begin(v): global mine; mine = v

        def add(i):
            with mine.get_lock(): mine.value += i

        with mpgort.Pool(2, begin, (value,), context=ctx) as pool: _ = pool.map(add, range(5))

        print(value.value)
        """,
        session=True,
    )
    assert done.out == "10\n", done.err
