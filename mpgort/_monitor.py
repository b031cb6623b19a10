"""Looking at running programs from outside: who there is, what they do, without stopping anybody.

A program's segment has no name (see _segment); it is found as the descriptor of its M0 in /proc,
and mapped once more. A watcher takes no M slot and holds no lock: it reads, and asks the Ms of
goroutines at home for their frames as SIGQUIT does. What it reads may change under its eyes, so
figures are of about now, and every offset is checked before it is followed (shm_seg_watch,
dump.c). One that is damaged, or cut short meanwhile, is a BadSegment, or a wrong figure; never a
crash (_core/guard.c)."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mpgort import _core, _segment
from mpgort._errors import BadSegment

_LINK = re.compile(r"/dev/shm/mpgort-(\d+)-(\d+)-[0-9a-f]+ \(deleted\)")
_KINDS = {1: "M0", 2: "worker", 3: "keeper", 4: "thread"}  # layout.h SHM_M_*
_STATES = {0: "busy", 1: "spinning", 2: "idle"}


class NoProgram(LookupError):
    """Nothing runs under that pid or name, or it cannot be told which of several is meant."""


@dataclass(frozen=True)
class Running:
    """A program that runs now. `pid` is its M0's, `fd` the descriptor there."""

    pid: int
    fd: int

    def attach(self, watches: bool = True) -> _core.Program:
        """Maps the segment; watches: for reading, else with an M slot of its own (mexit gives it
        back). Raises BadSegment, OSError (ended meanwhile, or not ours)."""
        fd = os.open(f"/proc/{self.pid}/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            return _core.Program.attach(fd, watches, True)
        except BaseException:
            os.close(fd)
            raise


def programs() -> list[Running]:
    """The running programs of this user (of all users, for root, whom attach() refuses those of
    others), oldest pid first."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fds = os.listdir(f"/proc/{entry}/fd")
        except OSError:
            continue  # ended, or another user's
        for fd in fds:
            try:
                m = _LINK.fullmatch(os.readlink(f"/proc/{entry}/fd/{fd}"))
            except OSError:
                continue
            if m is not None and m[2] == entry:
                found.append(Running(int(entry), int(fd)))
    return sorted(found, key=lambda r: (r.pid, r.fd))


@dataclass
class M:
    """One M as it is now; counters since its start."""

    slot: int
    kind: str
    pid: int
    state: str
    p: int
    goid: int
    counters: dict[str, int]


@dataclass
class View:
    """A program as it is now."""

    pid: int
    name: str
    procs: int
    up_s: float
    goroutines: int
    runnable: int
    running: int
    waiting: Counter[str] = field(default_factory=Counter)
    ms: list[M] = field(default_factory=list)
    live_bytes: int = 0


def view(prog: _core.Program, pid: int) -> View:
    """The figures of ps and top: one vector operation over the g table, one row an M. Raises
    BadSegment; of a damaged one whatever its figures lead to."""
    import numpy as np

    prog.look()
    h = _segment.header(prog)[0]
    g = _segment.g_table(prog)
    status = (g["status"][1:] & 0xFF).astype(np.uint8)
    status[(g["flags"][1:] & _core.GF_COUNTED) == 0] = _core.Gidle  # a thread, a pending after_func
    counts = np.bincount(status, minlength=256).tolist()
    reasons = g["reason"][1:][status == _core.Gwaiting]
    counted = Counter(dict(zip(*map(list, np.unique(reasons, return_counts=True)), strict=True)))
    stats = prog.stats()
    table = _segment.m_table(prog)
    ms = []
    for row in stats["ms"]:
        m = table[row["slot"]]
        index = int(m["curg"]) & 0xFFFFFFFF
        ms.append(
            M(
                slot=row["slot"],
                kind=_KINDS.get(row["kind"], "?"),
                pid=row["pid"],
                state=_STATES.get(int(m["spinning"]), "?"),
                p=int(m["p1"]) - 1,
                goid=int(g["goid"][index]) if 0 < index < len(g) else 0,
                counters={k: v for k, v in row.items() if k not in ("slot", "kind", "pid")},
            )
        )
    seen = View(
        pid=pid,
        name=bytes(h["name"]).split(b"\0")[0].decode(errors="replace"),
        procs=int(h["nprocs"]),
        up_s=time.monotonic() - int(h["start_ns"]) / 1e9,
        goroutines=sum(counts[s] for s in (_core.Grunnable, _core.Grunning, _core.Gwaiting)),
        runnable=counts[_core.Grunnable],
        running=counts[_core.Grunning],
        waiting=Counter({prog.reason_text(int(k)): int(v) for k, v in counted.items()}),
        ms=ms,
        live_bytes=stats["live_bytes"],
    )
    prog.look()
    return seen


class Seen(NamedTuple):
    running: Running
    prog: _core.Program
    view: View


@dataclass(frozen=True)
class Refused:
    """A program that cannot be looked at, and why, in one line."""

    running: Running
    why: str


def damage(e: Exception) -> str:
    """What is wrong with a segment whose reading has ended in e."""
    if isinstance(e, BadSegment):
        return str(e)
    return f"it is damaged ({type(e).__name__}: {e})".replace("\n", " ")


@contextlib.contextmanager
def reading(seen: Seen) -> Iterator[None]:
    """What is read of a program in the block is whole at its end, or BadSegment says in one line
    which program it is, and what is wrong."""
    try:
        yield
        seen.prog.look()
    except Exception as e:
        raise BadSegment(f"program {seen.view.pid}: {damage(e)}") from e


def look(running: Running) -> Seen | Refused | None:
    """The program mapped and seen; None if it has ended meanwhile."""
    prog = None
    try:
        prog = running.attach()
        # One that has ended is mapped as long as its process holds a handle of it.
        return None if prog.ended else Seen(running, prog, view(prog, running.pid))
    except OSError:
        return None
    except Exception as e:
        if prog is not None:
            prog.detach()
        return Refused(running, damage(e))


def look_at_all() -> tuple[list[Seen], list[Refused]]:
    every = [look(running) for running in programs()]
    return [x for x in every if isinstance(x, Seen)], [x for x in every if isinstance(x, Refused)]


def labels(every: list[Seen]) -> list[str]:
    """What each is called on a command line: its pid; where a process has several (Runtimes,
    Executors, Pools), with the number of its descriptor there, which stays."""
    here = Counter(s.running.pid for s in every)
    return [
        f"{s.running.pid}.{s.running.fd}" if here[s.running.pid] > 1 else str(s.running.pid)
        for s in every
    ]


def choose(which: str | None) -> Seen:
    """The program with this pid, label or name; without one, the only one. Raises NoProgram,
    BadSegment if the one with that pid cannot be looked at."""
    every, refused = look_at_all()
    named = dict(zip(labels(every), every, strict=True))
    fit = {
        label: s
        for label, s in named.items()
        if which is None or which in (label, str(s.view.pid), s.view.name)
    }
    if len(fit) == 1:
        return fit.popitem()[1]
    names = ", ".join(f"{label} ({s.view.name})" for label, s in (fit or named).items())
    for r in refused:
        if which == str(r.running.pid) or (which is None and not every):
            raise BadSegment(f"program {r.running.pid}: {r.why}")
    if not every:
        raise NoProgram("no program runs here")
    if not fit:
        raise NoProgram(f"no program {which} runs; there are {names}")
    raise NoProgram(f"say which, by its pid: {names}")


def rates(now: View, before: View, seconds: float) -> dict[int, dict[str, float]]:
    """By slot: what each counter of an M grew by per second."""
    old = {(m.slot, m.pid): m.counters for m in before.ms}
    return {
        m.slot: {
            k: (v - old.get((m.slot, m.pid), {}).get(k, v)) / seconds for k, v in m.counters.items()
        }
        for m in now.ms
    }


def brief(seconds: float) -> str:
    """Seconds as 12s, 3m20s, 2h05m."""
    s = int(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02}m"


def top_table(now: View, before: View | None, seconds: float) -> Any:
    """What `mpgort top` shows, as a rich renderable."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("M", "pid", "what", "state", "P", "G"):
        table.add_column(name, no_wrap=True)
    shown = {"turns/s": "executed", "parks/s": "parks", "moves/s": "moves", "wakes/s": "wakes"}
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    rate = rates(now, before, seconds) if before is not None else {}
    for m in now.ms:
        row = [str(m.slot), str(m.pid), m.kind, m.state]
        row += [str(m.p) if m.p >= 0 else "-", str(m.goid) if m.goid else "-"]
        r = rate.get(m.slot, {})
        table.add_row(*row, *(f"{r[k]:,.0f}" if r else "-" for k in shown.values()))
    waits = ", ".join(f"{n} {reason}" for reason, n in now.waiting.most_common(6))
    head = (
        f"{now.name} (pid {now.pid}), up {brief(now.up_s)}: {now.goroutines} goroutines, "
        f"{now.running} running, {now.runnable} runnable; {now.live_bytes:,} bytes in use"
    )
    return Group(head, f"waiting: {waits or 'nobody'}", table)
