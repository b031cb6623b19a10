"""Exceptions as results: the Python half of _core/codec_exc.c.

One who awaits gets a copy of the exception and of all that hang on it (cause, context, the members
of a group), each exception once. What makes one is encoded by itself: so one that cannot cross, or
that the other side cannot make, does not cost the others; a note says what is missing. No
constructor runs: a user's may take other arguments than `args`.

No closure and no generator expression here: one that gets no memory crashes 3.12 and 3.13.
"""

from __future__ import annotations

import asyncio
import builtins
import linecache
import os
import types
from collections.abc import Callable
from typing import Any, cast

# Attributes that builtin exceptions keep outside `args` and `__dict__`.
_FIELDS: tuple[tuple[type[BaseException], tuple[str, ...]], ...] = (
    (OSError, ("errno", "strerror", "filename", "filename2")),
    (StopIteration, ("value",)),
    (SystemExit, ("code",)),
    (ImportError, ("msg", "name", "path")),
    (AttributeError, ("name",)),
    (NameError, ("name",)),
    (SyntaxError, (
        "msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset",
        "print_file_and_line",
    )),
    (UnicodeDecodeError, ("encoding", "object", "start", "end", "reason")),
    (UnicodeEncodeError, ("encoding", "object", "start", "end", "reason")),
    (UnicodeTranslateError, ("object", "start", "end", "reason")),
)  # fmt: skip

# What code of the user's may raise here without harm: but for Ctrl-C, anything.
_FAILURES = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)

_Encode = Callable[[Any, bool], bytes]  # (object, whether the bytes are going to be sent)
_Decode = Callable[[bytes], Any]


class _RemoteTraceback(Exception):
    """Where an exception was raised that has come from another process. Its traceback has that too,
    as if it were a local one; this says that it is not. It stands as the cause where there is none,
    and no context to be shown either: those are the exception's own."""

    def __init__(self, pid: int, file: str, name: str, line: int) -> None:
        super().__init__(pid, file, name, line)

    def __str__(self) -> str:
        pid, file, name, line = self.args
        if not file:
            return f"in process {pid}"
        source = linecache.getline(file, line).strip()
        return f'in process {pid}:\n  File "{file}", line {line}, in {name}\n    {source}'.rstrip()


_Entry = tuple[str, str, int]  # file, function, line
_HERE = os.path.dirname(__file__)
_ENTRIES = 100  # of a deep recursion, what is nearest to the error


def _entries(tb: types.TracebackType | None) -> list[_Entry]:
    """What a traceback shows, outermost first, without the frames of ours that it begins with."""
    found: list[_Entry] = []
    while tb is not None:
        code = tb.tb_frame.f_code
        found.append((code.co_filename, code.co_name, tb.tb_lineno or 0))
        tb = tb.tb_next
    ours = 0
    while ours < len(found) - 1 and os.path.dirname(found[ours][0]) == _HERE:
        ours += 1
    return found[max(ours, len(found) - _ENTRIES) :]


def exc_rows(exc: BaseException, encode: _Encode, decode: _Decode) -> tuple[int, list[Any]]:
    """(this process, a row for each exception of the chain, `exc` first).

    A row is (encoded parts, names of the builtin bases, text, notes, cause, context,
    suppress_context, the exceptions of a group, traceback), other exceptions by the number of their
    row. `encode` raises an exception where an object cannot cross."""
    todo, rows = [exc], []
    for e in todo:  # which grows meanwhile
        notes = [_text(n) for n in getattr(e, "__notes__", ())]
        group = e.exceptions if isinstance(e, BaseExceptionGroup) else ()
        links = (
            _row_of(todo, e.__cause__), _row_of(todo, e.__context__), e.__suppress_context__,
            [_row_of(todo, inner) for inner in group], _entries(e.__traceback__),
        )  # fmt: skip
        body = _exc_body(e, encode, decode, notes)
        bases = [c.__name__ for c in type(e).__mro__ if c.__module__ == "builtins"]
        rows.append((body, bases, _text(e), notes, *links))
    return os.getpid(), rows


def _row_of(todo: list[BaseException], exc: BaseException | None) -> int | None:
    if exc is None:
        return None
    for i, known in enumerate(todo):
        if known is exc:
            return i
    todo.append(exc)
    return len(todo) - 1


def _text(o: object) -> str:
    try:
        return str(o)
    except _FAILURES:
        return f"a {type(o).__qualname__} that cannot be shown"


def _builtin_base(kind: type) -> Any:
    return [c for c in kind.__mro__ if c.__module__ == "builtins"][0]


def _exc_body(exc: BaseException, encode: _Encode, decode: _Decode, notes: list[str]) -> bytes:
    """The encoded exception, or (class, args, fields, attributes). `notes` get to know of what
    cannot cross and is left out."""
    kind: Any = type(exc)
    base = _builtin_base(kind)
    name = f"{kind.__module__}.{kind.__qualname__}"
    says_itself = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    if any([getattr(kind, n, None) is not getattr(base, n, None) for n in says_itself]):
        try:
            back = decode(encode(exc, False))
            if type(back).__qualname__ == kind.__qualname__:
                return encode(exc, True)
        except _FAILURES as e:
            notes.append(f"{name} cannot cross as it is: {_text(e)}")
    names = [n for b, names in _FIELDS if isinstance(exc, b) for n in names]
    fields = {n: v for n in names if (v := getattr(base, n).__get__(exc)) is not None}
    state = {k: v for k, v in vars(exc).items() if k != "__notes__"}
    args: tuple[Any, ...] = (exc.message,) if isinstance(exc, BaseExceptionGroup) else exc.args
    try:
        return encode((kind, args, fields, state), True)
    except _FAILURES:
        pass  # then part by part
    try:
        encode(kind, False)
    except _FAILURES as e:
        notes.append(f"{name} arrives as {base.__name__}: {_text(e)}")
        kind = base
    sent: list[Any] = []
    for i, arg in enumerate(args):
        try:
            encode(arg, False)
            sent.append(arg)
        except _FAILURES as e:
            notes.append(f"{name}: args[{i}] is a repr: {_text(e)}")
            sent.append(_text(arg))
    for owner in (fields, state):
        for key, value in list(owner.items()):
            try:
                encode(value, False)
            except _FAILURES as e:
                notes.append(f"{name}: without its {key}: {_text(e)}")
                del owner[key]
    return encode((kind, tuple(sent), fields, state), True)


def exc_made(
    pid: int,
    rows: list[Any],
    decode: _Decode,
    traceback_of: Callable[[list[_Entry]], types.TracebackType],
) -> BaseException:
    """The exception of rows[0], and all that hang on it, each with its traceback of there."""
    made: dict[int, BaseException] = {}
    for i, row in enumerate(rows):
        exc, (cause, context, suppress) = _make(made, rows, i, decode), row[4:7]
        exc.__cause__ = None if cause is None else _make(made, rows, cause, decode)
        exc.__context__ = None if context is None else _make(made, rows, context, decode)
        exc.__suppress_context__ = suppress
        exc.__traceback__ = traceback_of(row[8]) if row[8] else None
    exc, entries = made[0], rows[0][8]
    if exc.__cause__ is None and (exc.__context__ is None or exc.__suppress_context__):
        exc.__cause__ = _RemoteTraceback(pid, *(entries[-1] if entries else ("", "", 0)))
    return exc


def _make(
    made: dict[int, BaseException], rows: list[Any], i: int, decode: _Decode
) -> BaseException:
    if i in made:
        return made[i]
    body, bases, shown, notes, _, _, _, group, _ = rows[i]
    inner = [_make(made, rows, j, decode) for j in group]
    try:
        exc = _exc_from(decode(body), inner)
    except _FAILURES as e:
        notes.append(f"it could not be made here: {_text(e)}")
        exc = _exc_like(bases, shown, inner)
    for note in notes[len(getattr(exc, "__notes__", ())) :]:
        exc.add_note(note)
    made[i] = exc
    return exc


def _exc_from(parts: Any, inner: list[BaseException]) -> BaseException:
    if isinstance(parts, BaseException):
        return parts
    kind, args, fields, state = parts
    base = _builtin_base(kind)
    exc = base.__new__(kind, *args, inner) if inner else base.__new__(kind, *args)
    if not inner:
        exc.args = args
    for name, value in fields.items():
        getattr(base, name).__set__(exc, value)
    vars(exc).update(state)
    return cast(BaseException, exc)


def _exc_like(bases: list[str], shown: str, inner: list[BaseException]) -> BaseException:
    """An instance of the nearest builtin base that takes a text."""
    for name in bases:
        try:
            kind = getattr(builtins, name)
            exc = kind(shown, inner) if inner else kind(shown)
        except _FAILURES:
            continue
        if isinstance(exc, BaseException):
            return exc
    return RuntimeError(shown)
