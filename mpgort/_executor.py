"""Executor: concurrent.futures over goroutines. A face: the work is in _engine.py and _job.py.

It is ProcessPoolExecutor's interface as CPython 3.14 has it, and differs where that one is bound
by its design: a dead worker fails the task that it ran and no other; lambdas, closures and
coroutine functions may be submitted; the chunks of map() are chosen by measuring; a task is a
goroutine, so it may start others, and wait for them, without holding a worker.

A future's task has begun (`running()`) when a worker has made the call, not when it was queued;
until then `cancel()` takes it back, for certain: whoever moves the join's `begun` first has it."""

from __future__ import annotations

import concurrent.futures
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import _base
from concurrent.futures.process import _RemoteTraceback
from typing import Any, ParamSpec, TypeVar

from mpgort import _core
from mpgort._engine import SLICE_S, Engine, Handle, method_of, recast
from mpgort._job import Job
from mpgort._options import Given, check_bound, deadline_in, default_procs, integer, whole
from mpgort._service import full

P = ParamSpec("P")
T = TypeVar("T")


class Future(concurrent.futures.Future[T]):
    """What submit() returns. Waiting for it reads the results of all (Engine.lead)."""

    _engine: Engine | None = None
    _handle: Handle | None = None
    _pid = 0

    def cancel(self) -> bool:
        h = self._handle
        if h is None or self.done():
            return self.cancelled()
        try:
            withdrawn = h._withdraw()
        except Exception:
            return self.cancelled()  # its runtime has just ended
        if withdrawn:
            self._mark_cancelled()
        return self.cancelled()

    def _mark_cancelled(self) -> None:
        with self._condition:
            if self._state != _base.PENDING:
                return
            self._state = _base.CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        self._handle = self._engine = None

    def running(self) -> bool:
        h = self._handle
        if h is None or self.done():
            return False
        try:
            return h._begun()
        except Exception:
            return False

    def result(self, timeout: float | None = None) -> T:
        return super().result(self._wait(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Leads until it is done, if it can; returns what is left of the timeout."""
        engine = self._engine
        if engine is None or self.done():
            return timeout
        if engine.pid != os.getpid():
            raise RuntimeError("this future belongs to the process that this one was forked from")
        deadline = deadline_in(timeout)
        engine.lead(self.done, deadline)
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    # ---- as a task (_engine.Task) ----------------------------------------------------------------

    def ended(self, h: Handle) -> None:
        if self.done():
            return
        if h._withdrawn():  # by a cancel() that will say so in a moment
            self._mark_cancelled()
            return
        value, exc = h._outcome()
        try:
            if exc is not None:
                self.set_exception(recast(exc, _RemoteTraceback))
            else:
                self.set_result(value)
        except concurrent.futures.InvalidStateError:
            pass  # told twice
        self._handle = self._engine = None

    def fail(self, exc: BaseException) -> None:
        try:
            self.set_exception(exc)
        except concurrent.futures.InvalidStateError:
            pass
        self._handle = self._engine = None


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling fn makes a coroutine, as far as one can see."""
    while hasattr(fn, "func"):  # functools.partial
        fn = fn.func
    return inspect.iscoroutinefunction(fn)


class Room:
    """max_pending: how many futures that are not done submit() lets there be."""

    def __init__(self, most: int, when_full: str) -> None:
        self.most = most
        self.blocks = when_full == "block"
        self.reset()

    def reset(self) -> None:
        """Also in a forked child, which has none of its parent's tasks."""
        self.cond = threading.Condition()
        self.pending = 0

    def count(self) -> int:
        return self.pending

    def free(self) -> bool:
        return self.pending < self.most

    def take(self, start: Callable[[], Engine]) -> None:
        """Waits for room, or raises queue.Full. Who waits reads the results of all (Engine.lead).

        Not in a done-callback: it runs in the thread that would have to make room."""
        while True:
            engine = start()
            with self.cond:
                if self.free() or engine.teller == threading.get_ident():
                    self.pending += 1
                    return
            if not self.blocks:
                raise full(self.most)
            engine.lead(self.free, None)
            with self.cond:
                if not self.free():
                    self.cond.wait(SLICE_S)

    def give(self, _: object = None) -> None:
        with self.cond:
            self.pending -= 1
            self.cond.notify()


class Executor(concurrent.futures.Executor):
    """A drop-in for ProcessPoolExecutor whose tasks are goroutines.

    max_workers: worker processes; default: the CPUs that this process may use. mp_context: a
    multiprocessing context, or its name; only the start method counts. initializer(*initargs) runs
    once in each worker; if it raises, the executor is broken. A worker is replaced after
    max_tasks_per_child tasks. The other options are those of `run`.

    max_pending: at so many futures that are not done, the next submit() waits until one is, or
    raises queue.Full (when_full="raise"); what done-callbacks submit is counted, but never waits.

    retries: when a worker dies, the task that it ran is run again so often, a coroutine from its
    last await, another from its start (of map() with all of its chunk), before it fails with MDied.

    Nothing is started before the first submit(). Safe in several threads. A child made by
    os.fork() starts workers of its own."""

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        start_method: str | None = None,
        heap_bytes: int | None = None,
        max_goroutines: int = 1 << 22,
        heavy_bytes: int = 16384,
        blas_threads: int | None = None,
        max_rss: int | None = None,
        name: str | None = None,
        scrub: bool = False,
        max_pending: int | None = None,
        when_full: str = "block",
        retries: int = 0,
    ) -> None:
        self._retries = whole("retries", retries, 0, (1 << 31) - 1)
        most = check_bound(max_pending, when_full)
        if max_workers is not None:
            if integer("max_workers", max_workers) <= 0:
                raise ValueError("max_workers must be greater than 0")
            whole("max_workers", max_workers, 1, _core.MAX_PROCS)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._procs = max_workers
        self._options = Given(
            start_method=method_of(mp_context, start_method),
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_m=max_tasks_per_child,
            heap_bytes=heap_bytes,
            max_goroutines=max_goroutines,
            heavy_bytes=heavy_bytes,
            blas_threads=blas_threads,
            max_rss=max_rss,
            name=name,
            scrub=scrub,
        )
        self._room = None if most is None else Room(most, when_full)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._shut_down = False
        _executors.add(self)

    @property
    def _max_workers(self) -> int:
        """Dask asks for it, as of every executor."""
        return self._procs or default_procs()

    @property
    def _broken(self) -> BaseException | None:
        engine = self._engine
        return None if engine is None or self._shut_down else engine.broken

    def _start(self) -> Engine:
        """The engine that takes tasks, started if need be."""
        engine = self._engine
        if engine is None or self._shut_down or not engine.alive:
            with self._lock:
                if self._shut_down:
                    raise RuntimeError("cannot schedule new futures after shutdown")
                engine = self._engine
                if engine is None:
                    engine = self._engine = Engine(
                        self._procs, self._options, retries=self._retries
                    )
                    engine.runtime._host.bound = self._room
                    weakref.finalize(self, engine.close).atexit = False
                elif not engine.alive:
                    raise engine.why_not_alive()
        return engine

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs fn(*args, **kwargs) as a goroutine on a worker; a coroutine is awaited there.

        An argument that cannot cross is the future's exception (SerializationError). The death of
        the worker that ran it is too (MDied); every other task goes on."""
        room = self._room
        if room is None:
            return self._submit(fn, args, kwargs)
        room.take(self._start)
        try:
            f = self._submit(fn, args, kwargs)
        except BaseException:
            room.give()
            raise
        f.add_done_callback(room.give)
        return f

    def _submit(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[T]:
        engine = self._start()
        f: Future[T] = Future()
        f._engine = engine
        try:
            f._handle = engine.spawn(f, fn, args, kwargs)
        except TypeError as e:
            if not callable(fn):
                raise
            f.fail(e)
        if f.done():  # it has ended before we knew its handle
            f._handle = f._engine = None
        return f

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As map(fn, *iterables), the calls made on the workers; results in order.

        chunksize: items per message; by default it is chosen by measuring how long an item takes.
        buffersize: at most so many items (chunks, if chunksize is given) are read ahead of the
        results. timeout: seconds from now; then next() raises TimeoutError."""
        if chunksize is not None and integer("chunksize", chunksize) < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        deadline = deadline_in(timeout)
        coro = is_async(fn)
        star = len(iterables) != 1
        source: Iterable[Any] = zip(*iterables, strict=False) if star else iterables[0]
        job = Job(
            self._start(),
            fn,
            source,
            star=star,
            size=1 if coro and chunksize is None else chunksize,
            limit=buffersize,
            coro=coro,
            cause=_RemoteTraceback,
        )
        return _core.Drain(given_out(job, deadline))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more tasks are taken; those that were are run, or taken back with cancel_futures.
        wait: returns when all have ended and no worker is left."""
        with self._lock:
            self._shut_down = True
            engine = self._engine
        if engine is None or engine.pid != os.getpid():
            return
        if cancel_futures:
            engine.cancel_all()
        engine.close()
        if wait:
            engine.join()

    def terminate_workers(self) -> None:
        """Ends the workers now, whatever they do, and the executor with them (as CPython 3.14's).

        What has not begun is cancelled; what ran raises BrokenProcessPool. Does not wait."""
        self.shutdown(wait=False, cancel_futures=True)
        engine = self._engine
        if engine is not None and engine.pid == os.getpid():
            engine.terminate()

    def kill_workers(self) -> None:
        """The same: the end of a worker asks no goroutine in either case."""
        self.terminate_workers()


def given_out(job: Job, deadline: float | None) -> Iterator[list[Any]]:
    """The results in lists. As with concurrent.futures an exception ends it; what has not begun is
    taken back when nobody can ask for it any more."""
    job.deadline = deadline
    try:
        yield from job
    finally:
        job.cancel()


_executors: weakref.WeakSet[Executor] = weakref.WeakSet()


def after_fork_in_child() -> None:
    for executor in list(_executors):
        executor._lock = threading.Lock()
        executor._engine = None
        if executor._room is not None:
            executor._room.reset()


os.register_at_fork(after_in_child=after_fork_in_child)
