"""Texts for people: dumps of goroutines, Deadlock, panics, the death of a worker.

The form is Go's (traceback.go): `goroutine 18 [chan receive, 2 minutes]:`, then the frames,
innermost first, as `function(...)` and, indented by a tab, `file.py:LINE`.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Awaitable
from typing import Any, NamedTuple

from mpgort import _core
from mpgort._errors import Deadlock, GoroutinePanic, MDied
from mpgort._exc import _RemoteTraceback

_HOME = {2: "pinned", 3: "heavy", 4: "locked to thread", 5: "with a timeout"}  # layout.h SHM_HOME_*
_STATUS = {_core.Grunnable: "runnable", _core.Grunning: "running", _core.Gidle: "idle"}

Line = tuple[str, str, int]  # function, file, line
Row = tuple[int, int, str, float, int, int, tuple[list[Line], str | None] | None, int, Line | None]


def format_goroutine(row: Row) -> str:
    """One goroutine, from a row of `_core.goroutines()`."""
    goid, status, reason, seconds, m, home_why, where, parent, site = row
    state = reason or _STATUS.get(status, "waiting")
    if seconds >= 60:
        state += f", {int(seconds // 60)} minutes"
    if status == _core.Grunning and m >= 0:
        state += f" on M{m}"
    frames, home_reason = where if where is not None else ([], None)
    if home_why in _HOME:
        state += f", {_HOME[home_why]}" + (f": {home_reason}" if home_reason else "")
    lines = [f"goroutine {goid} [{state}]:", *format_frames(frames)]
    if parent:
        by = f"{site[0]} in goroutine" if site is not None else "goroutine"
        lines.append(f"created by {by} {parent}")
    if site is not None:
        lines.append(f"\t{site[1]}:{site[2]}")
    return "\n".join(lines)


def format_frames(frames: list[tuple[str, str, int]]) -> list[str]:
    """Two lines for each of the frames, which come outermost first."""
    lines = []
    for name, file, line in reversed(theirs(frames)):
        lines += [f"{name}(...)", f"\t{file}:{line}"]
    return lines


def theirs(frames: list[Line]) -> list[Line]:
    """Without the frame that awaits for a goroutine which has none: go(ch.recv)."""
    ours = _await_it.__code__
    return [f for f in frames if f[:2] != (ours.co_qualname, ours.co_filename)]


def format_thread(row: Row, pids: dict[int, int]) -> str:
    """A thread that waits in put, get or result; with its name and frames if it is one of ours."""
    _, _, reason, _, m, _, _, tid, _ = row
    who = f"thread {tid} of process {pids.get(m, '?')}"
    frames: list[tuple[str, str, int]] = []
    if pids.get(m) == os.getpid():
        mine = next((t for t in threading.enumerate() if t.native_id == tid), None)
        if mine is not None and mine.ident in (now := sys._current_frames()):
            who = f"thread {mine.name}"
            stack = traceback.walk_stack(now[mine.ident])
            frames = [(f.f_code.co_qualname, f.f_code.co_filename, line) for f, line in stack][::-1]
    return "\n".join([f"{who} [{reason}]:", *format_frames(frames)])


def dump(prog: _core.Program) -> str:
    """All goroutines of a running program, main first, and the threads that wait for them; nobody
    is stopped for it."""
    rows = sorted(_core.goroutines(prog), key=lambda row: row[0])
    pids = {slot: pid for slot, _, pid, _ in prog.slots()}
    texts = [format_goroutine(row) for row in rows if row[0]]
    texts += [format_thread(row, pids) for row in rows if not row[0]]
    return "\n\n".join(texts) + "\n"


class Leak(NamedTuple):
    """A parked goroutine that nothing reachable can ever make go on. str() is Go's form."""

    goid: int
    reason: str
    minutes: int
    stack: list[Line]  # innermost first
    on: str  # what it waits on
    creator: int  # goid; 0: none
    created: Line | None  # where, if that is known

    def __str__(self) -> str:
        return format_goroutine(
            (
                self.goid,
                _core.Gwaiting,
                f"{self.reason} (leaked)",
                self.minutes * 60.0,
                -1,
                0,
                (self.stack[::-1], None),
                self.creator,
                self.created,
            )
        )


def leaks(prog: _core.Program) -> list[Leak]:
    """The leaked goroutines of a running program, oldest first; nobody is stopped for it."""
    found = _core.leaks(prog)
    rows = [row for row in _core.goroutines(prog) if row[0] in found] if found else []
    leaked = []
    for goid, _, reason, seconds, _, _, where, parent, site in sorted(rows, key=lambda row: row[0]):
        stack = theirs(where[0])[::-1] if where is not None else []
        leaked.append(Leak(goid, reason, int(seconds // 60), stack, found[goid], parent, site))
    return leaked


def make_deadlock(prog: _core.Program, main_goexit: bool) -> Deadlock:
    if main_goexit:
        head = "no goroutines (main called runtime.Goexit) - deadlock!"
    else:
        head = "all goroutines are asleep - deadlock!"
    return Deadlock(f"{head}\n\n{dump(prog)}".rstrip())


def make_panic(goid: int, cause: BaseException | None) -> GoroutinePanic:
    if cause is None:
        return GoroutinePanic(goid, "an exception that could not cross")
    if isinstance(cause.__cause__, _RemoteTraceback):
        cause.__cause__ = None  # that it was elsewhere the panic says itself
    reason = "".join(traceback.format_exception_only(cause)).strip()
    trace = "".join(traceback.format_exception(cause))
    if isinstance(cause, MDied) and cause.stack is not None:
        reason, trace = reason.splitlines()[0], cause.stack
    panic = GoroutinePanic(goid, reason, trace)
    panic.__cause__ = cause
    return panic


def make_death(m: int, status: int, goid: int, stack: str | None) -> MDied:
    """From the M's slot, its wait status, the goroutine that ended (0: none) and, if it ran there
    and the M could still say so, where it was."""
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    exitcode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return MDied(signal=signal, exitcode=exitcode, m=m, goid=goid or None, stack=stack)


async def _await_it(x: Awaitable[Any]) -> Any:
    return await x


_core._hooks(_await_it, make_panic, make_death, make_deadlock)
