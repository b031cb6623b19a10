"""Texts for people: dumps of goroutines, Deadlock, panics, the death of a worker.

The form is Go's (traceback.go): `goroutine 18 [chan receive, 2 minutes]:`, then the frames,
innermost first, as `function(...)` and, indented by a tab, `file.py:LINE`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Awaitable
from typing import Any

from mpgort import _core
from mpgort._errors import Deadlock, GoroutinePanic, MDied
from mpgort._pickle import _RemoteTraceback

_HOME = {2: "pinned", 3: "heavy", 4: "locked to thread"}  # shm.h SHM_HOME_*
_STATUS = {_core.Grunnable: "runnable", _core.Grunning: "running", _core.Gidle: "idle"}

Row = tuple[
    int, int, str, float, int, int, tuple[list[tuple[str, str, int]], str | None] | None, int
]


def format_goroutine(row: Row) -> str:
    """One goroutine, from a row of `_core.goroutines()`."""
    goid, status, reason, seconds, m, home_why, where, parent = row
    state = reason or _STATUS.get(status, "waiting")
    if seconds >= 60:
        state += f", {int(seconds // 60)} minutes"
    if status == _core.Grunning and m >= 0:
        state += f" on M{m}"
    frames, home_reason = where if where is not None else ([], None)
    if home_why in _HOME:
        state += f", {_HOME[home_why]}" + (f": {home_reason}" if home_reason else "")
    lines = [f"goroutine {goid} [{state}]:"]
    for name, file, line in reversed(frames):
        lines += [f"{name}(...)", f"\t{file}:{line}"]
    if parent:
        lines.append(f"created by goroutine {parent}")
    return "\n".join(lines)


def dump(prog: _core.Program) -> str:
    """All goroutines of a running program, main first; nobody is stopped for it."""
    rows = sorted(_core.goroutines(prog), key=lambda row: row[0])
    return "\n\n".join(format_goroutine(row) for row in rows) + "\n"


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
    panic = GoroutinePanic(goid, reason, "".join(traceback.format_exception(cause)))
    panic.__cause__ = cause
    return panic


def make_death(m: int, status: int, goid: int) -> MDied:
    """From the M's slot, its wait status, and the goroutine it ran (0: none)."""
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    exitcode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return MDied(signal=signal, exitcode=exitcode, m=m, goid=goid or None)


async def _await_it(x: Awaitable[Any]) -> Any:
    return await x


_core._hooks(_await_it, make_panic, make_death, make_deadlock)
