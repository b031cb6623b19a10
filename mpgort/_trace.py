"""The execution trace for people: events in order of time, and the file that Perfetto opens.

The rings are shm/trace.c; `mpgort.runtime.trace_start` and `trace_stop` are the public face.
Source: Go runtime/trace.go, and cmd/trace for the picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from mpgort import _core

# shm.h SHM_TR_*, under Go's names
NAMES = {
    1: "GoCreate",
    2: "GoStart",
    3: "GoPark",
    4: "GoUnpark",
    5: "GoSched",
    6: "GoPreempt",
    7: "GoEnd",
}
# What ends a goroutine's stretch on an M.
_ENDS = frozenset(("GoPark", "GoSched", "GoPreempt", "GoEnd"))


class TraceEvent(NamedTuple):
    """One event. `time` is CLOCK_MONOTONIC in seconds, as time.monotonic(); `p` is -1 without a P;
    `name` is what the caller of gopark gave as trace_ev; `stack` the parked frames as (function,
    file, line), innermost first; `by` the goroutine that created or readied this one, 0 if none."""

    time: float
    event: str
    goid: int
    m: int
    p: int
    reason: str
    by: int
    stack: tuple[tuple[str, str, int], ...]
    name: str | int | None


def start(prog: _core.Program | None = None) -> None:
    _core.trace_start(prog)


def stop(prog: _core.Program | None = None) -> list[TraceEvent]:
    rows = sorted(_core.trace_stop(prog), key=lambda row: row[0])
    return [
        TraceEvent(
            time=ns / 1e9,
            event=NAMES[what],
            goid=goid,
            m=m,
            p=p,
            reason=reason,
            by=by,
            stack=tuple((fn, file, line) for fn, file, line in reversed(stack or [])),
            name=name,
        )
        for ns, what, m, p, goid, reason, by, stack, name in rows
    ]


def chrome(events: Iterable[TraceEvent], program: str) -> dict[str, Any]:
    """The events in the Chrome trace format (JSON object), one track per M.

    A stretch in which a goroutine runs is a slice; why it ended and where stands in its arguments.
    An arrow leads from who readied (or created) it to where it goes on."""
    out: list[dict[str, Any]] = []
    running: dict[int, TraceEvent] = {}  # by M
    arrows: dict[int, int] = {}  # goid -> number of the arrow that leads to its next start
    number = 0
    ms: set[int] = set()

    def at(e: TraceEvent, **more: Any) -> dict[str, Any]:
        return {"pid": 1, "tid": e.m, "ts": e.time * 1e6, **more}

    for e in events:
        ms.add(e.m)
        if e.event == "GoStart":
            running[e.m] = e
            if e.goid in arrows:
                arrow = arrows.pop(e.goid)
                out.append(at(e, ph="f", bp="e", id=arrow, name="ready", cat="sched"))
        elif e.event in _ENDS:
            began = running.pop(e.m, None)
            if began is not None and began.goid == e.goid:
                args: dict[str, Any] = {"end": e.event, "goroutine": e.goid}
                if e.event == "GoPark":
                    args["reason"] = e.reason if e.name is None else f"{e.reason} ({e.name})"
                if e.stack:
                    args["stack"] = [f"{fn} {file}:{line}" for fn, file, line in e.stack]
                where = e.stack[-1][0] if e.stack else ""
                out.append(
                    at(began, ph="X", name=f"G{e.goid} {where}".rstrip(), cat="goroutine")
                    | {"dur": (e.time - began.time) * 1e6, "args": args}
                )
        else:
            number += 1
            arrows[e.goid] = number
            out.append(at(e, ph="s", id=number, name="ready", cat="sched"))
            out.append(
                at(e, ph="i", s="t", name=f"{e.event} G{e.goid}", cat="sched")
                | {"args": {"by": e.by, "reason": e.reason}}
            )
    head = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": program}}]
    for m in sorted(ms):
        head.append(
            {"ph": "M", "pid": 1, "tid": m, "name": "thread_name", "args": {"name": f"M{m}"}}
        )
    return {"traceEvents": head + out, "displayTimeUnit": "ns"}
