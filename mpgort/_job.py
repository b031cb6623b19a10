"""One map over many items: dealt out in chunks whose size is measured, results put in order.

A chunk is one goroutine, `run_items` on a worker. Its answer says how long the items took, what
each gave, which failed, and which were not reached: after 10 ms in one turn a worker gives up and
sends the rest back, so a guess that was bad costs 10 ms and not the length of a chunk of slow
items.

THE SIZE of the next chunk is what takes TARGET_NS by the last one's figures (the call itself, and
what encoding and decoding its items took here), at most GROWTH times the last size, and at most
such a share of what is left that all workers finish together. The first are of one item.

WHAT IS SENT WHEN. Up to WINDOW chunks per worker are on their way. Items that have come are never
held back while a worker may be idle: with fewer chunks out than workers, what is there is sent,
however little. So an iterable that waits for results of its own earlier items goes on.

WHO READS THE ITERABLE: Executor.map reads it all at the call, as concurrent.futures does, or with
`limit` (buffersize) as much as that allows, at the call and in next(). Pool.imap reads in a thread
of its own (`feed_from`), because the iterable may block, or be endless. No lock is held while it is
read: it may wait for other results of this pool, and these are told under the lock.

WHAT AN ITEM COSTS THE CALLER is what bounds a map of trivial calls, since all items pass through
one process. So there is no step of Python per item between the iterable and the reader: items are
cut off in slices (`Buffer`), a range goes as a range, and results are given out of their chunk's
list by C (`_core.Drain`)."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from typing import Any

from mpgort import _core
from mpgort._engine import Engine, Handle, recast

TARGET_NS = 2_000_000
GROWTH = 16
WINDOW = 3
MOST = 1 << 16
AHEAD = 4  # windows of items that a feeder reads ahead

clock = time.perf_counter_ns


class Failure:
    """Stands among the results for an item that failed."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc


class Buffer:
    """Items that have come and are not sent. Those of a range are made where they are used."""

    __slots__ = ("items", "gone")

    def __init__(self, items: list[Any] | range) -> None:
        self.items = items
        self.gone = 0  # of the first: taken

    def __len__(self) -> int:
        return len(self.items) - self.gone

    def extend(self, source: Iterable[Any]) -> None:
        """One by one, each to be taken as soon as it is here, also while source blocks."""
        assert isinstance(self.items, list)
        self.items.extend(source)

    def take(self, n: int) -> Sequence[Any]:
        taken = self.items[self.gone : self.gone + n]
        self.gone += len(taken)
        if isinstance(self.items, list) and 2 * self.gone > len(self.items):
            del self.items[: self.gone]  # in place: somebody may be in extend()
            self.gone = 0
        return taken

    def clear(self) -> None:
        self.take(len(self))


def run_items(
    fn: Callable[..., Any], given: Sequence[Any], star: bool, each: bool
) -> tuple[int, list[Any], list[tuple[int, bytes]], list[Any]]:
    """On a worker: (ns, results, failures as (index, exception), items not reached).

    each: items after one that failed are run too."""
    started = clock()
    items = list(given)
    out: list[Any] = []
    failures: list[tuple[int, bytes]] = []
    at = 0
    while at < len(items):
        try:
            at = _core.run_chunk(fn, items, at, out, star)
            break
        except BaseException as e:
            failures.append((len(out), _core.exc_encode(e)))
            if not each:
                at = len(items)
                break
            out.append(None)
            at = len(out)
    return clock() - started, out, failures, items[at:]


async def await_items(
    fn: Callable[..., Any], items: Sequence[Any], star: bool, each: bool
) -> tuple[int, list[Any], list[tuple[int, bytes]], list[Any]]:
    """The same where fn makes coroutines: one after the other."""
    started = clock()
    out: list[Any] = []
    failures: list[tuple[int, bytes]] = []
    for item in items:
        try:
            out.append(await (fn(*item) if star else fn(item)))
        except BaseException as e:
            failures.append((len(out), _core.exc_encode(e)))
            if not each:
                break
            out.append(None)
    return clock() - started, out, failures, []


class Chunk:
    """Items [base, base + n) on their way."""

    __slots__ = ("job", "base", "n", "sent_ns", "handle")

    def __init__(self, job: Job, base: int, n: int) -> None:
        self.job = job
        self.base = base
        self.n = n
        self.sent_ns = 0
        self.handle: Handle | None = None

    def ended(self, h: Handle) -> None:
        self.job.chunk_ended(self, h)

    def fail(self, exc: BaseException) -> None:
        self.job.chunk_failed(self, exc)

    def cancel(self) -> None:
        self.job.cancel()


class Job:
    """A map. Iterating gives lists of results as they come; a failure is raised at its place, and
    may be gone on after. `on_whole` is called when all are there."""

    def __init__(
        self,
        engine: Engine,
        fn: Callable[..., Any],
        source: Iterable[Any],
        *,
        star: bool = False,
        each: bool = False,
        size: int | None = None,
        ordered: bool = True,
        limit: int | None = None,
        coro: bool = False,
        lazy: bool = False,
        late: type[Exception] = TimeoutError,
        cause: type[Exception],
        on_whole: Callable[[Job], None] | None = None,
    ) -> None:
        """late: raised past the deadline. cause: what a remote exception's cause is here."""
        self.engine = engine
        self.fn = fn
        self.run: Callable[..., Any] = await_items if coro else run_items
        self.star = star
        self.each = each
        self.size = size
        self.ordered = ordered
        self.limit = None if limit is None else limit * (size or 1)
        self.late = late
        self.cause = cause
        self.on_whole = on_whole
        self.deadline: float | None = None
        self.lock = threading.RLock()
        self.cond = threading.Condition(self.lock)
        self.room = threading.Condition(self.lock)  # for the feeder
        self.buffer = Buffer([])
        self.again: collections.deque[tuple[int, Sequence[Any]]] = collections.deque()  # sent back
        self.source: Iterator[Any] | None = None  # not read to its end
        self.reading = False  # with a limit: somebody is
        self.flying: set[Chunk] = set()
        self.next_base = 0
        self.at = 0  # results given out (ordered: which is next)
        self.got = 0  # results that have come
        self.out: dict[int, tuple[int, list[Any]]] = {}
        self.parts: collections.deque[Any] = collections.deque()
        self.ns = 0.0  # of an item
        self.last_size = 1
        self.feeding = False
        self.stopped: BaseException | None = None
        if self.limit is not None:
            self.source = iter(source)
            self.read_ahead()
        elif isinstance(source, range) or not lazy:
            self.buffer = Buffer(source if isinstance(source, range) else list(source))
            if self.buffer:
                engine.jobs.add(self)
            self.feed()
            self.look_whole()
        else:
            self.source = iter(source)
            engine.jobs.add(self)
            if hasattr(source, "__len__"):
                self.read_to_end(self.source)
            else:
                name = "mpgort-feeder"
                threading.Thread(target=self.feed_from, name=name, daemon=True).start()

    # ---- giving out ----------------------------------------------------------------------------

    def next_size(self) -> int:
        if self.size is not None:
            return self.size
        if self.ns == 0.0:
            return 1
        procs = self.engine.procs
        n = min(int(TARGET_NS / self.ns), self.last_size * GROWTH, MOST)
        if self.limit is not None:
            n = min(n, self.limit // (2 * procs))
        elif self.source is None:
            n = min(n, len(self.buffer) // (2 * procs))
        return max(1, n)

    def feed(self) -> None:
        """Sends what can be sent."""
        with self.lock:
            if self.feeding or self.stopped is not None:
                return
            self.feeding = True
            try:
                procs = self.engine.procs
                while self.again or self.buffer:
                    out = len(self.flying)
                    if out >= WINDOW * procs:
                        break
                    n = self.next_size()
                    if self.again:
                        base, items = self.again.popleft()
                        if len(items) > n:
                            self.again.appendleft((base + n, items[n:]))
                            items = items[:n]
                    else:
                        short = len(self.buffer) < n and self.source is not None
                        if short and (self.size is not None or out >= procs):
                            break
                        n = self.last_size = min(n, len(self.buffer))
                        base, self.next_base = self.next_base, self.next_base + n
                        items = self.buffer.take(n)
                    self.send(base, items)
                    del items
                self.room.notify()
            finally:
                self.feeding = False
            if not self.buffer and not self.again and self.source is None:
                self.engine.jobs.discard(self)

    def send(self, base: int, items: Sequence[Any]) -> None:
        chunk = Chunk(self, base, len(items))
        self.flying.add(chunk)
        started = clock()
        try:
            args = (self.fn, items, self.star, self.each)
            chunk.handle = self.engine.spawn(chunk, self.run, args, {})
        except Exception as e:
            self.chunk_failed(chunk, e)
        chunk.sent_ns = clock() - started

    def read_ahead(self) -> None:
        """With a limit: reads so much that at most `limit` items are between the iterable and the
        reader of the results."""
        assert self.limit is not None
        with self.lock:
            source = self.source
            n = self.limit - (self.next_base + len(self.buffer) - self.at)
            if source is None or self.stopped is not None or self.reading or n <= 0:
                return
            self.reading = True
        try:
            items = list(islice(source, n))
        finally:
            self.reading = False
        with self.lock:
            if len(items) < n:
                self.source = None
            if self.stopped is None:
                self.buffer.extend(items)
        self.feed()

    def feed_from(self) -> None:
        """The feeder's thread."""
        assert self.source is not None
        source = self.watched(self.source)
        try:
            while self.source is not None and self.stopped is None:
                with self.lock:
                    while len(self.buffer) >= self.ahead() and self.stopped is None:
                        self.room.wait(1.0)
                    n = max(1, min(self.next_size(), 256))
                self.buffer.extend(islice(source, n))
                if len(self.flying) < WINDOW * self.engine.procs:
                    self.feed()
        except BaseException as e:
            self.source_ended(e)

    def watched(self, source: Iterator[Any]) -> Iterator[Any]:
        """Before source may block, what it gave so far is sent if workers are idle. (If they are
        not, the end of a chunk will see to it.)"""
        procs = self.engine.procs
        for item in source:
            yield item
            if len(self.flying) < procs:
                self.feed()
        self.source_ended(None)

    def ahead(self) -> int:
        return AHEAD * WINDOW * self.engine.procs * self.next_size()

    def read_to_end(self, source: Iterator[Any]) -> None:
        try:
            self.buffer.extend(source)
        except BaseException as e:
            self.source_ended(e)
        else:
            self.source_ended(None)

    def source_ended(self, exc: BaseException | None) -> None:
        """exc comes as one more item after all before it (but those of a chunk of given size that
        it has cut short, as with multiprocessing)."""
        with self.lock:
            if exc is not None and self.stopped is None:
                n = len(self.buffer)
                items = self.buffer.take(n - n % self.size if self.size else n)
                self.buffer.clear()
                if items:
                    self.again.append((self.next_base, items))
                    self.next_base += len(items)
                self.next_base += 1
                self.deliver(self.next_base - 1, 1, [Failure(exc)])
            self.source = None
            self.feed()
            self.cond.notify_all()
        self.look_whole()

    # ---- what comes back -----------------------------------------------------------------------

    def chunk_ended(self, chunk: Chunk, h: Handle) -> None:
        started = clock()
        value, exc = h._outcome()
        if exc is not None:
            self.chunk_failed(chunk, exc)
            return
        ns, results, failures, rest = value
        decoded = clock() - started
        with self.lock:
            if chunk not in self.flying:
                return  # told twice, or cancelled
            self.flying.discard(chunk)
            n = chunk.n - len(rest)
            done = max(1, len(results))
            self.ns = max(1.0, (ns + decoded) / done + chunk.sent_ns / chunk.n)
            if rest:
                self.last_size = done
                self.again.append((chunk.base + n, rest))
            prog = self.engine.runtime._prog
            failed = [(i, _core.exc_from(prog, data)) for i, data in failures]
            self.deliver(chunk.base, n, pieces(results, failed, self.each))
        self.feed()
        self.look_whole()

    def chunk_failed(self, chunk: Chunk, exc: BaseException) -> None:
        with self.lock:
            if chunk not in self.flying:
                return
            self.flying.discard(chunk)
            self.deliver(chunk.base, chunk.n, [Failure(exc)] * (chunk.n if self.each else 1))
        self.feed()
        self.look_whole()

    def deliver(self, base: int, n: int, parts: list[Any]) -> None:
        """The lock held."""
        self.got += n
        self.out[base] = (n, parts)
        self.cond.notify_all()

    def look_whole(self) -> None:
        tell = None
        with self.lock:
            if self.on_whole is not None and self.is_whole():
                tell, self.on_whole = self.on_whole, None
        if tell is not None:
            tell(self)

    def is_whole(self) -> bool:
        """The lock held."""
        return self.got == self.next_base and not self.buffer and self.source is None

    # ---- who reads -----------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether next() would not wait."""
        with self.lock:
            there = self.at in self.out if self.ordered else self.out
            return bool(there or self.parts) or self.stopped is not None or self.given()

    def given(self) -> bool:
        """Whether nothing is left to give out. The lock held."""
        return self.at == self.next_base and not self.buffer and self.source is None

    def __iter__(self) -> Job:
        return self

    def __next__(self) -> list[Any]:
        while True:
            if self.limit is not None:
                self.read_ahead()
            with self.lock:
                if not self.parts and self.out:
                    base = self.at if self.ordered else next(iter(self.out))
                    n, parts = self.out.pop(base, (0, []))
                    self.at += n
                    self.parts.extend(parts)
                if self.parts:
                    part: list[Any] | Failure = self.parts.popleft()
                    break
                if self.stopped is not None:
                    raise self.stopped
                if self.given():
                    raise StopIteration
            self.wait()
        if not isinstance(part, Failure):
            return part
        if isinstance(part.exc, StopIteration):  # it would be the end, and the rest never missed
            raise RuntimeError("a task raised StopIteration") from part.exc
        raise recast(part.exc, self.cause)

    def wait(self) -> None:
        """Until ready. Raises `late` past the deadline."""
        while not self.ready():
            self.engine.lead(self.ready, self.deadline)
            with self.cond:
                if self.ready():
                    return
                left = None if self.deadline is None else self.deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise self.late
                self.cond.wait(left)

    # ---- the end -------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Gives nothing more out and takes back what has not begun."""
        self.fail(CancelledError())
        for chunk in list(self.flying):
            try:
                if chunk.handle is not None and chunk.handle._withdraw():
                    self.flying.discard(chunk)
            except Exception:
                pass  # its runtime has ended

    def fail(self, exc: BaseException) -> None:
        """Readers get exc after the results that are there."""
        with self.lock:
            if self.stopped is None and not (self.is_whole() and not self.flying):
                self.stopped = exc
            self.buffer.clear()
            self.again.clear()
            self.engine.jobs.discard(self)
            self.cond.notify_all()
            self.room.notify()


def pieces(results: list[Any], failures: list[tuple[int, BaseException]], each: bool) -> list[Any]:
    """Lists of results, with a Failure between where an item failed."""
    if not failures:
        return [results] if results else []
    parts: list[Any] = []
    at = 0
    for i, exc in failures:
        if i > at:
            parts.append(results[at:i])
        parts.append(Failure(exc))
        at = i + 1
    if each and at < len(results):
        parts.append(results[at:])
    return parts
