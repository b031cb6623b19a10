"""run and Runtime: M0's side of a program's processes.

`Host` starts a program and ends it; `run` is a Host whose calling thread runs main, `Runtime` one
that threads use from outside. Options are checked in one function (`check_options`), whose errors
name the option.

THE START (about 10 ms)            THE END (from every way out: value, exception, Ctrl-C, exit)
  1 segment, made and nameless       1 hdr->shutdown: Ms leave their loops
  2 M0's slot                        2 the keeper has ended the Ms, and itself
  3 the keeper, by fork or exec      3 M0 waits for it; a status other than 0 says that it was
  4 main runs at once; the keeper      killed: M0 ends by itself what the M table names
    makes the workers meanwhile      4 the segment goes with the last handle

Ctrl-C may come at any bytecode, also between these steps. While M0 starts or ends a program, SIGINT
is only noted (`Shield`), and raised as KeyboardInterrupt when all is there, or all is gone.

The keeper's death is noticed by `Host.tick`, which M0 calls about every 100 ms, in its loop and in
every wait of a thread, and at each call on a Runtime; it starts another, which adopts the Ms. One
that dies of what it finds in the segment would be followed by others for ever: after KEEPERS that
nobody killed the program ends. No thread watches: os.fork() warns where there is one, and the
workers do well for a while without a keeper.

A process that the user forks is no M: there, handles raise (`after_fork_in_child`)."""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from mpgort import _core, _keeper, _m, _segment, _service
from mpgort._errors import Deadlock, GoroutinePanic, Killed, UnsupportedPlatform, start_error
from mpgort._m import Plan, Wires

if TYPE_CHECKING:
    from mpgort._aio import Guest

METHODS = ("fork", "forkserver", "spawn")
KEEPERS = 3  # so many that end by themselves are the program's end
KEEPER_PATIENCE_S = 2.0  # a keeper that is stopped, or swapped out, is killed after this

_hosts: weakref.WeakSet[Host] = weakref.WeakSet()
_numbers = itertools.count()
_becoming: Host | None = None  # the host whose keeper is being forked
_running = threading.Lock()  # held by the one run() of this process


# ---- options ---------------------------------------------------------------------------------


class Options(NamedTuple):
    procs: int
    method: str
    heap_bytes: int
    max_goroutines: int
    heavy_bytes: int
    migrate: int
    scrub: bool
    shake: int  # seed of the schedule shaker, 0: off
    plan: Plan
    name: str


def cpu_count() -> int:
    """The CPUs this process may use: affinity and cgroup quota (v2 and v1) counted, at least 1."""
    n = len(os.sched_getaffinity(0))
    quota = cgroup_cpus()
    return max(1, min(n, quota)) if quota else n


def cgroup_cpus() -> int | None:
    """The CPU quota of this process's cgroup and those above, rounded up; None: no limit."""
    best: float | None = None
    try:
        with open("/proc/self/cgroup") as f:
            own = [line.rstrip("\n").split(":", 2) for line in f]
    except OSError:
        return None
    for _, controllers, path in own:
        v2 = controllers == ""
        if not v2 and "cpu" not in controllers.split(","):
            continue
        root = "/sys/fs/cgroup" if v2 else "/sys/fs/cgroup/cpu"
        at = path.strip("/")
        while True:
            try:
                if v2:
                    with open(f"{root}/{at}/cpu.max") as f:
                        quota, period = f.read().split()
                else:
                    with open(f"{root}/{at}/cpu.cfs_quota_us") as f:
                        quota = f.read().strip()
                    with open(f"{root}/{at}/cpu.cfs_period_us") as f:
                        period = f.read().strip()
                if quota not in ("max", "-1"):
                    cpus = int(quota) / int(period)
                    best = cpus if best is None else min(best, cpus)
            except (OSError, ValueError):
                pass  # the root has no such file; in a container the path may lead nowhere
            if not at:
                break
            at = os.path.dirname(at)
    return None if best is None else max(1, int(best + 0.999))


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    n = value.__index__()
    if n < least or (most is not None and n > most):
        upto = f" to {most}" if most is not None else " or more"
        raise ValueError(f"{name}={n}: give {least}{upto}")
    return int(n)


def check_bound(max_pending: int | None, when_full: str) -> int | None:
    if when_full not in _service.WHEN_FULL:
        raise ValueError(f"when_full={when_full!r}: give one of {', '.join(_service.WHEN_FULL)}")
    return None if max_pending is None else whole("max_pending", max_pending, 1)


def debug_flags() -> dict[str, str]:
    """MPGORT_DEBUG, as Go's GODEBUG: name=value,name=value."""
    text = os.environ.get("MPGORT_DEBUG", "")
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name.strip(): value.strip() for name, _, value in pairs}


def default_procs() -> int:
    """How many workers a program has that nobody told. Raises ValueError for MPGORT_PROCS."""
    env = os.environ.get("MPGORT_PROCS")
    if env is None:
        return min(cpu_count(), _core.MAX_PROCS)
    if not env.strip().isdecimal():
        raise ValueError(f"MPGORT_PROCS={env}: give a number of worker processes")
    return whole("MPGORT_PROCS", int(env), 0, _core.MAX_PROCS)


def check_options(
    procs: int | None,
    start_method: str | None,
    heap_bytes: int | None,
    max_goroutines: int,
    heavy_bytes: int,
    initializer: Callable[..., object] | None,
    initargs: Sequence[Any],
    blas_threads: int | None,
    max_rss: int | None,
    max_tasks_per_m: int | None,
    name: str | None,
    scrub: bool,
) -> Options:
    """All options of run and Runtime, with their defaults filled in.

    Raises TypeError or ValueError naming the option (or environment variable),
    UnsupportedPlatform."""
    if sys.platform != "linux":
        raise UnsupportedPlatform(f"mpgort needs Linux (futexes, pidfds), this is {sys.platform}")
    if procs is None:
        procs = default_procs()
    procs = whole("procs", procs, 0, _core.MAX_PROCS)
    if start_method is not None and start_method not in METHODS:
        raise ValueError(f"start_method={start_method!r}: give one of {', '.join(METHODS)}")
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be callable, not {initializer!r}")
    if blas_threads is not None:
        blas_threads = whole("blas_threads", blas_threads, 1)
    ways = {"auto": 0, "always": 1, "never": 2}
    migrate = os.environ.get("MPGORT_MIGRATE", "auto")
    if migrate not in ways:
        raise ValueError(f"MPGORT_MIGRATE={migrate}: give one of {', '.join(ways)}")
    debug = debug_flags()
    trace = debug.get("schedtrace", "0")
    if not trace.isdecimal():
        raise ValueError(f"MPGORT_DEBUG: schedtrace={trace}: give milliseconds")
    shake = debug.get("shake", "0")
    if not shake.isdecimal() or int(shake) >= 1 << 32:
        raise ValueError(f"MPGORT_DEBUG: shake={shake}: give a seed, a number below 2**32")
    if heap_bytes is not None:
        heap_bytes = whole("heap_bytes", heap_bytes, 1 << 20, 1 << 46)
    _segment.warn_if_small(heap_bytes)
    if not _core.frames_ok:
        warnings.warn(
            f"no goroutine moves between processes here, each stays where it started: "
            f"{_core.frames_reason}. Use a released CPython 3.11, 3.12 or 3.13",
            RuntimeWarning,
            stacklevel=3,
        )
    method = start_method or default_method()
    plan = Plan(
        method=method,
        initializer=initializer,
        initargs=tuple(initargs),
        blas_threads=blas_threads,
        max_rss=0 if max_rss is None else whole("max_rss", max_rss, 1),
        max_tasks=0 if max_tasks_per_m is None else whole("max_tasks_per_m", max_tasks_per_m, 1),
        schedtrace_ms=int(trace),
    )
    return Options(
        procs=procs,
        method=method,
        heap_bytes=heap_bytes or _segment.default_heap_bytes(),
        max_goroutines=whole("max_goroutines", max_goroutines, 1, 1 << 30),
        heavy_bytes=whole("heavy_bytes", heavy_bytes, 0, 1 << 30),
        migrate=ways[migrate],
        scrub=bool(scrub) or debug.get("scrub", "0") == "1",
        shake=int(shake),
        plan=plan,
        name=os.path.basename(sys.argv[0] if sys.argv else "") if name is None else str(name),
    )


def default_method() -> str:
    """fork where this process has one Python thread: no other can hold a lock at that moment."""
    return "fork" if len(sys._current_frames()) == 1 else "forkserver"


# ---- signals ---------------------------------------------------------------------------------


class Shield:
    """Within the block SIGINT is only noted; KeyboardInterrupt follows at its end.

    In another than the main thread Python raises no KeyboardInterrupt, and there is nothing to
    do."""

    def __init__(self) -> None:
        self.was: Any = None
        self.noted = False

    def note(self, sig: int, frame: FrameType | None) -> None:
        self.noted = True

    def __enter__(self) -> Shield:
        if threading.current_thread() is threading.main_thread():
            was = signal.getsignal(signal.SIGINT)
            if callable(was):
                self.was = was
                signal.signal(signal.SIGINT, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.was is not None:
            was, self.was = self.was, None
            signal.signal(signal.SIGINT, was)
            if self.noted:
                self.noted = False
                signal.raise_signal(signal.SIGINT)


class Lifted:
    """The opposite, for the stretch within a Shield that runs the user's code."""

    def __init__(self, shield: Shield) -> None:
        self.shield = shield

    def __enter__(self) -> None:
        self.shield.__exit__()

    def __exit__(self, *_: object) -> None:
        self.shield.__enter__()


def on_sigquit(sig: int, frame: FrameType | None) -> None:
    """As Go: every goroutine's stack, and exit status 2."""
    from mpgort import _traceback

    hosts = list(_hosts)
    sys.stderr.write("SIGQUIT: quit\n\n")
    for host in hosts:
        try:
            sys.stderr.write(_traceback.dump(host.prog))
        except Exception as e:
            sys.stderr.write(f"no dump of {host.opts.name}: {e}\n")
    for host in hosts:
        host.stop()
    _m.flush()
    os._exit(2)


def watch_sigquit() -> None:
    """Installs on_sigquit where SIGQUIT would have its default effect, a core dump."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGQUIT, on_sigquit)


def unwatch_sigquit() -> None:
    if (
        not _hosts
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGQUIT) is on_sigquit
    ):
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


# ---- a program's processes --------------------------------------------------------------------


class Host:
    """A started program, from M0's side. `stop` may be called more than once and from any
    thread."""

    def __init__(self, opts: Options) -> None:
        if _m.importing_main:
            raise RuntimeError(
                "a program was started while the main module was being imported by another process "
                "of the same program: put the start under `if __name__ == '__main__':`"
            )
        self.opts = opts
        self.pid = os.getpid()
        self.keeper: tuple[int, int] | None = None  # pid, pidfd
        self.reports: socket.socket | None = None
        self.keepers = 0  # that have ended, and nobody killed them
        self.stopped = False
        self.failed: BaseException | None = None  # what a worker or the keeper has reported
        self.guest: Guest | None = None  # asyncio's
        self.drain_s = 0.0  # how long SIGTERM lets it drain, and until when it does (_service.py)
        self.draining_until: float | None = None
        self.bound: _service.Pending | None = None  # max_pending, for stats()
        self.number = next(_numbers)
        self.lock = threading.Lock()
        self.fds: list[int] = []
        fd = _segment.make()
        try:
            self.prog = _core.Program.create(
                fd,
                opts.procs,
                opts.max_goroutines,
                opts.heap_bytes,
                opts.heavy_bytes,
                opts.migrate,
                opts.scrub,
                opts.shake,
                opts.name,
            )
        except OSError as e:
            os.close(fd)
            raise start_error(e) from e
        except BaseException:
            os.close(fd)
            raise
        self.prog.minit(_core.M_M0)
        self.prog.tick = self.tick
        if opts.procs == 0:
            _hosts.add(self)
            return
        try:
            m0 = self.own_pidfd()
            self.fds.append(m0)
            kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.fds.append(kick)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            theirs.setblocking(False)
            self.reports = ours
            self.fds.append(theirs.detach())
            self.wires = Wires(fd, m0, kick, self.fds[-1], -1)
            self.prog.set_kick_fd(kick)
            _hosts.add(self)
            self.start_keeper(opts.method)
        except OSError as e:
            self.stop()
            raise start_error(e) from e
        except BaseException:
            self.stop()
            raise

    def own_pidfd(self) -> int:
        try:
            return os.pidfd_open(self.pid)
        except OSError as e:
            if e.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            raise UnsupportedPlatform(
                f"pidfd_open: {e.strerror}: workers need it (Linux 5.3, a seccomp profile that "
                "lets it through), deaths are learnt from it; procs=0 goes without"
            ) from e

    def start_keeper(self, method: str) -> None:
        _m.flush()  # what is buffered here would be written by each child again
        if method == "fork":
            pid = self.fork_keeper()
        else:
            if self.wires.plan < 0:
                plan = _m.dump_plan(self.opts.plan._replace(method=method))
                self.fds.append(plan)
                self.wires = self.wires._replace(plan=plan)
            pid = _m.exec_fresh("_keeper", self.wires)
        self.keeper = (pid, os.pidfd_open(pid))

    def fork_keeper(self) -> int:
        global _becoming
        _becoming = self
        # What it is sent before it has settled is not for the handlers that it inherits.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            with warnings.catch_warnings():
                # Threads of C libraries do not take part in Python's locks, nor in our children.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                try:
                    _keeper.keep(self.prog, self.wires, self.opts.plan, self.pid)
                finally:
                    os._exit(1)
            return pid
        finally:
            _becoming = None
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def tick(self) -> None:
        """Raises what a worker or the keeper has reported; replaces a keeper that was killed."""
        if self.stopped:
            return
        if self.failed is not None:
            raise self.failed
        if self.opts.procs == 0:
            return
        try:
            data = self.reports.recv(_m.REPORT_BYTES * 2) if self.reports else b""
        except (BlockingIOError, InterruptedError):
            data = b""
        if data:
            exc, where, text = pickle.loads(data)
            exc.add_note(f"in {where}:\n{text.rstrip()}")
            self.failed = exc
            raise exc
        if self.keeper is not None and _keeper.dead(self.keeper[1]):
            with Shield(), self.lock:
                if not self.stopped and self.keeper is not None and _keeper.dead(self.keeper[1]):
                    status = self.bury_keeper()
                    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                        self.keepers += 1
                    if self.keepers == KEEPERS:
                        self.failed = RuntimeError(
                            f"{KEEPERS} keepers, one after the other, "
                            f"{_keeper.describe(status)}: stderr has why; the program cannot go on"
                        )
                        raise self.failed
                    method = self.opts.method
                    if method == "fork" and default_method() != "fork":
                        method = "forkserver"
                    self.start_keeper(method)

    def bury_keeper(self) -> int:
        """Waits for the keeper, which has ended or is about to; returns its wait status."""
        assert self.keeper is not None
        pid, pidfd = self.keeper
        p = select.poll()
        p.register(pidfd, select.POLLIN)
        if not p.poll(KEEPER_PATIENCE_S * 1000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            p.poll()
        self.keeper = None
        os.close(pidfd)
        return _keeper.reap(pid)

    def stop(self) -> None:
        """Ends every goroutine and process of the program; when it returns none is left."""
        if os.getpid() != self.pid:
            return
        with self.lock:
            if self.stopped:
                return
            self.stopped = True
            self.guest = None
            self.prog.tick = None
            self.prog.shutdown()
            if self.opts.procs > 0 and (self.keeper is None or self.bury_keeper() != 0):
                _keeper.end(_keeper.adopt(self.prog, set())[0], 0)
            self.prog.forget()
            self.close()
        _hosts.discard(self)
        unwatch_sigquit()
        _service.unwatch_sigterm(self)

    def close(self) -> None:
        """Closes what is not the Program's own."""
        if self.opts.procs > 0:
            self.prog.set_kick_fd(-1)
            if self.reports is not None:
                self.reports.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def after_fork_in_child() -> None:
    """A forked child has none of the programs of its parent, but for the one whose keeper it is."""
    hosts = list(_hosts)
    _hosts.clear()
    keeper = _becoming is not None
    _service.after_fork_in_child()
    for host in hosts:
        if host is _becoming:
            host.prog.after_fork(True)
            if host.reports is not None:
                host.reports.close()
        elif keeper:
            # Nothing of theirs is below us on the stack that will ever run again: unmap them.
            host.prog.after_fork(True)
            host.prog.detach()
            host.close()
        else:
            host.prog.after_fork(False)


os.register_at_fork(after_in_child=after_fork_in_child)


def await_outside(prog: _core.Program, h: _core.Goroutine[Any]) -> Generator[Any, None, Any] | None:
    """`await h` in a thread that is no M: by way of asyncio, if a loop runs in this thread."""
    asyncio = sys.modules.get("asyncio")  # not there: no loop runs
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    from mpgort import _aio

    host = next((host for host in list(_hosts) if host.prog is prog), None)
    return _aio.ended(host, h).__await__()


_core.set_await_outside(await_outside)


# ---- run ---------------------------------------------------------------------------------------


def run(
    main: Callable[..., Any],
    /,
    *args: Any,
    procs: int | None = None,
    start_method: str | None = None,
    heap_bytes: int | None = None,
    max_goroutines: int = 1 << 22,
    heavy_bytes: int = 16384,
    initializer: Callable[..., object] | None = None,
    initargs: Sequence[Any] = (),
    blas_threads: int | None = None,
    max_rss: int | None = None,
    max_tasks_per_m: int | None = None,
    name: str | None = None,
    scrub: bool = False,
) -> Any:
    """Runs main(*args) as goroutine 1 here, every other goroutine on `procs` worker processes.

    Returns main's value or raises its exception; every other goroutine ends with it. Raises
    Deadlock, GoroutinePanic, MDied, OutOfSharedMemory; RuntimeError inside a goroutine or beside
    another run.

    scrub: what goroutines, messages and results leave in shared memory is overwritten as soon as it
    is freed or has moved on; for programs whose locals or messages are secrets."""
    if not callable(main):
        raise TypeError(f"main must be a function, not {main!r}")
    if _core.current() is not None:
        raise RuntimeError("mpgort.run() inside a goroutine: start others with go or spawn")
    opts = check_options(
        procs,
        start_method,
        heap_bytes,
        max_goroutines,
        heavy_bytes,
        initializer,
        initargs,
        blas_threads,
        max_rss,
        max_tasks_per_m,
        name,
        scrub,
    )
    if not _running.acquire(blocking=False):
        raise RuntimeError("mpgort.run() is running already in this process: use Runtime beside it")
    try:
        with Shield() as shield:
            host = Host(opts)
            try:
                watch_sigquit()
                if opts.procs == 0:
                    _m.limit_blas(opts.plan.blas_threads)
                    if initializer is not None:
                        initializer(*initargs)
                with Lifted(shield):
                    return host.prog.run_main(main, args, {})
            finally:
                host.stop()
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
        start_method: str | None = None,
        heap_bytes: int | None = None,
        max_goroutines: int = 1 << 22,
        heavy_bytes: int = 16384,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        blas_threads: int | None = None,
        max_rss: int | None = None,
        max_tasks_per_m: int | None = None,
        name: str | None = None,
        scrub: bool = False,
        max_pending: int | None = None,
        when_full: str = "block",
        drain_on_sigterm: bool | float = False,
    ) -> None:
        most = check_bound(max_pending, when_full)
        opts = check_options(
            procs,
            start_method,
            heap_bytes,
            max_goroutines,
            heavy_bytes,
            initializer,
            initargs,
            blas_threads,
            max_rss,
            max_tasks_per_m,
            name,
            scrub,
        )
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
        deadline = None if timeout is None else time.monotonic() + timeout
        return _service.recycle(self._host, deadline)

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
        deadline = None if timeout is None else time.monotonic() + timeout
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


def end_all() -> None:
    """At exit, before modules are torn down."""
    for host in list(_hosts):
        end_runtime(host)


atexit.register(end_all)
