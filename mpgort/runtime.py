"""The runtime's own primitives, under the names of Go's proc.go, of which all else is built.

A yield, written with them:

    def yield_(g):                                  # on the scheduler's stack
        casgstatus(g, Grunning, Grunnable)
        dropg()
        globrunqput(g)
        schedule()                                  # does not return

    await mcall(yield_)

A primitive of one's own: register a wait reason at import, park with `gopark`, wake with `goready`.
`gopark` puts the goroutine into waiting BEFORE it calls `unlockf(g, lock)`: when unlockf runs,
another process may already have readied it. Contracts: the docstring of each, Go 1.19
runtime/proc.go.
"""

from __future__ import annotations

import sys
from typing import ClassVar

from mpgort import _core, _trace, _traceback
from mpgort._core import (
    G,
    Gdead,
    Gidle,
    Grunnable,
    Grunning,
    Gwaiting,
    M,
    acquirem,
    casgstatus,
    dropg,
    execute,
    getg,
    globrunqput,
    gopark,
    goready,
    mcall,
    park_m,
    releasem,
    schedule,
)
from mpgort._trace import TraceEvent
from mpgort._traceback import Leak

__all__ = [
    "G",
    "Gdead",
    "Gidle",
    "Grunnable",
    "Grunning",
    "Gwaiting",
    "Leak",
    "M",
    "TraceEvent",
    "WaitReason",
    "acquirem",
    "casgstatus",
    "dropg",
    "execute",
    "getg",
    "globrunqput",
    "gopark",
    "goready",
    "leaks",
    "mcall",
    "park_m",
    "releasem",
    "schedule",
    "trace_start",
    "trace_stop",
]


def leaks() -> list[Leak]:
    """A partial deadlock report: goroutines that wait on a channel, a lock, another goroutine or a
    group which nobody else has a handle on, so that nothing can ever ready or cancel them.

    Each was one at some moment of the call, and is one for ever. In doubt a goroutine is none:
    those at home (pinned, heavy, MPGORT_MIGRATE=never) are never reported, nor who waits on what
    Python has not let go of yet (gc.collect()). RuntimeError outside a goroutine. Source:
    shm/leak.c; after Go 1.26's goroutineleak profile."""
    prog = _core.current()
    if prog is None:
        raise RuntimeError("leaks() outside a goroutine")
    return _traceback.leaks(prog)


def trace_start() -> None:
    """Begins to record what every M of the calling goroutine's program does.

    Each M keeps its last 32,768 events. RuntimeError if tracing is on already. Source: Go
    runtime/trace.go StartTrace."""
    _trace.start()


def trace_stop() -> list[TraceEvent]:
    """Ends the recording: the events of all Ms since trace_start(), in order of time.

    A park stands before everything that another M did to the goroutine because of it."""
    return _trace.stop()


class WaitReason:
    """Why a goroutine waits, as dumps show it. Made by `WaitReason.register(text)`, once per text.

    The built-in ones are attributes: WaitReason.CHAN_RECEIVE, ..., one per kind of park.
    """

    __slots__ = ("_key", "text")
    _known: ClassVar[dict[str, WaitReason]] = {}
    _lines: ClassVar[dict[str, tuple[str, int]]] = {}

    text: str
    _key: int | str  # number of a built-in one; the text of a user's, numbered per program

    def __init__(self) -> None:
        raise TypeError('WaitReason.register("text") makes a wait reason')

    @classmethod
    def _make(cls, text: str, key: int | str) -> WaitReason:
        self = object.__new__(cls)
        self.text = text
        self._key = key
        cls._known[text] = self
        return self

    @classmethod
    def register(cls, text: str) -> WaitReason:
        """A new reason. ValueError if this process has one with that text already, built-in or not.

        The same line run again, by the import of its module in another M or by a reload, gives the
        same reason."""
        if not isinstance(text, str) or not text or len(text) > 100 or not text.isprintable():
            raise ValueError(
                f"a wait reason is a printable text of 1 to 100 characters, not {text!r}"
            )
        caller = sys._getframe(1)
        line = (caller.f_code.co_filename, caller.f_lineno)
        if text in cls._known:
            if caller.f_code.co_name == "<module>" and cls._lines.get(text) == line:
                return cls._known[text]
            raise ValueError(f"wait reason {text!r} is registered already")
        cls._lines[text] = line
        return cls._make(text, text)

    def __repr__(self) -> str:
        return f"WaitReason({self.text!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_reason, (self.text,))


def _reason(text: str) -> WaitReason:
    return WaitReason._known.get(text) or WaitReason._make(text, text)


for _number, _text in enumerate(_core.wait_reasons):
    if _text:
        _name = "".join(ch if ch.isalnum() else "_" for ch in _text).strip("_").upper()
        setattr(WaitReason, _name, WaitReason._make(_text, _number))
