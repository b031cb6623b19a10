"""The one pickler: what has no tag of its own in the codec goes through here.

Pickle does the work, with cloudpickle's reducers for what pickle knows no name for: lambdas, local
classes. Two rules stand above both. What a module and a name lead to goes by that name, also in
`__main__` (which cloudpickle would copy) if the workers know it (_byvalue.py): a class is one class
on both sides. And an open file, a socket, a lock never cross, whatever a reducer makes of them.
"""

from __future__ import annotations

import _thread
import asyncio
import collections.abc
import concurrent.futures
import contextvars
import copyreg
import functools
import io
import mmap
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

from . import _buffer, _byvalue, _code
from ._errors import OverBudget, Refused, SerializationError

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
        return _buffer.why_not_memoryview(cast(memoryview, o), moving)
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
            raise OverBudget
        return super().write(data)


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
                raise OverBudget
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
        elif isinstance(o, types.ModuleType):
            if self.known is not None and self.known.loaded_anew(o):
                return _code.module_named, (o.__name__, _code.module_content(o))
        elif self.mark is not None and isinstance(o, types.CodeType):
            return _byvalue.marshalled(o)  # cloudpickle's would lose the file's name
        if type(o) is memoryview:
            flat = o if o.c_contiguous else memoryview(o.tobytes())
            return _buffer.viewed, (pickle.PickleBuffer(flat), o.format, o.shape)
        ndarray = getattr(sys.modules.get("numpy"), "ndarray", ())  # not imported: none is one
        if isinstance(o, ndarray):
            return _buffer.reduced(o, ndarray, self.moving, self.sink.left)
        pandas = sys.modules.get("pandas.core.arrays.arrow.array")
        if pandas is not None and isinstance(o, pandas.ArrowExtensionArray):
            return _buffer.column(o) or NotImplemented
        return super().reducer_override(o)


def pickled(h: Any, prog: Any, kind: int, off: int) -> tuple[Any, ...]:
    """How a handle is reduced for a pickle that is not the codec's: to a name in its program, which
    keeps it from now on."""
    from multiprocessing import context

    if context.get_spawning_popen() is not None:
        raise TypeError(
            f"a {type(h).__name__} means nothing to a process of multiprocessing: "
            "start a goroutine instead"
        )
    name = f"{kind} {off}"
    prog.pickled().setdefault(name, h)
    return unpickled, (prog.id, name)


def unpickled(program: str, name: str) -> Any:
    from mpgort import _core, _host

    here = [_core.current(), *(host.prog for host in list(_host.hosts))]
    for prog in here:
        if prog is not None and prog.id == program:
            return prog.pickled()[name]
    raise pickle.UnpicklingError(
        "a handle was pickled in a program that has ended, or that this process is none of: it has "
        "its meaning in that program's goroutines and threads only"
    )


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
    except OverBudget:
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
                if _refuses(o):
                    break
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


def _refuses(o: Any) -> bool:
    """Whether its own reducer says that it cannot be sent: then it is the culprit."""
    kind: Any = type(o)
    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        return False
    try:
        o.__reduce_ex__(5)
    except Exception:
        return True
    return False


def _reason(o: object, error: BaseException) -> str:
    if isinstance(error, (Refused, SerializationError)):
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
