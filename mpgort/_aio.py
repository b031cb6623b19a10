"""asyncio as a guest: rt.call, rt.stream, and `await handle` in a loop that is no goroutine.

An event loop's thread must not sleep in a wait of ours, and a loop cannot be woken from another
process. So a thread of this one waits in the loop's stead, and wakes it by call_soon_threadsafe:

  call     one thread per Runtime (`Guest`) for any number of calls: they are started by a DoneQueue
           (shm/doneq.c), whose ends it reads. It ends when it has had nothing to wait for for a
           second. A value is decoded in it, not in the loop.
  await h  may come long after h was started by somebody else, when it is too late for the queue. A
           goroutine of our own, started by the queue, awaits h: its end says that h has ended.
           Where h ends, a worker is free to run it, so full workers do not hold it up.
  stream   takes what is there in the loop itself, without a thread between. Only an empty channel
           costs a thread, for as long as it is empty. A goroutine per wait would be cheaper, but
           had to wait for a worker while all of them compute, and what it had received would die
           with its worker.

INV one-fetch: while a stream's thread is under way nobody else of this stream receives, so messages
come in order, however often a waiter was cancelled. What the thread brings goes into `_kept` first,
and only then is anybody woken: a waiter that was cancelled meanwhile has held nothing.

An exception travels as a value to the waiting coroutine and is raised there: a Future does not take
a StopIteration, and complains of exceptions that nobody came for."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpgort import _core
from mpgort._errors import Closed, Killed, MDied
from mpgort._group import _hand_over

if TYPE_CHECKING:
    from mpgort._host import Host

SLICE_S = 0.1  # a waiting thread looks at keeper, reports and its own end this often
IDLE_SLICES = 10
BURST = 64  # so many messages that were there already, then the loop's other tasks have a turn

Handle = _core.Goroutine[Any]
End = tuple[Any, BaseException | None]


def look(host: Host) -> None:
    """Raises what has ended the program. A wait of a slice is too short to say so itself."""
    if host.stopped:
        raise Killed("the runtime was shut down")
    host.tick()
    failure = _core.failure(host.prog)
    if failure is not None:
        raise failure


def end_of(h: Handle) -> End:
    """How h, which has ended, did so. A value that cannot be decoded here is an exception too."""
    try:
        exc = h.exception()
        return (None, exc) if exc is not None else (h.result(), None)
    except BaseException as e:
        return None, e


def give(end: End) -> Any:
    value, exc = end
    if exc is None:
        return value
    try:
        raise exc
    finally:
        del end, exc  # no cycle through its traceback


def settle(future: asyncio.Future[End], end: End) -> None:
    if not future.done():  # cancelled with its task
        future.set_result(end)


def tell(future: asyncio.Future[End], end: End) -> None:
    """From any thread."""
    with contextlib.suppress(RuntimeError):  # the loop was closed, nobody waits any more
        future.get_loop().call_soon_threadsafe(settle, future, end)


class Guest:
    """The calls into one program, from all loops of this process."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.queue = _core.done_queue(host.prog)
        self.lock = threading.Lock()  # of what follows
        self.waiting: dict[Handle, asyncio.Future[End]] = {}
        self.reading = False
        self.idle = 0

    async def end(self, fn: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]) -> End:
        """Runs fn as a goroutine, which is cancelled if the waiting task is."""
        future: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        with self.lock:  # the end may be there before spawn() has returned
            h = self.queue.spawn(fn, args, kw)
            self.waiting[h] = future
            if not self.reading:
                threading.Thread(target=self.read, name="mpgort-asyncio", daemon=True).start()
                self.reading = True
                self.idle = 0
        try:
            return await future
        except BaseException:
            with contextlib.suppress(Exception):  # its program has just ended
                if not h._withdraw():
                    h.cancel()
            raise

    def read(self) -> None:
        try:
            while self.wanted():
                look(self.host)
                self.pass_on(self.queue.take(SLICE_S))
        except BaseException as e:
            self.fail(e)

    def wanted(self) -> bool:
        with self.lock:
            self.idle = 0 if self.waiting else self.idle + 1
            self.reading = self.idle <= IDLE_SLICES
            return self.reading

    def pass_on(self, ended: list[Handle]) -> None:
        for h in ended:
            with self.lock:
                future = self.waiting.pop(h)
            tell(future, end_of(h))

    def fail(self, exc: BaseException) -> None:
        """The program has ended. What ended before it has its own end."""
        with contextlib.suppress(Exception):
            while ended := self.queue.take(0):
                self.pass_on(ended)
        with self.lock:
            left, self.waiting = self.waiting, {}
            self.reading = False
        for future in left.values():
            tell(future, (None, exc))


def guest_of(host: Host) -> Guest:
    if host.guest is None:
        host.guest = Guest(host)
    return host.guest


async def call(
    host: Host, fn: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]
) -> Any:
    if not callable(fn):
        if asyncio.iscoroutine(fn):
            fn.close()  # its "never awaited" warning would say the same again
            raise TypeError("call: pass the function and its arguments: call(f, x), not call(f(x))")
        raise TypeError(f"call: a function is needed, not {fn!r}")
    return give(await guest_of(host).end(fn, args, kw))


async def watch(h: Handle) -> None:
    """A goroutine. Ends when h has ended."""
    with contextlib.suppress(BaseException):
        await h


async def ended(host: Host | None, h: Handle) -> Any:
    """What `await h` is in a loop's thread. No host: its program has ended."""
    while not h.done():
        if host is None:
            raise Killed("the runtime was shut down")
        exc = (await guest_of(host).end(watch, (h,), {}))[1]
        if exc is not None and not isinstance(exc, MDied):
            raise exc
    return give(end_of(h))


class Stream:
    """Receives from a channel in an asyncio loop: see Runtime.stream."""

    def __init__(self, host: Host, ch: _core.Chan[Any]) -> None:
        self._host = host
        self._ch = ch.recv_only()
        self._kept: collections.deque[End] = collections.deque()
        self._fetch: asyncio.Future[End] | None = None  # done when the thread under way is back
        self._waiters = 0
        self._burst = 0

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        self._burst += 1
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)
        while True:
            if self._kept:
                return give(self._kept.popleft())
            if self._fetch is None:
                try:
                    return self._ch.get(0)
                except Closed:
                    raise StopAsyncIteration from None
                except TimeoutError:
                    pass
            self._waiters += 1
            try:
                # wait() leaves the future alone when this task is cancelled; others may wait too.
                await asyncio.wait((self._fetch or self._start(),))
            finally:
                self._waiters -= 1
            self._burst = 0

    def _start(self) -> asyncio.Future[End]:
        loop = asyncio.get_running_loop()
        future = self._fetch = loop.create_future()

        def back(value: Any, exc: BaseException | None) -> None:
            if exc is not None:
                self._kept.append((None, exc))
            try:
                loop.call_soon_threadsafe(arrived)
            except RuntimeError:  # the loop was closed; another one may go on with this stream
                self._fetch = None

        def arrived() -> None:
            self._fetch = None
            future.set_result((None, None))

        _hand_over((contextvars.copy_context(), self._bring, (), {}, back))
        return future

    def _bring(self) -> None:
        """In a thread: brings one message, or the news that there is none to come."""
        while self._waiters:
            look(self._host)
            try:
                self._kept.append((self._ch.get(SLICE_S), None))
            except TimeoutError:
                continue
            except Closed:
                pass
            return
