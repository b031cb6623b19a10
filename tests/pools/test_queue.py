"""chan.as_queue() does what multiprocessing.Queue does: CPython's own tests, and what differs.

| class      | run       | not applicable, and why                                           |
| ---------- | --------- | ----------------------------------------------------------------- |
| _TestQueue | all but 2 | queue_feeder_donot_stop_onexc,                                     |
|            |           | queue_feeder_on_queue_feeder_error: there is no feeder, put raises |
|            | (3.13: 3) | closed_queue_empty_exceptions: empty() has nothing to be closed   |

Their queue without a size is endless; the channel here has room for 1000."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import unittest
from typing import Any

import pytest
from test import _test_multiprocessing as theirs

import mpgort
from mpgort import chan, spawn

RT: mpgort.Runtime | None = None


def make(maxsize: int = 0) -> Any:
    assert RT is not None
    return RT.chan(maxsize or 1000).as_queue()


class Event:
    def __init__(self) -> None:
        assert RT is not None
        self.ch = RT.chan(1)

    def set(self) -> None:
        self.ch.put(None)

    def wait(self) -> None:
        self.ch.get()


class Process:
    """A plain function on a worker."""

    def __init__(self, target: Any, args: Any) -> None:
        self.call = target, args

    def start(self) -> None:
        assert RT is not None
        self.h = RT.spawn(self.call[0], *self.call[1])

    def join(self) -> None:
        self.h.result(timeout=30)


class Here:
    TYPE = "processes"
    Queue = JoinableQueue = staticmethod(make)
    Event = Event
    Process = Process

    def setUp(self) -> None:
        """Some tests call multiprocessing.Queue by that name."""
        global RT
        RT = mpgort.Runtime(2)
        self.was = multiprocessing.Queue, multiprocessing.JoinableQueue
        multiprocessing.Queue = multiprocessing.JoinableQueue = make  # type: ignore[assignment]

    def tearDown(self) -> None:
        global RT
        multiprocessing.Queue, multiprocessing.JoinableQueue = self.was  # type: ignore[method-assign]
        assert RT is not None
        RT.shutdown()
        RT = None


def case(base: type, without: str) -> type:
    body: dict[str, Any] = {"__module__": __name__}
    for name in without.split():
        body[f"test_{name}"] = None
    return type(f"Test{base.__name__[5:]}", (Here, base, unittest.TestCase), body)


TestQueue = case(
    theirs._TestQueue,
    "queue_feeder_donot_stop_onexc queue_feeder_on_queue_feeder_error "
    "closed_queue_empty_exceptions",
)


async def crosses() -> Any:
    """A queue goes along as its channel does; who awaits and who blocks meet in it."""
    jobs, done = chan(2), chan(10)
    q = jobs.as_queue()

    def work(q: Any, done: Any) -> int:
        n = 0
        while (item := q.get()) is not None:
            done.put((item, q == done, q.full()))
            n += 1
        return n

    h = [spawn(work, q, done.as_queue()) for _ in range(2)]
    for i in range(5):
        await jobs.send(i)
    for _ in h:
        await jobs.send(None)
    counts = [await x for x in h]
    return sum(counts), sorted([(await done.recv())[0] for _ in range(5)]), q == jobs.as_queue()


@pytest.mark.parametrize("procs", [0, 1, 2])
@pytest.mark.parametrize("migrate", ["auto", "always", "never"])
def test_a_queue_crosses_and_is_its_channel(
    procs: int, migrate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", migrate)
    assert mpgort.run(crosses, procs=procs) == (5, [0, 1, 2, 3, 4], True)


def test_what_cannot_cross_is_an_error_of_put_and_takes_no_room() -> None:
    with mpgort.Runtime(1) as rt:
        q = rt.chan(1).as_queue()
        for _ in range(3):
            with pytest.raises(mpgort.SerializationError, match="an open file"):
                q.put(open("/dev/null"))
        q.put_nowait(1)
        with pytest.raises(queue.Full):
            q.put_nowait(2)
        assert q.get_nowait() == 1
        with pytest.raises(queue.Empty):
            q.get_nowait()


def finishes(q: Any, n: int) -> None:
    for _ in range(n):
        q.get()
        q.task_done()


@pytest.mark.parametrize("procs", [0, 2])
def test_join_waits_for_what_was_put_and_is_not_done_in_any_process(procs: int) -> None:
    with mpgort.Runtime(procs) as rt:
        q = rt.chan(10).as_queue()
        q.join()  # nothing was put
        with pytest.raises(ValueError, match="called too many times"):
            q.task_done()
        hs = [rt.spawn(finishes, q, 250) for _ in range(4 if procs else 1)]
        threads = [threading.Thread(target=lambda: [q.put(i) for i in range(250)]) for _ in hs]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        q.join()
        assert q.empty()
        for h in hs:
            h.result(timeout=30)
        q.put(1)
        with pytest.raises(mpgort.SerializationError):
            q.put(threading.Lock())  # is not counted
        joined = threading.Event()
        t = threading.Thread(target=lambda: (q.join(), joined.set()))
        t.start()
        assert q.get() == 1
        assert not joined.is_set()
        q.task_done()
        t.join(30)
        assert joined.is_set()
        with pytest.raises(ValueError, match="called too many times"):
            q.task_done()


def test_a_queue_of_size_0_hands_over() -> None:
    with mpgort.Runtime(1) as rt:
        q = rt.chan().as_queue()
        assert q.full() and q.empty()
        with pytest.raises(queue.Full):
            q.put_nowait(1)
        t = threading.Thread(target=q.put, args=(2,))
        t.start()
        assert q.get(timeout=30) == 2
        t.join(30)


def test_close_is_this_processs_own_and_the_channels_is_for_all() -> None:
    def get(q: Any) -> Any:
        return q.get()

    with mpgort.Runtime(1) as rt:
        ch = rt.chan(3)
        mine, theirs = ch.as_queue(), ch.as_queue()
        mine.put(1)
        mine.close()
        mine.join_thread()
        with pytest.raises(ValueError, match="is closed"):
            mine.put(2)
        assert rt.spawn(get, theirs).result(timeout=30) == 1
        ch.close()
        with pytest.raises(mpgort.ChanError, match="send on closed channel"):
            theirs.put(3)
        with pytest.raises(mpgort.Closed):
            theirs.get()
