"""What Executor and Pool stand on: a Runtime, what was given to it, and who brings the ends back.

Every task is a goroutine that an Engine's DoneQueue has started (shm/doneq.c): however it ends, by
a value, an exception or the death of its worker, its handle comes out of that queue, and the task
it belongs to is told (`ended`). Nothing polls, and nothing can be lost with a worker.

max_workers is a promise, as elsewhere: while so many tasks run no other begins, also when they
stand in calls that block (a Runtime starts another worker then). Those that await, or wait in the
runtime (ch.get, h.result), do not count: they would wait for each other for ever.

WHO READS THE QUEUE holds `turn`. A thread of the engine's own, the collector, does, so that
callbacks run and as_completed() goes on while the user's threads do something else. But a result
that goes by way of the collector costs a second wake of a thread (30 us) and a fight for the GIL;
so a thread that waits for a result takes the turn itself and reads until it has what it waits for
(`lead`). While threads do that the collector dozes: it looks every millisecond, and takes the turn
back when nobody has led for a while. A leader that finds the turn taken waits as any thread would;
its wish (`wanted`) makes the collector step back at the next end.

CTRL-C, and what any signal's handler raises, strikes the main thread between any two bytecodes,
also while it leads. What the queue gave is put into `inbox` without a bytecode in between, and
stays there until its task has been told, who does not mind being told twice (`told`). The turn is
no lock: between its acquire() and a `try` there would be a place to be struck at. It is the first
place in a dict, given back by one pop().

THE END. `close` lets everything run that was submitted, then the collector ends the runtime. It
ends by itself when its Executor is garbage, and at the interpreter's exit, before other exit
functions (as concurrent.futures does). An engine that is broken (the initializer failed, a
goroutine started by `go` panicked) fails all its tasks with that as the cause.

The collector is a second thread, but no reason not to start the next program by fork: whoever does
so takes all turns first (`stand_still`).

A forked child has none of its parent's engines: `alive` is False there."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Any, Protocol

from mpgort import _core, _host
from mpgort._errors import Killed
from mpgort._exc import _RemoteTraceback as RemoteTraceback
from mpgort._options import Given, check_method, collectors
from mpgort._run import Runtime

SLICE_S = 0.1  # the collector looks at keeper and reports this often
DOZE_S = 0.001
AWAY_S = 0.005  # nobody has led for so long: the collector takes over

Handle = _core.Goroutine[Any]


class Task(Protocol):
    """Something that waits for the end of a goroutine. Both may be called more than once."""

    def ended(self, h: Handle) -> None: ...
    def fail(self, exc: BaseException) -> None: ...
    def cancel(self) -> Any: ...


class Ended:
    """Stands in `pending` for a goroutine that has ended before its task was entered there."""


ENDED: Any = Ended()


def method_of(context: Any, start_method: str | None) -> str | None:
    """The start method that a multiprocessing context (or its name) stands for."""
    if start_method is not None:
        return check_method("start_method", start_method)
    if context is None:
        return None
    if isinstance(context, str):
        return check_method("context", context)
    if not hasattr(context, "get_start_method"):
        raise TypeError(f"a context is one of multiprocessing, or its name, not {context!r}")
    method: str = context.get_start_method()
    return method


def recast(exc: BaseException, kind: type[Exception]) -> BaseException:
    """exc with where it came from in a cause of the peer's own type, for those who look for
    that."""
    cause = exc.__cause__
    if isinstance(cause, RemoteTraceback):
        exc.__cause__ = kind(str(cause))
    return exc


def last() -> None:
    """Started by close(): its end wakes who reads the queue."""


class Nobody:
    """The task of `last`."""

    def ended(self, h: Handle) -> None:
        pass

    def fail(self, exc: BaseException) -> None:
        pass

    def cancel(self) -> None:
        pass


class Engine:
    def __init__(
        self,
        procs: int | None,
        options: Given,
        terminate_at_exit: bool = False,
        retries: int = 0,
    ) -> None:
        """options: its Runtime's, which checks them. retries: of each task, as those of spawn."""
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        self.runtime = Runtime(procs, **options)
        self.procs = max(1, self.runtime._prog.procs)
        self.runtime._prog.promise_procs()
        self.queue = _core.done_queue(self.runtime._prog)
        self.pid = os.getpid()
        self.retries = retries
        self.pending: dict[Handle, Task] = {}
        self.jobs: set[Any] = set()  # maps that have more to give out than `pending` says
        self.inbox: collections.deque[Handle] = collections.deque()
        self.told: Handle | None = None  # of the inbox, the first: its task has been told
        self.turns: dict[object, None] = {}  # who wants the turn; the first has it
        self.wanted = False
        self.peeking = False  # the collector has the turn for a moment only
        self.led = 0.0  # when somebody last led
        self.ticked = 0.0
        self.closing = False
        self.terminating = False
        self.terminate_at_exit = terminate_at_exit
        self.broken: BaseException | None = None
        self.leader = 0  # the thread that leads
        self.teller = 0  # the thread that tells tasks just now: callbacks run in it
        self.thread = threading.Thread(target=self.collect, name="mpgort-collector", daemon=True)
        _engines.add(self)
        collectors.add(self.thread)
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.pid == os.getpid() and self.broken is None

    def why_not_alive(self) -> RuntimeError:
        if self.pid != os.getpid():
            return RuntimeError("this pool belongs to the process that this one was forked from")
        if _exiting:
            return RuntimeError("cannot schedule new futures after interpreter shutdown")
        return self.why_broken()

    def why_broken(self) -> BrokenExecutor:
        """A fresh exception: it is raised in several threads."""
        why = self.broken if isinstance(self.broken, Killed) else repr(self.broken)
        e = BrokenProcessPool(f"the pool has ended: {why}")
        e.__cause__ = self.broken
        return e

    def spawn(
        self, task: Task, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Handle:
        """Starts fn(*args, **kwargs) for task. Raises what the arguments' crossing raises."""
        h = self.queue.spawn(fn, args, kwargs, self.retries)
        if self.pending.setdefault(h, task) is ENDED:
            del self.pending[h]
            task.ended(h)
        return h

    # ---- reading the queue -------------------------------------------------------------------

    def drain(self, timeout: float) -> None:
        """With the turn. Tells the tasks that have ended; waits for the first up to `timeout`."""
        if not self.inbox:
            now = time.monotonic()
            if now - self.ticked > SLICE_S:
                self.ticked = now
                self.runtime._host.tick()
            self.receive(timeout)
        self.teller = threading.get_ident()
        while self.inbox:
            h = self.inbox[0]
            if self.told is not h:
                task = self.pending.setdefault(h, ENDED)
                if task is not ENDED:
                    task.ended(h)
                self.told = h
            if self.pending.get(h) is not ENDED:
                self.pending.pop(h, None)
            self.inbox.popleft()
        self.teller = 0

    def receive(self, timeout: float) -> None:
        """From the queue into the inbox, in one step: see CTRL-C."""
        self.inbox.extend(chain.from_iterable(map(self.queue.take, (timeout,))))

    def has_turn(self, token: object) -> bool:
        """Queues up for the turn, and says whether it has come."""
        self.turns[token] = None
        return list(self.turns)[0] is token  # one step, under the GIL

    def lead(self, done: Callable[[], bool], deadline: float | None) -> None:
        """Reads the queue until done(), if nobody else does; returns at the deadline at the latest.
        The caller looks afterwards whether it is done, and waits if not."""
        token, leads = object(), False
        self.wanted = True
        try:
            if not self.has_turn(token):
                if not self.peeking:
                    return
                for _ in range(10):  # the collector has it for a moment only
                    time.sleep(DOZE_S / 10)
                    if self.has_turn(token):
                        break
                else:
                    return
            leads, self.leader = True, threading.get_ident()
            while not done() and self.broken is None:
                self.led = time.monotonic()
                left = SLICE_S
                if deadline is not None:
                    left = min(left, deadline - self.led)
                    if left <= 0:
                        break
                try:
                    self.drain(left)
                except Exception as e:
                    if not self.is_broken():
                        raise
                    self.break_down(e)
        finally:
            self.turns.pop(token, None)  # first and in one step: see CTRL-C
            if leads:
                self.leader = 0
            self.led = time.monotonic()

    def is_broken(self) -> bool:
        """Whether what drain() has raised is of the runtime: then it is raised again. Else it is
        of a signal's handler that has run meanwhile, and the affair of who waits."""
        try:
            self.runtime._host.tick()
            self.receive(0.0)
        except Exception:
            return True
        return False

    def collect(self) -> None:
        """The collector's thread."""
        while not self.over():
            if self.wanted:
                self.doze()
            else:
                self.read(SLICE_S)
        self.wind_up()

    def read(self, timeout: float) -> None:
        """The collector reads, if nobody leads."""
        token = object()
        if self.has_turn(token) and self.broken is None:
            try:
                self.drain(timeout)
            except BaseException as e:
                self.break_down(e)
        self.turns.pop(token, None)

    def doze(self) -> None:
        while not self.over():
            time.sleep(DOZE_S)
            if not self.turns and time.monotonic() - self.led > AWAY_S:
                self.wanted = False
                return
            self.peeking = True
            self.read(0)
            self.peeking = False

    def over(self) -> bool:
        if self.broken is not None or self.terminating:
            return True
        if not self.closing or self.jobs or self.inbox:
            return False
        return all(task is ENDED for task in list(self.pending.values()))

    # ---- the end -----------------------------------------------------------------------------

    def break_down(self, exc: BaseException) -> None:
        """Nothing comes any more: every task fails."""
        if self.broken is None:
            self.broken = exc
        self.fail_all(self.why_broken())

    def fail_all(self, exc: BaseException) -> None:
        while self.pending:
            _, task = self.pending.popitem()
            if task is not ENDED:
                task.fail(exc)
        for job in list(self.jobs):
            job.fail(exc)
        self.jobs.clear()

    def close(self) -> None:
        """What was submitted runs to its end; then the collector ends the runtime. Returns at
        once; may be called again."""
        if self.closing or self.pid != os.getpid():
            return
        self.closing = True
        self.wake()

    def terminate(self) -> None:
        """Everything ends now."""
        self.closing = self.terminating = True
        self.wake()

    def wake(self) -> None:
        try:
            self.spawn(Nobody(), last, (), {})
        except Exception:
            pass  # it has ended, or has no memory left: found at the end of the slice

    def cancel_all(self) -> None:
        """Takes back what has not begun."""
        for task in list(self.pending.values()):
            if task is not ENDED:
                task.cancel()
        for job in list(self.jobs):
            job.cancel()

    def join(self, timeout: float | None = None) -> None:
        if self.pid == os.getpid() and threading.current_thread() is not self.thread:
            self.thread.join(timeout)

    def wind_up(self) -> None:
        """In the collector's thread, its last act."""
        self.closing = True
        self.runtime.shutdown(drain=False)
        if self.broken is None:
            self.broken = Killed("it was shut down")
        self.fail_all(self.why_broken())
        _engines.discard(self)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_exiting = False


@contextlib.contextmanager
def stand_still() -> Iterator[None]:
    """Holds the turn of every engine, so that no collector runs a callback, which may hold any
    lock: then this process can be forked. Gives up waiting for another thread that leads: where
    there is one, it was told to fork all the same."""
    token, me = object(), threading.get_ident()
    deadline = time.monotonic() + 3 * SLICE_S
    engines = [e for e in list(_engines) if e.pid == os.getpid() and e.leader != me != e.teller]
    try:
        for engine in engines:
            engine.wanted = True
            while not engine.has_turn(token) and time.monotonic() < deadline:
                time.sleep(DOZE_S)
        yield
    finally:
        for engine in engines:
            engine.turns.pop(token, None)


_host.stand_still = stand_still


def at_exit() -> None:
    global _exiting
    _exiting = True
    engines = list(_engines)
    for engine in engines:
        if engine.terminate_at_exit:
            engine.terminate()
        else:
            engine.close()
    for engine in engines:
        engine.join()


def after_fork_in_child() -> None:
    for engine in list(_engines):
        engine.pending.clear()
        engine.jobs.clear()
    _engines.clear()


threading._register_atexit(at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=after_fork_in_child)
