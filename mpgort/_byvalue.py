"""What of `__main__` crosses by value: functions and classes that the workers do not know.

A function or class of a module goes by its name, and is what the import of that module makes it.
`__main__` cannot be imported: a forked worker has what was there when the workers were started, one
of the other start methods what the import of the main file makes; of an interactive session (it has
no file) that is nothing. `Known` is what M0 may rely on. What is not in it, because it was defined
since, defined anew (a cell that was run again), or uses something that was, crosses by value, with
the globals that it uses as they are at that moment.

A UNIT is such a snapshot: the pickle of one function's code, or of one class, and of the globals
that it names; functions among those have theirs in the same unit, as in Python they share one
`__main__`. Who loads it fills a dict of its own with them (`Unit.globals`), above what this process
has as `__main__` where the workers know one: so a model that an initializer has loaded is found.
The same bytes are loaded once per process, so what a task assigns to a global is there for the next
task of that process, as with any module; other bytes (a constant has changed) are another unit.
What must be counted (handles, large buffers) is kept out of the bytes (`ext`).

MOVES. Frames go by the number of their code (_code.py). For code of a unit the shared table has the
unit beside it, and names in a unit are names there, so coroutines, classes and instances move as
those of a module do. But the table only grows: a unit of more than MOVABLE_BYTES, one with `ext`
(a global that is a channel), and all after the first MOVABLE_MOST (or MOVABLE_IN_ALL bytes) of a
process stay out of it: their goroutines are at home on one worker, and a dump says why. What has
come by the table is taken by everyone, however many that is.

CLASSES. A class by value is one class per process: cloudpickle's tracker gives it an id, which goes
with it. Where it was defined nothing is ever assigned to it. Elsewhere the unit that came last has
filled it, also if that was loaded long ago: so each task sees the methods that were sent with it.

AN INITIALIZER that crosses by value has the workers' own `__main__` for its globals, and what it
uses of them is put there: of a session that is all of it. So what it loads and assigns is there for
the tasks, as after a fork; for M0 those names are known, whatever the workers make of them.

Rejected: to write new definitions into the workers' `__main__`. Of two tasks that were sent with
two values of one constant both would see the later one."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import marshal
import operator
import os
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle.cloudpickle as cp

from ._buffer import BUFFER_MIN
from ._errors import Refused

UNIT = "__mpgort_unit__"  # a unit's globals lead to it, and to its class, under these names
ROOT = "__mpgort_root__"
MOVABLE_BYTES = 65536
MOVABLE_MOST = 1000
MOVABLE_IN_ALL = 4 << 20
LOADED_MOST = 256
_CODE = (types.FunctionType, type, functools._lru_cache_wrapper)
_MAIN = ("__main__", "__mp_main__")


def main_dict() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


# ---- what the workers know -----------------------------------------------------------------------


def main_is_imported() -> bool:
    """Whether _m.import_main() has something to import, in a fresh interpreter of this program."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return not f".{name}".endswith(".__main__")
    path = getattr(main, "__file__", None) or ""
    return os.path.isfile(path) and os.path.basename(path).partition(".")[0] != "ipython"


class Known:
    """What the workers of one program have as `__main__`; in M0 only."""

    def __init__(self, names: dict[str, Any], rebinds: bool) -> None:
        """rebinds: a session, where to assign to a global is to define it anew. In a file's
        functions globals are per process: what M0 assigns to one that the workers have is M0's."""
        self.names = names
        self.rebinds = rebinds
        self.uses: dict[int, tuple[Any, list[str]]] = {}  # by id: the object, and what it names
        self.left_out: dict[int, dict[str, Any]] = {}  # new values that cannot cross, by function
        self.specs = {n: getattr(m, "__spec__", None) for n, m in list(sys.modules.items())}

    @classmethod
    def now(cls, method: str, initializer: Any) -> Known:
        imported = main_is_imported()
        if method != "fork" and not imported:
            return cls(initialized(initializer), True)
        items = list(main_dict().items())
        return cls(
            {n: v if not imported or isinstance(v, _CODE) else None for n, v in items}, not imported
        )

    def has(self, name: str, value: Any) -> bool:
        """Whether the workers have this under that name, or what they have is theirs."""
        if name not in self.names:
            return False
        was = self.names[name]
        if isinstance(value, types.ModuleType) and self.loaded_anew(value):
            return False
        defines = self.rebinds or isinstance(was, _CODE) or isinstance(value, _CODE)
        return was is value or not defines

    def loaded_anew(self, module: types.ModuleType) -> bool:
        """Whether it was imported again (or a module that was imported since the start, again since
        it was first sent): each time gives it another spec. Workers may have what it was."""
        name, spec = module.__name__, getattr(module, "__spec__", None)
        return sys.modules.get(name) is module and self.specs.setdefault(name, spec) is not spec

    def lacks(self, o: Any) -> bool:
        """Whether a function, class or code would find other globals there than here."""
        entry = self.uses.get(id(o))
        names = self.names_used(o) if entry is None or entry[0] is not o else entry[1]
        g, left_out = main_dict(), self.left_out.get(id(o), {})
        for name in names:
            if "." in name and name in sys.modules and self.loaded_anew(sys.modules[name]):
                return True
            if name in g and not self.has(name, g[name]):
                if name not in left_out or left_out[name] is not g[name]:
                    return True
        return False

    def finds(self, o: Any, qualname: str) -> bool:
        """Whether the workers have this object of `__main__` under its name, with all it uses."""
        head = qualname.partition(".")[0]
        return head in self.names and self.has(head, main_dict().get(head)) and not self.lacks(o)

    def defined_anew(self, name: str) -> Any:
        """The function or class that the workers have under a name which is another's here."""
        was = self.names.get(name)
        return was if isinstance(was, _CODE) and main_dict().get(name) is not was else None

    def names_used(self, o: Any) -> list[str]:
        """The globals that it names, and those that what the workers know of them names; and the
        submodules that it reaches from those."""
        found: dict[str, None] = {}
        seen: set[int] = set()
        todo, g, whole = [o], main_dict(), True
        while todo:
            x = todo.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if not isinstance(x, types.CodeType):
                todo += _inside(x, g)
                continue
            for name in cp._extract_code_globals(x):
                found[name] = None
                found.update((m.__name__, None) for m in _submodules(x, g.get(name)))
                if name in g and self.has(name, g[name]):
                    todo.append(g[name])
                elif name in g:
                    whole = False
        if whole and self.names.get(getattr(o, "__name__", ""), self) is o:
            self.uses[id(o)] = o, list(found)
        return list(found)

    def gives_up(self, o: Any, crosses: Callable[[Any], bool]) -> bool:
        """A function that the workers know, and some new global of it that cannot cross: it goes by
        its name, without that one."""
        if self.names.get(getattr(o, "__name__", ""), self) is not o:
            return False
        g = main_dict()
        new = [n for n in self.names_used(o) if n in g and n not in self.names]
        self.left_out[id(o)] = {n: g[n] for n in new if not crosses(g[n])}  # known, so kept
        return not self.lacks(o)


def _submodules(code: types.CodeType, package: Any) -> Iterator[types.ModuleType]:
    """`a.b` and `a.b.c`, if this is the package a and the code says a.b.c.f."""
    if isinstance(package, types.ModuleType) and hasattr(package, "__path__"):
        for name in code.co_names:
            inner = sys.modules.get(f"{package.__name__}.{name}")
            if inner is not None:
                yield inner
                yield from _submodules(code, inner)


def _inside(x: Any, g: dict[str, Any]) -> Iterator[Any]:
    """What of a function or class of these globals has code in it."""
    if isinstance(x, types.FunctionType):
        if x.__globals__ is g:
            yield x.__code__
        for cell in x.__closure__ or ():
            if (value := cp._get_cell_contents(cell)) is not cp._empty_cell_value:
                yield value
    elif isinstance(x, type):
        if x.__module__ in _MAIN:
            yield from x.__bases__
            yield from vars(x).values()
    elif isinstance(x, (staticmethod, classmethod, types.MethodType)):
        yield x.__func__
    elif isinstance(x, property):
        yield from (x.fget, x.fset, x.fdel)
    elif isinstance(x, (functools.partial, functools.cached_property)):
        yield x.func
    elif isinstance(x, functools._lru_cache_wrapper):
        yield x.__wrapped__


# ---- what an initializer brings along ------------------------------------------------------------

_ABSENT = object()  # the initializer may define it


def initialized(initializer: Any) -> dict[str, Any]:
    """The globals of `__main__` that it uses or sets, and that what it uses does."""
    g = main_dict()
    found: dict[str, Any] = {}
    seen: set[int] = set()
    todo = [initializer]
    while todo:
        x = todo.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, types.CodeType):
            for name in cp._extract_code_globals(x):
                found[name] = g.get(name, _ABSENT)
                todo.append(found[name])
        else:
            todo += _inside(x, g)
    return found


class _IntoMain(cp.Pickler):  # type: ignore[misc]
    def __init__(self, sink: io.BytesIO) -> None:
        from multiprocessing import reduction

        known = reduction.ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        self.dispatch_table = collections.ChainMap(known, cp.Pickler.dispatch_table)
        super().__init__(sink)  # which looks for it
        self.mark = {UNIT: None}
        self.globals_ref[id(main_dict())] = self.mark

    def persistent_id(self, o: Any) -> str | None:
        return "main" if o is self.mark else None


class _FromMain(pickle.Unpickler):
    def persistent_load(self, pid: str) -> Any:
        return main_dict()


def dump_initializer(o: Any) -> bytes:
    """Within Inherited.dump() (_m.py)."""
    sink = io.BytesIO()
    _IntoMain(sink).dump(o)
    return sink.getvalue()


def load_initializer(data: bytes) -> Any:
    """In a worker, or its keeper. What its `__main__` has already stays as it is."""
    was = dict(main_dict())
    o = _FromMain(io.BytesIO(data)).load()
    main_dict().update(was)
    return o


# ---- units ---------------------------------------------------------------------------------------


class Unit:
    """Some globals, as a process has loaded them; see above."""

    def __init__(self, data: bytes, ext: tuple[Any, ...]) -> None:
        self.data = data
        self.ext = ext
        self.key = hashlib.blake2b(data, digest_size=16).digest()
        self.globals: dict[str, Any] = {UNIT: self, "__builtins__": __builtins__}
        self.classes: list[tuple[type, Any]] = []
        self.codes: dict[bytes, types.CodeType] = {}  # of frames that came here by a move
        self.moves: bool | None = None

    def why_home(self) -> str | None:
        """Why its code does not move, or None."""
        global _moving, _moving_bytes
        if self.moves is None:
            n = len(self.data)
            fits = not self.ext and n <= MOVABLE_BYTES
            self.moves = fits and _moving < MOVABLE_MOST and _moving_bytes + n <= MOVABLE_IN_ALL
            if self.moves:
                _moving += 1
                _moving_bytes += n
        if self.moves:
            return None
        if self.ext:
            return "the globals that came with it hold what is shared: pass it as an argument"
        if len(self.data) > MOVABLE_BYTES:
            return f"the globals that came with it take more than {MOVABLE_BYTES} bytes"
        return "too many versions of the globals that came with it have been"


_moving = _moving_bytes = 0
_loaded: collections.OrderedDict[bytes, Unit] = collections.OrderedDict()
_filled: weakref.WeakKeyDictionary[type, Unit] = weakref.WeakKeyDictionary()  # by value, here


class _Loader(pickle.Unpickler):
    def __init__(self, unit: Unit) -> None:
        super().__init__(io.BytesIO(unit.data[1:]))
        self.unit = unit

    def persistent_load(self, pid: int) -> Any:
        return self.unit.globals if pid == 0 else self.unit.ext[pid - 1]


def load(data: bytes, ext: tuple[Any, ...] = ()) -> Unit:
    unit = Unit(data, ext)
    known = None if ext else _loaded.get(unit.key)
    if known is not None:
        _loaded.move_to_end(unit.key)
        for cls, state in known.classes:
            if _filled.get(cls) is not known:
                _fill(cls, state, known)
        return known
    g = unit.globals
    if data[:1] == b"\1":
        g.update(main_dict())
    root, names, _ = _Loader(unit).load()
    g.update(names)
    g[ROOT] = root
    if not ext:
        _loaded[unit.key] = unit
        if len(_loaded) > LOADED_MOST:
            _loaded.popitem(last=False)
    return unit


def unit_of(g: dict[str, Any]) -> Unit | None:
    unit = g.get(UNIT)
    return unit if isinstance(unit, Unit) else None


def name_in_unit(o: Any) -> tuple[Unit, str] | None:
    """The unit, and the name in its globals, of a class or function that came by value and goes
    on by number."""
    if isinstance(o, types.FunctionType):
        unit = unit_of(o.__globals__)
    else:
        unit = _filled.get(o) if isinstance(o, type) else None
    if unit is None or unit.why_home() is not None:
        return None
    if unit.globals[ROOT] is o:
        return unit, ROOT
    name = o.__qualname__
    return (unit, name) if unit.globals.get(name) is o else None


def named(data: bytes, name: str) -> Any:
    return load(data).globals[name]


def make_function(
    data: bytes, ext: tuple[Any, ...], cells: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    g = load(data, ext).globals
    code = g[ROOT]
    return types.FunctionType(code, g, code.co_name, None, cells)


def the_class(ident: str, data: bytes, ext: tuple[Any, ...]) -> Any:
    cls = cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(ident)
    if cls is not None and cls not in _filled:
        return cls  # it is of here
    return load(data, ext).globals[ROOT]


def set_class(cls: type, state: Any) -> Any:
    g, state = state
    unit = unit_of(g)
    if unit is None:
        return cp._class_setstate(cls, state)
    if cls in _mine:
        return cls
    unit.classes.append((cls, state))
    _fill(cls, state, unit)
    return cls


def _fill(cls: type, state: Any, unit: Unit) -> None:
    _filled[cls] = unit
    attributes, slots = state
    cp._class_setstate(cls, (dict(attributes), dict(slots)))


_mine: weakref.WeakSet[type] = weakref.WeakSet()  # defined here, and sent


# ---- how they are pickled ------------------------------------------------------------------------


def reduce(p: Any, o: Any) -> Any:
    """How the pickler p (_pickle.py) sends a function or class that goes by no name. None: it is of
    a module, and cloudpickle's affair."""
    if isinstance(o, type):
        if "_ctypes" in (o.__module__, type(o).__module__):
            return _of_ctypes(o)
        came = _filled.get(o)
        if came is None and not _is_session(o.__module__, p.known):
            return None
        if came is None:
            _mine.add(o)
        if p.mark is not None:
            made = list(cp._dynamic_class_reduce(o))
            # cloudpickle's would be a class whose objects have a dict. (A NamedTuple forbids it.)
            if "__slots__" in vars(o) and not issubclass(o, tuple):
                made[1][3]["__slots__"] = vars(o)["__slots__"]
            made[2], made[5] = (p.mark, made[2]), set_class
            return tuple(made)
        g = came.globals if came is not None else _globals_of(o)
        data, ext = _unit_bytes(p, o, g, {})
        return the_class, (cp._get_or_create_tracker_id(o), data, ext)
    g = o.__globals__
    module = sys.modules.get(g.get("__name__", ""))
    if module is not None and vars(module) is g and (p.known is None or g is not main_dict()):
        return None
    if p.mark is not None:
        made = list(p._dynamic_function_reduce(o))
        made[2][1]["__globals__"] = _taken(p.known, o.__code__, g)
        return tuple(made)
    names = _taken(p.known, o.__code__, g)
    try:
        data, ext = _unit_bytes(p, o.__code__, g, names)
    except Exception:
        if p.known is not None and p.known.gives_up(o, p.crosses):
            return NotImplemented
        raise
    attributes, slots = cp._function_getstate(o)
    slots.update(__globals__={}, _cloudpickle_submodules=[])
    cells = None if o.__closure__ is None else tuple(types.CellType() for _ in o.__closure__)
    state = attributes, slots
    return make_function, (data, ext, cells), state, None, None, cp._function_setstate


def _of_ctypes(o: Any) -> Any:
    """Of a type that the import of a module has not made. ctypes makes arrays and pointers of other
    types, and functions of theirs, once per process."""
    kind = type(o).__name__
    made: Any = None
    if kind == "PyCArrayType":
        made = operator.mul, (o._type_, o._length_)
    elif kind == "PyCPointerType" and isinstance(getattr(o, "_type_", None), type):
        made = sys.modules["ctypes"].POINTER, (o._type_,)
    elif kind == "PyCFuncPtrType" and o._flags_ == sys.modules["_ctypes"].FUNCFLAG_CDECL:
        made = sys.modules["ctypes"].CFUNCTYPE, (o._restype_, *getattr(o, "_argtypes_", ()))
    if made is None or made[0](*made[1]) is not o:
        raise Refused(f"{o.__qualname__}, a type of ctypes that no module leads to, never crosses")
    return made


def parts(f: types.FunctionType, known: Known | None) -> Iterator[tuple[str, Any]]:
    """The globals that go along with a function, for the path to one that cannot."""
    g = f.__globals__
    if (known is not None and g is main_dict()) or unit_of(g) is not None:
        for name, value in _taken(known, f.__code__, g).items():
            yield f".__globals__[{name!r}]", value


def marshalled(code: types.CodeType) -> Any:
    # Version 2: later ones tell which objects are shared, so the same code may have other bytes.
    return marshal.loads, (marshal.dumps(code, 2),)


def cached(o: Any) -> Any:
    """What functools.lru_cache has made: again, around the function that goes by value."""
    how = o.cache_parameters()
    return lru_cached, (o.__wrapped__, how["maxsize"], how["typed"])


def lru_cached(f: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(f)


def _is_session(module: str, known: Known | None) -> bool:
    return (known is not None and module in _MAIN) or module not in sys.modules


def _globals_of(cls: type) -> dict[str, Any]:
    """The globals that the class was defined in, as its methods have them."""
    for x in vars(cls).values():
        for f in (x, *_inside(x, {})):
            if isinstance(f, types.FunctionType) and f.__module__ == cls.__module__:
                return f.__globals__
    return main_dict()


def _taken(known: Known | None, code: types.CodeType, g: dict[str, Any]) -> dict[str, Any]:
    """The globals that go along with this code."""
    taken = {}
    for name in cp._extract_code_globals(code):
        if name not in g:
            continue
        value = g[name]
        if known is not None and g is main_dict() and known.has(name, value):
            anew = any(map(known.loaded_anew, _submodules(code, value)))
            if not anew and (not isinstance(value, _CODE) or not known.lacks(value)):
                continue
        taken[name] = value
    return taken


def _unit_bytes(
    p: Any, root: Any, g: dict[str, Any], names: dict[str, Any]
) -> tuple[bytes, tuple[Any, ...]]:
    came = unit_of(g)
    if came is not None:
        above = came.data[:1] == b"\1"
    else:
        above = g is main_dict() and p.known is not None and bool(p.known.names)
    ext: list[Any] = []
    mark = {UNIT: None}
    sub = p.another()

    def held(o: Any) -> int | None:
        if o is mark:
            return 0
        if (isinstance(o, pickle.PickleBuffer) and o.raw().nbytes >= BUFFER_MIN) or p.counts(o):
            for k, known in enumerate(ext):
                if known is o:
                    return k + 1
            ext.append(o)
            return len(ext)
        return None

    sub.mark = mark
    sub.globals_ref[id(g)] = mark
    sub.persistent_id = held
    names = {"".join(n): v for n, v in names.items()}
    for n in ("__name__", "__file__", "__package__"):
        if not above and n in g:
            names[n] = g[n]
    modules = []
    if isinstance(root, types.CodeType):
        modules = cp._find_imported_submodules(root, names.values())
    sub.dump((root, names, modules))
    return (b"\1" if above else b"\0") + sub.sink.getvalue(), tuple(ext)
