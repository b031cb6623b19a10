"""What makes a Runtime a service that stands for weeks: a bound, replacement, drain, health.

A BOUND (`Bound`). At `max_pending` goroutines that threads have started and that have not ended,
the next spawn of a thread waits, or raises queue.Full (`when_full`). The goroutines are started by
a DoneQueue (shm/doneq.c), so who waits for room sleeps until one has ended, however it ended;
nothing polls, and no thread counts. Goroutines are never held up: what waits for room there would
keep a worker from making it. So only what comes from outside is counted, and what they start
themselves is not.

REPLACEMENT (`recycle`). Each worker in turn is asked to leave (SHM_ATTN_RECYCLE): it takes no
more, what is at home there ends first, and the keeper starts another. The next one is asked when
all stand again, past their initializer: one place less at a time.

SIGTERM (`on_sigterm`), where a Runtime asks for it. As Ctrl-C raises KeyboardInterrupt, it raises
SystemExit(143) in the main thread; but the end of the runtime's block, or the interpreter's exit,
then drains instead of ending at once. The rest of the program unwinds as for sys.exit(): what
Python does between two bytecodes is the one thing a handler may rely on, and a drain within a
handler would stand on whatever it has interrupted. A second one ends the drain, whenever it comes:
raised while a runtime is being ended (`ENDS`) it would end that halfway, so there it is not raised;
the drain looks. Workers take no notice: a service manager may send it to all processes of a
group."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Protocol

from mpgort import _core, _keeper, _segment

if TYPE_CHECKING:
    from mpgort._host import Host

WHEN_FULL = ("block", "raise")
SLICE_S = 0.1
LOOK_S = 0.002
FULL_HEAP = 0.9


def full(most: int) -> queue.Full:
    return queue.Full(f"{most} tasks have not ended yet (max_pending={most})")


class Bound:
    def __init__(self, host: Host, most: int, when_full: str) -> None:
        self.host = host
        self.most = most
        self.blocks = when_full == "block"
        self.lock = threading.Lock()
        self.queue = _core.done_queue(host.prog)
        self.pending = 0  # under the lock; those that have ended are taken off late

    def start(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], go: bool
    ) -> _core.Goroutine[Any]:
        """spawn or go from a thread."""
        with self.lock:
            self.look(0)
            while self.pending >= self.most:
                if not self.blocks:
                    raise full(self.most)
                self.look(SLICE_S)
                self.host.tick()
            h = self.queue.start(fn, args, kwargs, go)
            self.pending += 1
            return h

    def look(self, timeout: float) -> None:
        self.pending -= len(self.queue.take(timeout))

    def count(self) -> int:
        """How many have not ended; about, while somebody waits for room."""
        if self.lock.acquire(blocking=False):
            try:
                self.look(0)
            finally:
                self.lock.release()
        return self.pending


# ---- replacement -----------------------------------------------------------------------------


def workers(prog: _core.Program) -> dict[int, int]:
    """pid -> slot of the workers there are."""
    return {pid: slot for slot, kind, pid, _ in prog.slots() if kind == _core.M_WORKER}


def standing(prog: _core.Program) -> int:
    """How many have come to their loop, past the initializer."""
    looping = _segment.m_table(prog)["looping"]
    return sum(bool(looping[slot]) for slot in workers(prog).values())


def recycle(host: Host, deadline: float | None) -> bool:
    prog = host.prog
    if host.opts.procs == 0:
        return True

    def wait(true: Callable[[], bool]) -> bool:
        while not true():
            if host.stopped or (deadline is not None and time.monotonic() >= deadline):
                return False
            host.tick()
            time.sleep(LOOK_S)
        return True

    def stands() -> bool:
        return standing(prog) >= prog.procs

    for pid, slot in workers(prog).items():
        if not wait(stands):
            return False
        prog.recycle(slot, pid)
        if not wait(lambda pid=pid: pid not in workers(prog)):  # type: ignore[misc]
            return False
    return wait(stands)


# ---- SIGTERM ---------------------------------------------------------------------------------

_terming: list[Host] = []  # those that drain at SIGTERM
ENDS: set[CodeType] = set()  # the functions that end a runtime (_run.py)
_before: Any = None  # the handler that was there
DRAIN_STATUS = 128 + signal.SIGTERM


def on_sigterm(sig: int, frame: FrameType | None) -> None:
    hosts = [host for host in _terming if not host.stopped]
    if not hosts:
        if callable(_before):
            _before(sig, frame)
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL if _before is None else _before)
        signal.raise_signal(signal.SIGTERM)
        return
    now, first = time.monotonic(), any(host.draining_until is None for host in hosts)
    for host in hosts:
        host.draining_until = now + host.drain_s if host.draining_until is None else 0.0
    while frame is not None and not first:
        if frame.f_code in ENDS:
            return
        frame = frame.f_back
    sys.exit(DRAIN_STATUS)


def check_drain(drain: bool | float) -> float | None:
    """How long SIGTERM lets a Runtime drain, None: it is not asked to.

    Raises TypeError, ValueError; RuntimeError in another than the main thread: Python hands signals
    to no other."""
    if drain is False:
        return None
    if not isinstance(drain, int | float):
        raise TypeError(f"drain_on_sigterm must be a bool or seconds, not {drain!r}")
    if drain is not True and not drain >= 0:
        raise ValueError(f"drain_on_sigterm={drain}: give seconds, 0 or more")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "drain_on_sigterm: only the main thread takes signals; make the Runtime there"
        )
    return threading.TIMEOUT_MAX if drain is True else float(drain)


def watch_sigterm(host: Host, drain_s: float) -> None:
    global _before
    host.drain_s = drain_s
    if signal.getsignal(signal.SIGTERM) is not on_sigterm:
        _before = signal.signal(signal.SIGTERM, on_sigterm)
    _terming.append(host)


def unwatch_sigterm(host: Host) -> None:
    """The last gives the former handler back. (From another thread nobody can: then on_sigterm
    passes on what comes.)"""
    if host in _terming:
        _terming.remove(host)
        if not _terming:
            give_back()


def give_back() -> None:
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is on_sigterm
    ):
        signal.signal(signal.SIGTERM, signal.SIG_DFL if _before is None else _before)


def after_fork_in_child() -> None:
    """A child of the user's own is no service."""
    if _terming:
        _terming.clear()
        give_back()


# ---- health ----------------------------------------------------------------------------------


class Pending(Protocol):
    most: int

    def count(self) -> int: ...


def health(host: Host, stats: dict[str, Any]) -> dict[str, Any]:
    """What a service wants to know beside the counters; `problems` is empty when all is well."""
    head = _segment.header(host.prog)[0]
    procs = host.opts.procs and host.prog.procs
    up = standing(host.prog) if procs else 0
    keeper = procs == 0 or (host.keeper is not None and not _keeper.dead(host.keeper[1]))
    used = stats["live_bytes"]
    bound = host.bound
    pending = None if bound is None else bound.count()
    problems = []
    if up < procs:
        problems.append(f"{procs - up} of {procs} workers are not there yet")
    if not keeper:
        problems.append("the keeper has died; another starts at once")
    if used > FULL_HEAP * stats["heap_bytes"]:
        problems.append(f"the heap is {100 * used // stats['heap_bytes']} % full")
    if bound is not None and pending is not None and pending >= bound.most:
        problems.append(f"{pending} tasks are pending (max_pending={bound.most})")
    if host.draining_until is not None:
        problems.append("draining")
    return {
        "problems": problems,
        "workers": up,
        "uptime_s": (time.monotonic_ns() - int(head["start_ns"])) / 1e9,
        "goroutines": stats["spawned"] - stats["finished"],
        "runnable": int(head["runq_size"]) + queued(host.prog),
        "runnable_batch": int(head["batchq_size"]),
        "pending": pending,
        "max_pending": None if bound is None else bound.most,
    }


def queued(prog: _core.Program) -> int:
    """Goroutines in the local queues of all Ps."""
    ps = _segment.p_table(prog)
    ring = ps["runqtail"].astype("i8") - ps["runqhead"].astype("i8")
    return int(ring.clip(0).sum() + (ps["runnext"] != 0).sum())
