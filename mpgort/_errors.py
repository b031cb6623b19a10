"""Every exception that mpgort raises, with its text.

All of them pickle, attributes and `__cause__` aside: an error of one process is often raised in
another. So each keeps in `args` exactly what its constructor takes.
"""

from __future__ import annotations

import errno as _errno
import os as _os
import pickle
import signal as _signal


class ChanError(Exception):
    """Misuse of a channel, with Go's text: "send on closed channel", "close of nil channel"."""


class Closed(ChanError):
    """`Chan.get` on a channel that is closed and drained."""

    def __init__(self, message: str = "channel is closed and drained") -> None:
        super().__init__(message)


class Deadlock(RuntimeError):
    """No goroutine can ever run again. The text lists every goroutine as Go does."""

    def __init__(self, message: str = "all goroutines are asleep - deadlock!") -> None:
        super().__init__(message)


class GoroutinePanic(RuntimeError):
    """An exception left a goroutine started by `go`; it is the `__cause__`, with its traceback.

    `goid` is the goroutine's number, `reason` says in one line what it died of.
    """

    def __init__(self, goid: int, reason: str, trace: str = "") -> None:
        super().__init__(goid, reason, trace)
        self.goid = goid
        self.reason = reason
        self.trace = trace

    def __str__(self) -> str:
        text = f"panic: {self.reason}\n\ngoroutine {self.goid} [running]:"
        return f"{text}\n{self.trace.rstrip()}" if self.trace else text


class Cancelled(BaseException):
    """Raised once in a goroutine that `cancel()` was called on, where it is parked. Like asyncio's
    it is no `Exception`, so that a handler of errors does not swallow it."""


class Killed(Exception):
    """The goroutine was ended from outside: `kill()`, the end of the program, a timeout."""

    def __init__(self, message: str = "goroutine was killed") -> None:
        super().__init__(message)


class MDied(RuntimeError):
    """The worker process died under the goroutine. `signal` or `exitcode` says of what, `m` which
    worker it was.

    `stack` is where: the Python frames of the goroutine, innermost first, in the form of dumps, up
    to 4 KiB, for the one that ran there when a segmentation fault, an abort(), a bus error, an
    illegal instruction, a floating-point exception or a fatal Python error killed the worker. None:
    it did not run there, or the worker had no time to say (SIGKILL, os._exit). str() shows it."""

    def __init__(
        self,
        signal: int | None = None,
        exitcode: int | None = None,
        m: int | None = None,
        goid: int | None = None,
        stack: str | None = None,
    ) -> None:
        super().__init__(signal, exitcode, m, goid, stack)
        self.signal = signal
        self.exitcode = exitcode
        self.m = m
        self.goid = goid
        self.stack = stack

    def __str__(self) -> str:
        who = "a worker" if self.m is None else f"worker M{self.m}"
        if self.signal is not None:
            try:
                name = _signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            how = f"was killed by {name}"
        elif self.exitcode is not None:
            how = f"exited with status {self.exitcode}"
        else:
            how = "died"
        under = "" if self.goid is None else f" under goroutine {self.goid}"
        text = f"{who} {how}{under}"
        if self.stack is None:
            return text
        return f"{text}\n\ngoroutine {self.goid} [running]:\n{self.stack.rstrip()}"


class SerializationError(TypeError, pickle.PicklingError):
    """A value cannot cross between processes. `path` leads to the culprit ("args[0].conn"),
    `reason` says what is wrong with it; the pickler's own error, if any, is the `__cause__`."""

    def __init__(self, path: str = "", reason: str = "") -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.reason}" if self.path and self.reason else self.path + self.reason
        )


class OutOfSharedMemory(MemoryError):
    """The heap, the g table or /dev/shm is full; the text has the figures and the option to raise.
    Nothing that was stored already is touched."""


class UnsupportedPlatform(RuntimeError):
    """This machine or interpreter lacks something that mpgort stands on; the text says what."""


def start_error(e: OSError) -> Exception:
    """The same refusal of the system, for who meets it at the start of a program or of one of its
    processes: with what is short, and the way out. `mpgort doctor` shows the limits."""
    ways = {
        _errno.EMFILE: "a program has about a dozen open files in a process, and one for each "
        "worker: raise ulimit -n",
        _errno.ENFILE: "the system's table of open files is full: raise fs.file-max",
        _errno.ENOMEM: "there is no memory, or ulimit -v leaves no room for the segment: raise it, "
        "or give a smaller heap_bytes and max_goroutines",
        _errno.EFBIG: "ulimit -f allows no file as large as the segment may become: raise it, or "
        "give a smaller heap_bytes and max_goroutines",
        _errno.EAGAIN: "no more processes: raise ulimit -u, or the cgroup's pids.max",
    }
    if e.errno not in ways:
        return e
    return OSError(e.errno, f"mpgort cannot start: {_os.strerror(e.errno)}: {ways[e.errno]}")


class SyncError(RuntimeError):
    """Misuse of a primitive of `mpgort.sync`, with Go's text."""


class OwnerDied(SyncError):
    """The holder of a lock died with its worker; `recover()` frees the lock again."""


class BadContinuation(ValueError):
    """Bytes that are no continuation or value of this program: damaged, or of another version."""


class CodeMismatch(RuntimeError):
    """A process has other code, or none, under a name that it was sent or that a continuation
    runs."""


class BadSegment(RuntimeError):
    """A shared segment is damaged, of another layout version, or another user's."""


class ContextError(Exception):
    """How a context ended. Two of one type are equal: the errors of `ctx.err()` are made anew each
    time, in each process."""

    text = ""

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self).__name__)


class Canceled(ContextError):
    """Its cancel function was called, or its parent's."""

    text = "context canceled"


class DeadlineExceeded(ContextError, TimeoutError):
    """Its deadline has passed."""

    text = "context deadline exceeded"


# ---- inside the package: these reach nobody ------------------------------------------------------


class Refused(TypeError):
    """An object that never crosses was met inside a pickle."""


class OverBudget(Exception):
    """A pickle would be longer than it may be."""
