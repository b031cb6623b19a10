"""run and Runtime: the two faces of a program.

`run` is a Host (_host.py) whose calling thread runs main, `Runtime` one that threads use from
outside. Both take the same options (_options.py)."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, NoReturn, Unpack

from mpgort import _core, _keeper, _m, _service
from mpgort._errors import Deadlock, GoroutinePanic, Killed
from mpgort._group import end_idle
from mpgort._host import Host, Lifted, Shield, hosts, watch_sigquit
from mpgort._options import Given, check_bound, check_options, deadline_in

_running = threading.Lock()  # held by the one run() of this process


def run(
    main: Callable[..., Any],
    /,
    *args: Any,
    procs: int | None = None,
    **options: Unpack[Given],
) -> Any:
    """Runs main(*args) as goroutine 1 here, every other goroutine on `procs` worker processes.

    Returns main's value or raises its exception; every other goroutine ends with it. Raises
    Deadlock, GoroutinePanic, MDied, OutOfSharedMemory; RuntimeError inside a goroutine or beside
    another run.

    Options: start_method ("fork", "forkserver", "spawn"; fork where this process has one Python
    thread, else forkserver); heap_bytes, the ceiling of the shared heap; max_goroutines, 4,194,304;
    heavy_bytes, 16,384: a goroutine whose locals are larger is not copied at every park, and moves
    on demand; initializer, initargs: run once in each worker, replacements too; blas_threads of
    each worker; max_rss, max_tasks_per_m: a worker over it is replaced, nothing is lost; name, for
    `mpgort ps`; scrub: what goroutines, messages and results leave in shared memory is overwritten
    as soon as it is freed or has moved on, for programs whose locals or messages are secrets."""
    if not callable(main):
        raise TypeError(f"main must be a function, not {main!r}")
    if _core.current() is not None:
        raise RuntimeError("mpgort.run() inside a goroutine: start others with go or spawn")
    opts = check_options("mpgort.run", procs, options)
    if not _running.acquire(blocking=False):
        raise RuntimeError("mpgort.run() is running already in this process: use Runtime beside it")
    try:
        with Shield() as shield:
            host = Host(opts)
            try:
                watch_sigquit()
                if opts.procs == 0:
                    _m.limit_blas(opts.plan.blas_threads)
                    if opts.plan.initializer is not None:
                        opts.plan.initializer(*opts.plan.initargs)
                with Lifted(shield):
                    return host.prog.run_main(main, args, {})
            finally:
                host.stop()
                end_idle()
    finally:
        _running.release()


class Runtime:
    """A program for threads that are not goroutines themselves: workers that stand ready.

    `with Runtime(procs=4) as rt: h = rt.spawn(fn, x); h.result()`. The options are those of run.
    With procs=0 a background thread of this process runs the goroutines. The block's end drains
    (`shutdown`); after an exception everything is ended at once. One that is never shut down is
    ended when it is garbage, or at the interpreter's exit.

    max_pending: at so many goroutines that spawn() and go() have started and that have not ended,
    the next of a thread waits, or raises queue.Full (when_full="raise"); what goroutines start,
    and call(), are not counted. drain_on_sigterm: SIGTERM raises SystemExit(143) in the main
    thread, and the block's end (or the interpreter's exit) then drains: True for as long as that
    takes, or at most so many seconds. The former handler is back after shutdown()."""

    def __init__(
        self,
        procs: int | None = None,
        *,
        max_pending: int | None = None,
        when_full: str = "block",
        drain_on_sigterm: bool | float = False,
        **options: Unpack[Given],
    ) -> None:
        most = check_bound(max_pending, when_full)
        opts = check_options("mpgort.Runtime", procs, options)
        drain_s = _service.check_drain(drain_on_sigterm)
        opts = opts._replace(plan=opts.plan._replace(outlives_sigterm=drain_s is not None))
        with Shield():
            self._host = Host(opts)
            self._end = weakref.finalize(self, end_runtime, self._host)
            self._prog = self._host.prog
            self._bound = None if most is None else _service.Bound(self._host, most, when_full)
            self._host.bound = self._bound
            if drain_s is not None:
                _service.watch_sigterm(self._host, drain_s)
            self._prog.hold(1)  # a thread can always spawn: nobody is deadlocked
            watch_sigquit()
            if opts.procs == 0:
                start_loop_thread(self._host)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Runtime cannot be sent; a goroutine starts others with mpgort.spawn")

    def _program(self) -> _core.Program:
        if self._host.stopped:
            raise Killed("the runtime was shut down")
        return self._prog

    def _check(self) -> _core.Program:
        prog = self._program()
        self._host.tick()
        return prog

    def spawn(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> _core.Goroutine[Any]:
        """Starts fn(*args, **kwargs) as a goroutine; its handle's result() waits for the value.

        spawn's own keywords (timeout, priority, ...) are taken out. At max_pending it waits, or
        raises queue.Full."""
        h: _core.Goroutine[Any] = self._start(fn, args, kwargs, go=False)
        return h

    def _start(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], go: bool
    ) -> Any:
        prog = self._check()
        if self._host.draining_until is not None:
            raise RuntimeError("the runtime is draining, after SIGTERM: it takes no more work")
        if self._bound is not None and _core.current() is None:
            return self._bound.start(fn, args, kwargs, go)
        return (_core.go_in if go else _core.spawn_in)(prog, fn, args, kwargs)

    def go(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Starts fn(*args, **kwargs); an exception that leaves it is a panic, and ends the
        program."""
        self._start(fn, args, kwargs, go=True)

    def chan(self, size: int = 0) -> _core.Chan[Any]:
        """A channel between goroutines, and threads that use put and get."""
        return _core.chan_in(self._check(), size)

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """For asyncio: runs fn(*args, **kwargs) as a goroutine; its value, or its exception.

        The loop goes on meanwhile. When the awaiting task is cancelled the goroutine is, too: one
        that has not begun never does, another one sees Cancelled where it parks; the task does not
        wait for that. A plain function that computes goes on to its end, unheard."""
        from mpgort import _aio

        self._check()
        return await _aio.call(self._host, fn, args, kwargs)

    def stream(self, ch: _core.Chan[Any]) -> AsyncIterator[Any]:
        """For asyncio: `async for v in rt.stream(ch)` receives until ch is closed and drained.

        The loop goes on meanwhile. Nothing is received ahead. A task that is cancelled while it
        waits loses nothing: a message that arrives within the next 0.1 s may be kept in the stream,
        for the next who asks it; it is lost only with the stream itself. Several tasks may ask one
        stream, and each message goes to one of them. nilchan: ChanError."""
        from mpgort import _aio

        self._check()
        return _aio.Stream(self._host, ch)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, the heap's figures, one row for each living M, and health.

        `problems`: what is not as it should be, in words, empty when all is well; `workers` that
        stand ready, `uptime_s`; `goroutines` that there are, `runnable` and `runnable_batch`: those
        that wait for a worker; `pending` of `max_pending`."""
        stats = self._program().stats()
        return stats | _service.health(self._host, stats)

    def recycle(self, timeout: float | None = None) -> bool:
        """Replaces the workers one by one, each by a fresh process that has run the initializer.

        Nothing is lost: a worker finishes what it runs and what is at home there, and goes; the
        others work on meanwhile. False: after `timeout` seconds not all are replaced (one that was
        asked still goes when it can)."""
        self._check()
        return _service.recycle(self._host, deadline_in(timeout))

    def stack(self) -> str:
        """Every goroutine as Go prints it: id, [wait reason, minutes], the frames."""
        from mpgort import _traceback

        return _traceback.dump(self._program())

    def shutdown(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Ends the program. drain: first waits until every goroutine has ended, or all are asleep
        with no timer pending. False: `timeout` seconds were not enough, the rest was ended. Calls
        after the first do nothing."""
        host = self._host
        if host.stopped:
            return True
        deadline = deadline_in(timeout)
        try:
            drained = not drain or drain_until(host, deadline)
        finally:
            if host.draining_until is not None:
                host.draining_until = 0.0  # that was it
            with Shield():
                self._end()
        return drained

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        until = self._host.draining_until
        if until is None:
            self.shutdown(drain=kind is None)
        else:
            self.shutdown(timeout=max(0.0, until - time.monotonic()))


def drain_until(host: Host, deadline: float | None) -> bool:
    """Waits until nothing can run any more; False past the deadline. Raises what ended the
    program."""
    host.prog.hold(-1)
    try:
        while True:
            left = 0.1 if deadline is None else min(0.1, max(0.0, deadline - time.monotonic()))
            if host.opts.procs == 0:
                loop = _loops.get(host)
                drained = loop is None or loop.wait(left)
            else:
                drained = host.prog.drain_wait(left)
            # Only now: who panicks has said so before it is no longer counted as running.
            failure = _core.failure(host.prog)
            if failure is not None:
                raise failure
            host.tick()
            if drained:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if host.draining_until == 0.0:  # a second SIGTERM
                return False
    finally:
        host.prog.hold(1)


# procs=0: the event that a host's loop thread sets when it ends
_loops: weakref.WeakKeyDictionary[Host, threading.Event] = weakref.WeakKeyDictionary()


def start_loop_thread(host: Host) -> None:
    """procs=0: a thread of this process runs the goroutines. It ends with the program, or when
    nothing can run any more and nobody may come from outside (a drain)."""
    ended = _loops[host] = threading.Event()
    prog, plan = host.prog, host.opts.plan

    def loop() -> None:
        try:
            _m.limit_blas(plan.blas_threads)
            if plan.initializer is not None:
                plan.initializer(*plan.initargs)
            prog.work()
        except (Deadlock, GoroutinePanic):
            pass  # drained; whoever waits finds the panic by itself
        except BaseException as e:
            host.failed = e
        finally:
            ended.set()

    # A daemon: what ends it is our own atexit function, which runs after the others are joined.
    threading.Thread(target=loop, name="mpgort", daemon=True).start()


def end_runtime(host: Host) -> None:
    """Ends a Runtime's program; also by its finalizer and at the interpreter's exit."""
    try:
        if host.draining_until is not None and not host.stopped:
            drain_until(host, host.draining_until)
    finally:
        ended = _loops.pop(host, None)
        if ended is not None and not host.stopped:
            host.prog.shutdown()
            ended.wait(_keeper.GRACE_S)
        host.stop()
        if ended is not None:
            end_idle()


_service.ENDS |= {f.__code__ for f in (Runtime.__exit__, Runtime.shutdown, end_runtime)}


def end_all() -> None:
    """At exit, before modules are torn down."""
    for host in list(hosts):
        end_runtime(host)


atexit.register(end_all)
