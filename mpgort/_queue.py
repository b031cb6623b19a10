"""`chan.as_queue()`: a channel under the names of multiprocessing.Queue and queue.Queue.

For code that has such a queue already, in threads or plain functions. What is in the channel may
have been sent or be received by either name. So the bounds are the channel's: one of size n is full
with n items, one of size 0 hands each item over to who waits in get(). A put() that cannot cross
raises there and then; nothing is behind a feeder's thread, so what was put is in the queue, and
qsize, empty and full say what is so at that moment.

close() is multiprocessing's: this process puts and gets no more; others go on. (The channel's own
close() ends it for all: `Closed` from get once it is drained, ChanError from put.)"""

from __future__ import annotations

from queue import Empty, Full
from typing import Any, Generic, TypeVar

from mpgort._core import Chan

T = TypeVar("T")


class Queue(Generic[T]):
    def __init__(self, chan: Chan[T]) -> None:
        self._chan = chan
        self._closed = False

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Puts item, by value. Raises queue.Full if there is no room: at once with block=False,
        else after `timeout` seconds; SerializationError; ValueError after close()."""
        self._check()
        try:
            self._chan.put(item, timeout if block else 0)
        except TimeoutError:
            raise Full from None

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
