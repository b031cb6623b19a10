"""The one pickler: what has no tag of its own in the codec goes through here.

Pickle does the work, with cloudpickle's reducers for what pickle knows no name for: lambdas, local
classes. Two rules stand above both. What a module and a name lead to goes by that name, also in
`__main__` (which cloudpickle would copy) if the workers know it (_byvalue.py): a class is one class
on both sides. And an open file, a socket, a lock never cross, whatever a reducer makes of them.
"""

from __future__ import annotations

import _thread
import asyncio
import builtins
import collections.abc
import concurrent.futures
import contextvars
import copyreg
import functools
import io
import linecache
import mmap
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import cloudpickle

from . import _byvalue, _code

# What never crosses, and what to call it.
_NEVER: tuple[tuple[tuple[type, ...], str], ...] = (
    ((socket.socket,), "a socket"),
    ((_thread.LockType, _thread.RLock), "a lock"),
    ((threading.Condition, threading.Semaphore, threading.Event, threading.Barrier), "a lock"),
    ((threading.Thread, threading.Timer), "a thread"),
    ((threading.local,), "a thread-local"),
    ((weakref.ReferenceType, *weakref.ProxyTypes), "a weak reference"),
    ((memoryview,), "a memoryview"),
    ((types.FrameType,), "a frame"),
    ((types.TracebackType,), "a traceback"),
    ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), "a running frame"),
    ((super,), "a super() object"),
    ((asyncio.Future, concurrent.futures.Future), "a future"),
    ((concurrent.futures.Executor,), "an executor (a task starts others with mpgort.spawn)"),
    ((contextvars.Context, contextvars.ContextVar, contextvars.Token), "a context variable"),
    ((select.epoll, subprocess.Popen, mmap.mmap), "a resource of this process"),
    ((collections.abc.KeysView, collections.abc.ValuesView, collections.abc.ItemsView), "a view"),
)
_ALL_NEVER = tuple(t for kinds, _ in _NEVER for t in kinds)


class Refused(TypeError):
    """An object that never crosses was met inside a pickle."""


def _never(kind: type) -> str | None:
    if issubclass(kind, io.IOBase) and not issubclass(kind, (io.BytesIO, io.StringIO)):
        return "an open file"
    if not issubclass(kind, _ALL_NEVER):
        return None
    return next(what for kinds, what in _NEVER if issubclass(kind, kinds))


def refusal(o: object, moving: bool) -> str | None:
    """Why this object may not be pickled, or None."""
    kind = type(o)
    verb = "does not move" if moving else "never crosses"
    if kind is memoryview:
        return _why_not_memoryview(cast(memoryview, o), moving)
    what = _never(kind)
    if what is not None:
        return f"{what} ({kind.__module__}.{kind.__qualname__}) {verb}"
    if moving and isinstance(o, (type, types.FunctionType)):
        # cloudpickle would send a copy of the class, and of each global that a method names.
        if _code.name_of(o) is None:
            what = "a class" if isinstance(o, type) else "a function"
            return f"{what} {o.__qualname__} that no module leads to {verb}"
    elif moving:
        if getattr(kind, "__del__", None) is not None:
            return f"a {kind.__qualname__} {verb}: it has __del__"
        if kind.__hash__ in (None, object.__hash__) and _weakly_held(o):
            return f"a {kind.__qualname__} with a weak reference to it {verb}"
    return None


def _weakly_held(o: object) -> bool:
    try:
        return weakref.getweakrefcount(o) > 0
    except TypeError:
        return False


def has_reducer(kind: type) -> bool:
    """Whether a class must not be taken apart attribute by attribute."""
    return kind in copyreg.dispatch_table or _never(kind) is not None


class _Budget(io.BytesIO):
    """A sink that stops its pickler when more than `left` bytes have come."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def write(self, data: Any) -> int:
        self.left -= memoryview(data).nbytes
        if self.left < 0:
            raise _OverBudget
        return super().write(data)


class _OverBudget(Exception):
    pass


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    moving = False
    known: _byvalue.Known | None = None
    mark: dict[str, Any] | None = None  # stands for the globals of the unit that this one makes
    sink: _Budget
    counts: Callable[[Any], Any]  # whether an object is a handle

    @classmethod
    def to(cls, left: int, known: _byvalue.Known | None, counts: Callable[[Any], Any]) -> _Pickler:
        sink = _Budget(left)

        def large(buffer: pickle.PickleBuffer) -> bool:
            """Looks at the size before the copy; True keeps the buffer in the pickle."""
            if buffer.raw().nbytes > sink.left:
                raise _OverBudget
            return True

        p = cls(sink, 5, buffer_callback=large)
        p.sink, p.known, p.counts = sink, known, counts
        return p

    def another(self) -> _Pickler:
        return self.to(1 << 62, self.known, self.counts)

    def crosses(self, o: Any) -> bool:
        p = self.another()
        p.persistent_id = self.counts
        try:
            p.dump(o)
        except Exception:
            return False
        return True

    def reducer_override(self, o: Any) -> Any:
        why = refusal(o, self.moving)
        if why is not None:
            raise Refused(why)
        if isinstance(o, (type, types.FunctionType)):
            in_unit = _byvalue.name_in_unit(o)
            if in_unit is not None and self.mark is None:
                return _byvalue.named, (in_unit[0].data, in_unit[1])
            named = _code.name_of(o, self.known) if in_unit is None else None
            if named is not None:
                checked = isinstance(o, types.FunctionType) and _code.content_of(o, o.__module__)
                return (_code.named, named[1:]) if checked else NotImplemented
            made = _byvalue.reduce(self, o)
            if made is not None:
                return made
        elif isinstance(o, functools._lru_cache_wrapper):
            by_name = _code.name_of(o, self.known) is not None
            return NotImplemented if by_name else _byvalue.cached(o)
        elif self.mark is not None and isinstance(o, types.CodeType):
            return _byvalue.marshalled(o)  # cloudpickle's would lose the file's name
        if type(o) is memoryview:
            flat = o if o.c_contiguous else memoryview(o.tobytes())
            return viewed, (pickle.PickleBuffer(flat), o.format, o.shape)
        ndarray = getattr(sys.modules.get("numpy"), "ndarray", ())  # not imported: none is one
        if not isinstance(o, ndarray):
            return super().reducer_override(o)
        root = _root(o, ndarray)
        if type(root).__name__ in _SHARED:
            return _strided_view(o, root) or NotImplemented
        if not self.moving:
            gaps = type(o) is ndarray and not o.flags.forc and not o.dtype.hasobject
            # One without gaps NumPy hands over as a buffer.
            return (
                o.copy("C").__reduce_ex__(5) if gaps and o.nbytes >= _BUFFER_MIN else NotImplemented
            )
        copied = root is o or type(o) is not ndarray
        del root  # or it would be counted: _alone()
        if copied and o.nbytes > self.sink.left:
            raise _OverBudget  # at once
        return _moved_array(o, ndarray)


# ---- buffers -------------------------------------------------------------------------------------
#
# A memoryview crosses as the buffer that it is of, which arrives read-only, and how it looks at it.


def _why_not_memoryview(view: memoryview, moving: bool) -> str | None:
    try:
        form = view.format
    except ValueError as e:
        return f"a memoryview never crosses: {e}"
    if moving and (type(view.obj).__name__ not in _SHARED or not view.c_contiguous):
        return "a memoryview (of memory that is not shared, or with gaps) does not move"
    if form not in _CASTS:
        return f"a memoryview of format {form!r} never crosses: send the array"
    return None


_CASTS = "cbBhHiIlLqQnNfdP?"


def viewed(buffer: Any, form: Any, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(buffer)
    if isinstance(buffer, bytearray):
        view = view.toreadonly()  # small, so it came as a copy
    if 0 in shape or (form == view.format and shape == view.shape):
        return view.cast("B").cast(form)
    return view.cast("B").cast(form, shape)


def _root(a: Any, ndarray: Any) -> Any:
    """What owns the memory of a NumPy array: itself, or the last of what it is a view of."""
    while isinstance(a, (ndarray, memoryview)):
        below = a.obj if isinstance(a, memoryview) else a.base
        if below is None:
            return a
        a = below
    return a


def _moved_array(a: Any, ndarray: Any) -> Any:
    """A NumPy array in a move. One that has its memory has it afterwards; a view stays a view of
    the same base, which is pickled once for all, and counted as any object that is referred to."""
    base = a.base
    if base is None:
        if a.flags.writeable:
            return a.__reduce__()
        return _readonly, a.__reduce__()[:3]
    if isinstance(base, memoryview):
        base = base.obj
    plain = type(a) is ndarray and not a.dtype.hasobject
    if plain and isinstance(base, (ndarray, bytearray)):
        offset = _address(a) - _address(base) if a.size else 0
        return _view, (base, offset, a.dtype, a.shape, a.strides, a.flags.writeable)
    immutable = isinstance(base, bytes)
    del base
    if not immutable and not _alone(a):
        raise Refused(
            f"a {type(a).__qualname__} that shares its memory with another object does not move"
        )
    return NotImplemented  # a copy: nobody can tell


def _alone(a: Any) -> bool:
    """Whether nothing else refers to what this array is a view of."""
    while a is not None:
        a = a.obj if isinstance(a, memoryview) else getattr(a, "base", None)
        if a is not None and sys.getrefcount(a) > 3:  # its holder, this variable, the argument
            return False
    return True


def _address(o: Any) -> int:
    import numpy as np

    a = o if isinstance(o, np.ndarray) else np.frombuffer(o, np.uint8)
    return int(a.__array_interface__["data"][0])


def _readonly(make: Callable[..., Any], args: Any, state: Any) -> Any:
    a = make(*args)
    a.__setstate__(state)
    a.flags.writeable = False
    return a


def _view(base: Any, offset: int, dtype: Any, shape: Any, strides: Any, writeable: bool) -> Any:
    if not isinstance(base, bytearray) and not base.flags.c_contiguous:
        base = base.T  # in Fortran's order: only so it gives its memory away
    a = strided(base, offset, dtype, shape, strides)
    if not writeable:
        a.flags.writeable = False
    return a


def _strided_view(a: Any, root: Any) -> tuple[Any, ...] | None:
    """How a NumPy array that has gaps, and lies in shared memory, crosses as what it is: a view.
    None: it is no such. (One without gaps does by itself, NumPy hands it over as a buffer.)"""
    import numpy as np

    if type(a) is not np.ndarray or a.flags.forc or a.dtype.hasobject:
        return None
    root = memoryview(root)
    whole = np.frombuffer(root, np.uint8)
    offset = a.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    if not a.flags.writeable:
        root = root.toreadonly()
    return strided, (pickle.PickleBuffer(root), offset, a.dtype, a.shape, a.strides)


_SHARED = ("SharedBuffer", "FrozenBuffer")  # of _core/buffer.c, which imports this
_BUFFER_MIN = 65536  # CORE_BUFFER_MIN


def strided(buffer: Any, offset: int, dtype: Any, shape: Any, strides: Any) -> Any:
    import numpy as np

    return np.ndarray(shape, dtype, buffer, offset, strides)


def dumps(
    objects: list[Any],
    seen: Callable[[Any], Any],
    left: int,
    moving: bool,
    known: _byvalue.Known | None,
    counts: Callable[[Any], Any],
) -> Any:
    """The pickle of the list; None when it is longer than `left` bytes.

    `seen` is asked about every object: what it answers, if not None, stands for the object;
    `counts` answers True for a handle, without counting it."""
    pickler = _Pickler.to(left, known, counts)
    pickler.moving = moving
    pickler.persistent_id = seen
    try:
        pickler.dump(objects)
    except _OverBudget:
        return None
    return pickler.sink.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, load: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self.load_handle = load

    def persistent_load(self, pid: Any) -> Any:
        return self.load_handle(pid)


def loads(data: bytes, load: Callable[[Any], Any] | None) -> Any:
    """The list again; `load` makes an object from what `seen` has answered for it."""
    return pickle.loads(data) if load is None else _Unpickler(data, load).load()


# ---- whose fault it was --------------------------------------------------------------------------


def blame(
    objects: list[Any],
    exc: BaseException,
    moving: bool,
    known: _byvalue.Known | None,
    counts: Callable[[Any], Any],
) -> tuple[int, str, str, BaseException]:
    """(number, path within, reason, error) of the object in the list that cannot be pickled."""
    error: BaseException | None = exc
    inner = None
    try:
        for number, o in enumerate(objects):
            error = _error(o, moving, known, counts)
            if error is None:
                continue
            path = ""
            for _ in range(50):
                for step, part in _parts(o, known):
                    inner = _error(part, moving, known, counts)
                    if inner is not None:
                        path, o, error = path + step, part, inner
                        break
                else:
                    break
            return number, path, _reason(o, error), error
        return -1, "", _reason(objects, exc), exc
    finally:
        # This frame is in their tracebacks: with them in it, all that is refused would live on,
        # in a cycle, and seem to be shared with somebody at the next try.
        del exc, error, inner


def _reason(o: object, error: BaseException) -> str:
    if isinstance(error, Refused):
        return str(error)
    return f"{type(o).__qualname__}: {type(error).__name__}: {error}"


def _error(
    o: object, moving: bool, known: _byvalue.Known | None, counts: Callable[[Any], Any]
) -> BaseException | None:
    try:
        dumps([o], counts, 1 << 62, moving, known, counts)
    except Exception as e:
        return e
    return None


def _parts(o: Any, known: _byvalue.Known | None) -> Iterator[tuple[str, Any]]:
    if isinstance(o, (list, tuple)):
        for i, item in enumerate(o):
            yield f"[{i}]", item
    elif isinstance(o, dict):
        for key, value in list(o.items()):
            yield f"[{key!r}]" if isinstance(key, (str, int)) else "[...]", value
    elif isinstance(o, (set, frozenset)):
        for item in o:
            yield " (an element)", item
    if isinstance(o, types.FunctionType):
        for name, cell in zip(o.__code__.co_freevars, o.__closure__ or (), strict=False):
            try:
                yield f".{name}", cell.cell_contents
            except ValueError:
                continue
        yield from _byvalue.parts(o, known)
        return
    state = getattr(o, "__dict__", None)
    if isinstance(state, dict) and not isinstance(o, type):
        for name, value in list(state.items()):
            yield f".{name}", value
    for kind in type(o).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(o, name):
                yield f".{name}", getattr(o, name)


# ---- builtin iterators ---------------------------------------------------------------------------


def reduce(o: Any) -> Any:
    """`o.__reduce__()`, which itertools has deprecated and still needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return o.__reduce__()


def rebuild(make: Callable[..., Any], args: tuple[Any, ...], state: Any) -> Any:
    o = make(*args)
    if state is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            o.__setstate__(state)
    return o


# ---- exceptions as results -----------------------------------------------------------------------
#
# One who awaits gets a copy of the exception and of all that hang on it, each exception once. What
# makes one is encoded by itself: so one that cannot cross, or that the other side cannot make, does
# not cost the others. No constructor runs: a user's may take other arguments than `args`.
# No closure and no generator expression here: one that gets no memory crashes 3.12 and 3.13.

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


# ---- context variables ---------------------------------------------------------------------------


def context_items(context: contextvars.Context) -> tuple[tuple[str, str, Any], ...]:
    """(module, name, value) of each variable that a module's global leads to."""
    found = []
    for var, value in context.items():
        where = _where(var)
        if where is not None:
            found.append((*where, value))
    return tuple(found)


# Where a variable was found, or None and how many modules there were then. The look through all
# modules takes milliseconds, and every `go` asks.
_found: dict[contextvars.ContextVar[Any], tuple[str, str] | int] = {}


def _where(var: contextvars.ContextVar[Any]) -> tuple[str, str] | None:
    known = _found.get(var)
    if isinstance(known, tuple):
        if getattr(sys.modules.get(known[0]), known[1], None) is var:
            return known
    elif known == len(sys.modules):
        return None
    named = _code.variable_of(var)
    if named is None:
        _found[var] = len(sys.modules)
        return None
    _, module, name, *_ = _code.unpack(named[1])
    _found[var] = (module, name)
    return module, name


def context_set(items: tuple[tuple[str, str, Any], ...]) -> None:
    for module, name, value in items:
        try:
            var = getattr(_code.import_module(module), name, None)
        except Exception:
            continue
        if isinstance(var, contextvars.ContextVar):
            var.set(value)
