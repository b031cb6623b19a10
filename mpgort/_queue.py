"""`chan.as_queue()`: a channel under the names of multiprocessing.Queue and queue.Queue.

For code that has such a queue already, in threads or plain functions. What is in the channel may
have been sent or be received by either name. So the bounds are the channel's: one of size n is full
with n items, one of size 0 hands each item over to who waits in get(). A put() that cannot cross
raises there and then; nothing is behind a feeder's thread, so what was put is in the queue, and
qsize, empty and full say what is so at that moment.

task_done() and join() are a JoinableQueue's: how many items were put and are not done is counted in
shared memory, by the queue and its copies in all processes. So hand on the queue, not the channel:
another as_queue() of it has a count of its own, and what was sent by `send` is in none.

close() is multiprocessing's: this process puts and gets no more; others go on. (The channel's own
close() ends it for all: `Closed` from get once it is drained, ChanError from put.)"""

from __future__ import annotations

from queue import Empty, Full
from typing import Any, Generic, TypeVar

from mpgort._core import Chan
from mpgort._errors import SyncError
from mpgort.sync import WaitGroup

T = TypeVar("T")


class Queue(Generic[T]):
    def __init__(self, chan: Chan[T], unfinished: WaitGroup | None) -> None:
        """unfinished: None for nilchan, in which there is never anything."""
        self._chan = chan
        self._unfinished = unfinished
        self._closed = False

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Puts item, by value. Raises queue.Full if there is no room: at once with block=False,
        else after `timeout` seconds; SerializationError; ValueError after close()."""
        self._check()
        count = self._unfinished
        if count is not None:
            count.add(1)  # first: who gets it may be done with it before put() returns
        try:
            self._chan.put(item, timeout if block else 0)
        except BaseException as e:
            if count is not None:
                count.done()
            if isinstance(e, TimeoutError):
                raise Full from None
            raise

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next item. Raises queue.Empty if there is none: at once with block=False, else after
        `timeout` seconds; ValueError after close()."""
        self._check()
        try:
            return self._chan.get(timeout if block else 0)
        except TimeoutError:
            raise Empty from None

    def put_nowait(self, item: T) -> None:
        self.put(item, False)

    def get_nowait(self) -> Any:
        return self.get(False)

    def qsize(self) -> int:
        return len(self._chan)

    def empty(self) -> bool:
        return len(self._chan) == 0

    def full(self) -> bool:
        return len(self._chan) >= self._chan.cap

    def task_done(self) -> None:
        """An item that get() has given is done. Raises ValueError if all were already."""
        try:
            if self._unfinished is None:
                raise SyncError
            self._unfinished.done()
        except SyncError:
            raise ValueError("task_done() called too many times") from None

    def join(self) -> None:
        """Waits until task_done() was called for each item that was put."""
        if self._unfinished is not None:
            self._unfinished._block()

    def close(self) -> None:
        self._closed = True

    def join_thread(self) -> None:
        """Nothing: there is no feeder's thread."""

    def cancel_join_thread(self) -> None:
        """Nothing: there is no feeder's thread."""

    def _check(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Queue) and self._chan == other._chan

    def __hash__(self) -> int:
        return hash(self._chan)

    def __repr__(self) -> str:
        return f"<mpgort queue on {self._chan!r}>"
