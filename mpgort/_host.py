"""A program's processes from M0's side: how they start and end, and what M0 learns of them.

`Host` is a started program; `run` and `Runtime` (_run.py) are made of it.

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

import contextlib
import errno
import itertools
import os
import pickle
import select
import signal
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from mpgort import _byvalue, _core, _keeper, _m, _segment, _service
from mpgort._errors import UnsupportedPlatform, start_error
from mpgort._m import Wires
from mpgort._options import Options, default_method

if TYPE_CHECKING:
    from mpgort._aio import Guest

KEEPERS = 3  # so many that end by themselves are the program's end
KEEPER_PATIENCE_S = 2.0  # a keeper that is stopped, or swapped out, is killed after this

hosts: weakref.WeakSet[Host] = weakref.WeakSet()  # those of this process that have not ended
_numbers = itertools.count()
_becoming: Host | None = None  # the host whose keeper is being forked
# In the block the threads of Executors and Pools hold no lock: _engine.py.
stand_still: Callable[[], AbstractContextManager[None]] = nullcontext


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

    mine = list(hosts)
    sys.stderr.write("SIGQUIT: quit\n\n")
    for host in mine:
        try:
            sys.stderr.write(_traceback.dump(host.prog))
        except Exception as e:
            sys.stderr.write(f"no dump of {host.opts.name}: {e}\n")
    for host in mine:
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
        not hosts
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGQUIT) is on_sigquit
    ):
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@contextlib.contextmanager
def above_std() -> Generator[None]:
    """What is opened within has no descriptor below 3, though this process was started with stdin,
    stdout or stderr closed: its children open stdin anew, and what some library writes to stdout is
    not for the segment."""
    taken: list[int] = []
    try:
        for fd in range(3):
            try:
                os.fstat(fd)
            except OSError:
                taken.append(os.open(os.devnull, os.O_RDWR))  # the lowest that is free: fd
        yield
    finally:
        for fd in taken:
            os.close(fd)


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
        self.inherited: tuple[int, ...] = ()  # by interpreters that are not forked: Plan
        with above_std():
            self.start()

    def start(self) -> None:
        opts = self.opts
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
            hosts.add(self)
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
            hosts.add(self)
            self.prog.known = _byvalue.Known.now(opts.method, opts.plan.initializer)
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
        with above_std():
            self.start_process(method)

    def start_process(self, method: str) -> None:
        _m.flush()  # what is buffered here would be written by each child again
        if method == "fork":
            pid = self.fork_keeper()
        else:
            if self.wires.plan < 0:
                plan, self.inherited = _m.dump_plan(self.opts.plan._replace(method=method))
                self.fds += [plan, *self.inherited]
                self.wires = self.wires._replace(plan=plan)
            pid = _m.exec_fresh("_keeper", self.wires, self.inherited)
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
                with stand_still():
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
            self.prog.known = None  # which leads to all that is in __main__, so perhaps back to it
            self.close()
        hosts.discard(self)
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
    inherited = list(hosts)
    hosts.clear()
    keeper = _becoming is not None
    _service.after_fork_in_child()
    for host in inherited:
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

    host = next((host for host in list(hosts) if host.prog is prog), None)
    return _aio.ended(host, h).__await__()


_core.set_await_outside(await_outside)
