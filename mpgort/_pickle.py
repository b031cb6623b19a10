"""The one pickler: what has no tag of its own in the codec goes through here.

Pickle does the work, with cloudpickle's reducers for what pickle knows no name for: lambdas, local
classes, functions of an interactive session. Two rules stand above both. What a module and a name
lead to goes by that name, also in `__main__` (which cloudpickle would copy): a class is one class
on both sides. And an open file, a socket, a lock never cross, whatever a reducer makes of them.
"""

from __future__ import annotations

import _thread
import asyncio
import collections.abc
import concurrent.futures
import contextvars
import copyreg
import io
import mmap
import pickle
import select
import socket
import subprocess
import sys
import threading
import traceback
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from . import _code

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
    what = _never(kind)
    if what is not None:
        return f"{what} ({kind.__module__}.{kind.__qualname__}) {verb}"
    if moving and not isinstance(o, type):
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

    def reducer_override(self, o: Any) -> Any:
        why = refusal(o, self.moving)
        if why is not None:
            raise Refused(why)
        if isinstance(o, (type, types.FunctionType)) and _code.name_of(o) is not None:
            return NotImplemented
        return super().reducer_override(o)


def dumps(objects: list[Any], seen: Callable[[Any], Any], left: int, moving: bool) -> Any:
    """The pickle of the list; None when it is longer than `left` bytes.

    `seen` is asked about every object: what it answers, if not None, stands for the object."""
    sink = _Budget(left)

    def large(buffer: pickle.PickleBuffer) -> bool:
        """Looks at the size before the copy; True keeps the buffer in the pickle."""
        if buffer.raw().nbytes > sink.left:
            raise _OverBudget
        return True

    pickler = _Pickler(sink, 5, buffer_callback=large)
    pickler.moving = moving
    pickler.persistent_id = seen
    try:
        pickler.dump(objects)
    except _OverBudget:
        return None
    return sink.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, load: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self.load_handle = load

    def persistent_load(self, pid: Any) -> Any:
        return self.load_handle(pid)


def loads(data: bytes, load: Callable[[Any], Any] | None) -> Any:
    """The list again; `load` makes an object from what `seen` has answered for it."""
    return pickle.loads(data) if load is None else _Unpickler(data, load).load()


def _plain(o: object) -> None:
    """For pickles without handles: nothing stands for anything."""


# ---- whose fault it was --------------------------------------------------------------------------


def blame(
    objects: list[Any], exc: BaseException, moving: bool, seen: Callable[[Any], Any]
) -> tuple[int, str, str, BaseException]:
    """(number, path within, reason, error) of the object in the list that cannot be pickled."""
    for number, o in enumerate(objects):
        error = _error(o, moving, seen)
        if error is None:
            continue
        path = ""
        for _ in range(50):
            for step, part in _parts(o):
                inner = _error(part, moving, seen)
                if inner is not None:
                    path, o, error = path + step, part, inner
                    break
            else:
                break
        return number, path, _reason(o, error), error
    return -1, "", _reason(objects, exc), exc


def _reason(o: object, error: BaseException) -> str:
    if isinstance(error, Refused):
        return str(error)
    return f"{type(o).__qualname__}: {type(error).__name__}: {error}"


def _error(o: object, moving: bool, seen: Callable[[Any], Any]) -> BaseException | None:
    try:
        dumps([o], seen, 1 << 62, moving)
    except Exception as e:
        return e
    return None


def _parts(o: Any) -> Iterator[tuple[str, Any]]:
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


class _RemoteTraceback(Exception):
    """The traceback of another process as text; stands as the cause of the exception it is of."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


def exc_dumps(exc: BaseException) -> bytes:
    """An exception with its chain, and its traceback as text."""
    try:
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except Exception:
        text = f"{type(exc).__qualname__} (its traceback cannot be shown)"
    return pickle.dumps((f'\n"""\n{text}"""', _flat(exc, [])), 5)


def _flat(exc: BaseException | None, above: list[BaseException]) -> Any:
    """What `_unflat` makes the exception from: only bytes, str, bool, None and tuples of such."""
    if exc is None or any(exc is e for e in above) or len(above) > 50:
        return None
    above = [*above, exc]
    kind: type = type(exc)
    body = _one(exc)
    if body is None:
        for kind in type(exc).__mro__[1:]:
            body = _one_as(kind, exc)
            if body is not None:
                break
    group = ()
    if isinstance(exc, BaseExceptionGroup):
        group = tuple(_flat(e, above) for e in exc.exceptions)
    notes = tuple(str(n) for n in getattr(exc, "__notes__", ()))
    cause, context = _flat(exc.__cause__, above), _flat(exc.__context__, above)
    message = str(exc.message) if isinstance(exc, BaseExceptionGroup) else ""
    return body, notes, cause, context, exc.__suppress_context__, group, message


def _one(exc: BaseException) -> bytes | None:
    """A pickle of the exception alone that was seen to come back."""
    if isinstance(exc, BaseExceptionGroup):
        return _pickled(type(exc))
    data = _pickled(exc)
    try:
        back = loads(data, None)[0] if data is not None else None
    except Exception:
        return None
    return data if type(back).__qualname__ == type(exc).__qualname__ else None


def _one_as(kind: type, exc: BaseException) -> bytes | None:
    if not issubclass(kind, BaseException):
        return None
    for args in (exc.args, (str(exc),), ()):
        try:
            data = _pickled(kind(*args))
            if data is not None and isinstance(loads(data, None)[0], kind):
                return data
        except Exception:
            continue
    return None


def _pickled(o: object) -> bytes | None:
    try:
        return dumps([o], _plain, 1 << 62, False)  # type: ignore[no-any-return]
    except Exception:
        return None


def exc_loads(data: bytes) -> BaseException:
    text, flat = pickle.loads(data)
    exc = _unflat(flat)
    if exc is None:
        exc = RuntimeError("an exception that could not cross")
    remote = _RemoteTraceback(text)
    remote.__cause__ = exc.__cause__
    exc.__cause__ = remote
    return exc


def _unflat(flat: Any) -> BaseException | None:
    if flat is None:
        return None
    body, notes, cause, context, suppress, group, message = flat
    try:
        exc = loads(body, None)[0]
        if group:
            inner = [e for e in map(_unflat, group) if e is not None]
            exc = exc(message, inner) if isinstance(exc, type) else exc
    except Exception as e:
        exc = RuntimeError(f"an exception whose class cannot be found here: {e}")
    for note in notes:
        if note not in getattr(exc, "__notes__", ()):
            exc.add_note(note)
    exc.__cause__ = _unflat(cause)
    exc.__context__ = _unflat(context)
    exc.__suppress_context__ = suppress
    return exc  # type: ignore[no-any-return]


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
    _, module, name = _code.unpack(named[1])
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
