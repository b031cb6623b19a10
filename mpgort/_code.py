"""Code, functions, classes, variables by name: what of them is the same in every process.

The shared table of codes and names (_core/code.c, shm/code.c) holds payloads that are made and read
here, once per entry and process: enough to find the same thing in another process, or to build it.

The identity of code is a digest of its content. `marshal.dumps` of two equal code objects may
differ (it notes which objects are shared), and the raw bytecode changes as it warms up, so neither
will do. What may be believed of a frame of that code is in _bytecode.py.

A function or class that goes by its name has the digests of its code with it (`content_of`), and
who finds other code under that name refuses it: the module was edited, or reloaded on one side
only. What the import of its module gives is compared, so a wrapper is looked through
(`__wrapped__`: somebody traces calls on one side), and of a class the methods that it defines on
both sides. Rejected: to send the new code along. It would run beside the rest of the old module.
A module itself goes by its bare name, until M0 has imported it again (`Known.loaded_anew`): then
the digests of all that it defines go along, and what refers to it crosses by value.
"""

from __future__ import annotations

import collections
import contextvars
import hashlib
import importlib
import inspect
import itertools
import marshal
import os
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.machinery import (
    BuiltinImporter,
    FrozenImporter,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Any, cast

import cloudpickle.cloudpickle as cp

from . import _byvalue
from ._bytecode import Point, analyse
from ._errors import CodeMismatch


def digest(code: types.CodeType, module: str) -> bytes:
    """16 bytes that are the same in every process for the same code of the same module."""
    h = hashlib.blake2b(module.encode(), digest_size=16)
    _feed(h, code)
    return h.digest()


def _feed(h: hashlib.blake2b, v: object) -> None:
    if isinstance(v, types.CodeType):
        h.update(b"code(")
        for part in (
            v.co_name, v.co_qualname, v.co_code, v.co_flags, v.co_firstlineno, v.co_argcount,
            v.co_posonlyargcount, v.co_kwonlyargcount, v.co_stacksize, v.co_exceptiontable,
            v.co_names, v.co_varnames, v.co_cellvars, v.co_freevars, v.co_consts,
        ):  # fmt: skip
            _feed(h, part)
    elif isinstance(v, tuple):
        h.update(b"tuple(%d" % len(v))
        for item in v:
            _feed(h, item)
    elif isinstance(v, frozenset):
        inner = []
        for item in v:
            part_hash = hashlib.blake2b(digest_size=16)
            _feed(part_hash, item)
            inner.append(part_hash.digest())
        h.update(b"frozenset(%d" % len(v) + b"".join(sorted(inner)))
    else:
        text = f"{type(v).__name__}:{v!r}".encode("utf-8", "surrogatepass")
        h.update(b"%d:" % len(text) + text)


def _main_name(module: str) -> str:
    """`__mp_main__` is what a spawned process calls the `__main__` of the one that spawned it."""
    if module == "__mp_main__" and sys.modules.get(module) is sys.modules.get("__main__"):
        return "__main__"
    return module


def _same_everywhere(module: types.ModuleType) -> bool:
    """Whether the import of the module in another process gives the same code: not for the main
    module, nor for one that a loader of its own has rewritten (pytest's assertions)."""
    loader = getattr(module, "__loader__", None)
    plain = (SourceFileLoader, SourcelessFileLoader, BuiltinImporter, FrozenImporter)
    own = loader is not None and type(loader) not in plain and loader not in plain
    return module.__name__ != "__main__" and not own


def describe(
    code: types.CodeType, globals: dict[str, Any]
) -> tuple[bytes, bytes, list[Point]] | str:
    """(digest, payload, resume points) of a code that runs with these globals, or why it stays.

    The payload is what another process needs to find the same code, or to build it; and what a
    dump needs to show a frame without doing either: file, name, a line per resume point.
    """
    name = globals.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    unit = _byvalue.unit_of(globals)
    if unit is not None:
        why = unit.why_home()
        if why is not None:
            return why
    elif module is None or module.__dict__ is not globals:
        return f"the globals of {code.co_qualname} are not those of a module"
    flags = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
    points: list[Point] = []
    if code.co_flags & flags:
        points = analyse(code)
        if not points:
            return f"the bytecode of {code.co_qualname} is of an unknown shape"
    name = str(name)
    # The code, and its unit or what a loader has added.
    body: tuple[bytes, bytes | dict[str, str]] | None = None
    if unit is not None:
        key = digest(code, unit.key.hex())
        body = marshal.dumps(code), unit.data
    else:
        assert module is not None
        name = _main_name(name)
        key = digest(code, name)
        if not _same_everywhere(module) or _find(module, code.co_qualname, key, name) is not code:
            body = marshal.dumps(code), _added(code, globals)
    lines = tuple(p.line for p in points)
    slots = tuple(len(p.locals) + len(p.stack) for p in points)
    first = code.co_firstlineno
    what = ("code", name, code.co_qualname, code.co_filename, first, lines, slots, body)
    return key, marshal.dumps(what), points


def _added(code: types.CodeType, globals: dict[str, Any]) -> dict[str, str]:
    """The modules that a loader has put among the globals, under names that nobody can write, for
    the code that it has rewritten: '@pytest_ar'. By those names."""
    found = {}
    for name in cp._extract_code_globals(code):
        value = None if name.isidentifier() else globals.get(name)
        if isinstance(value, types.ModuleType):
            found[name] = value.__name__
    return found


def locate(payload: bytes, key: bytes) -> tuple[types.CodeType, dict[str, Any]]:
    """The code that a payload describes, and its globals here. Raises CodeMismatch."""
    _, name, qualname, filename, line, _, _, body = marshal.loads(payload)
    where = f"{name}.{qualname} ({filename}:{line})"
    if body is not None and isinstance(body[1], bytes):
        unit = _byvalue.load(body[1])
        unit.moves = True  # it is in the table already
        code = unit.codes.get(key)
        if code is None:
            code = unit.codes[key] = cast(types.CodeType, marshal.loads(body[0]))
            if digest(code, unit.key.hex()) != key:
                raise CodeMismatch(f"{where}: the code that was sent does not match its own digest")
        return code, unit.globals
    try:
        module = sys.modules.get(name) or importlib.import_module(name)
    except ImportError as e:
        raise CodeMismatch(f"{where}: this process cannot import {name}: {e}") from e
    code = _find(module, qualname, key, name)
    if code is None:
        if body is None:
            raise CodeMismatch(f"{where}: this process has other code under that name")
        code = cast(types.CodeType, marshal.loads(body[0]))
        if digest(code, name) != key:
            raise CodeMismatch(f"{where}: the code that was sent does not match its own digest")
        for added, of in body[1].items():
            module.__dict__.setdefault(added, import_module(of))
    return code, module.__dict__


def _find(module: types.ModuleType, qualname: str, key: bytes, name: str) -> types.CodeType | None:
    """The code with this digest reached from the module by its qualified name."""
    found: object = module
    for part in qualname.split(".<locals>", 1)[0].split("."):
        found = getattr(found, "__dict__", {}).get(part)
        if found is None:
            return None
    last = qualname.rpartition(".")[2]
    for code in _codes(found, set()):
        if code.co_name == last and code.co_qualname == qualname and digest(code, name) == key:
            return code
    return None


def _codes(o: object, seen: set[int]) -> Iterator[types.CodeType]:
    """Code objects of a function, through the wrappers that decorators put around it, and of the
    functions nested in it."""
    if id(o) in seen or len(seen) > 1000:
        return
    seen.add(id(o))
    if isinstance(o, types.CodeType):
        yield o
        for const in o.co_consts:
            if isinstance(const, types.CodeType):
                yield from _codes(const, seen)
    elif isinstance(o, types.FunctionType):
        yield from _codes(o.__code__, seen)
        for cell in o.__closure__ or ():
            try:
                yield from _codes(cell.cell_contents, seen)
            except ValueError:
                continue
    for name in ("__wrapped__", "__func__", "func", "fget", "fset", "fdel"):
        inner = inspect.getattr_static(o, name, None)
        if isinstance(inner, types.MemberDescriptorType):
            inner = getattr(o, name, None)
        if inner is not None and (callable(inner) or isinstance(inner, types.CodeType)):
            yield from _codes(inner, seen)


def _walk(name: str, qualname: str) -> object:
    found: object = sys.modules.get(name) or importlib.import_module(name)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _loaded(name: str) -> bool:
    """Whether the module is there, or is one of a package that is: numpy.rec is imported late, and
    np.recarray says that it is of it."""
    if name in sys.modules:
        return True
    if not hasattr(sys.modules.get(name.rpartition(".")[0]), "__path__"):
        return False
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return name in sys.modules


def name_of(o: object, known: _byvalue.Known | None = None) -> tuple[bytes, bytes] | None:
    """(digest, payload) of a function or class that its module and qualified name lead to; of
    `__main__` what the workers know."""
    in_unit = _byvalue.name_in_unit(o)
    if in_unit is not None:
        return _named("__main__", in_unit[1], {}, in_unit[0].data)
    owner = getattr(o, "__objclass__", o)  # of a builtin type's method: list.append
    name, qualname = getattr(owner, "__module__", None), getattr(o, "__qualname__", None)
    if not isinstance(name, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    name = _main_name(name)
    try:
        if not _loaded(name) or _walk(name, qualname) is not o:
            return None
    except AttributeError:
        return None
    if known is not None and name == "__main__" and not known.finds(o, qualname):
        return None
    return _named(name, qualname, content_of(o, name))


def variable_of(o: object, known: _byvalue.Known | None = None) -> tuple[bytes, bytes] | None:
    """(digest, payload) of the global variable of some module that this object is the value of."""
    for name, module in list(sys.modules.items()):
        table = getattr(module, "__dict__", None)
        if not isinstance(table, dict):
            continue
        for variable, value in list(table.items()):
            if value is o and isinstance(variable, str) and not variable.startswith("__"):
                if known is not None and _main_name(name) == "__main__":
                    if not known.finds(o, variable):
                        continue
                return _named(_main_name(name), variable, content_of(o, _main_name(name)))
    return None


def _named(
    name: str, qualname: str, content: dict[str, bytes], unit: bytes | None = None
) -> tuple[bytes, bytes]:
    payload = marshal.dumps(("name", name, qualname, unit, content), 2)
    return hashlib.blake2b(payload, digest_size=16).digest(), payload


def content_of(o: object, name: str) -> dict[str, bytes]:
    """The digests of what a function ("") or class of this module, or of some module's by this
    name, has as code; of other objects, and where no import would give the same, nothing."""
    if isinstance(o, types.FunctionType):
        found = {"": o}
    elif isinstance(o, type):
        found = {n: m for n, v in vars(o).items() if (m := _method(o, n, v)) is not None}
    else:
        return {}
    module = sys.modules.get(name)
    ours = name.partition(".")[0] == __package__
    if not found or ours or module is None or not _same_everywhere(module):
        return {}
    return {n: _digest_of(inspect.unwrap(f), name) for n, f in found.items()}


def _method(cls: type, name: str, value: object) -> types.FunctionType | None:
    """The function that the body of the class has defined under that name."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if not isinstance(value, types.FunctionType) or value.__module__ != cls.__module__:
        return None
    return value if value.__qualname__ == f"{cls.__qualname__}.{name}" else None


_digests: dict[tuple[int, str], tuple[types.CodeType, bytes]] = {}


def _digest_of(f: Any, name: str) -> bytes:
    code = getattr(f, "__code__", None)
    if not isinstance(code, types.CodeType):
        return b""
    known = _digests.get((id(code), name))
    if known is None:
        known = _digests[id(code), name] = code, digest(code, name)[:8]
    return known[1]


def check_content(o: object, name: str, qualname: str, content: dict[str, bytes]) -> None:
    """Raises CodeMismatch if a function or class has here other code than where it was sent."""
    here = content_of(o, name) if content else {}
    other = [n for n in content if n in here and content[n] != here[n]]
    if other:
        raise _mismatch(".".join(filter(None, (name, qualname, other[0]))), "other code")


def _mismatch(culprit: str, what: str) -> CodeMismatch:
    return CodeMismatch(
        f"{culprit}: process {os.getpid()} has {what} under that name. A module that was edited or "
        "reloaded needs new workers: Runtime.recycle() under spawn, else a new Runtime, Executor "
        "or Pool"
    )


def resolve(
    payload: bytes, known: _byvalue.Known | None = None
) -> tuple[dict[str, Any], str, tuple[str, ...], object]:
    """(module dict, key, further attributes, object) of a name's payload."""
    _, name, qualname, unit, content = marshal.loads(payload)
    if unit is not None:
        g = _byvalue.load(unit).globals
        return g, qualname, (), g[qualname]
    head, *rest = qualname.split(".")
    was = known.defined_anew(head) if known is not None and name == "__main__" else None
    if was is not None and known is not None:  # for the workers it is what it was
        for part in rest:
            was = getattr(was, part)
        return known.names, head, tuple(map(sys.intern, rest)), was
    try:
        found = _walk(name, qualname)
    except (ImportError, AttributeError) as e:
        raise CodeMismatch(f"{name}.{qualname}: this process has nothing under that name") from e
    check_content(found, name, qualname, content)
    first, *rest = qualname.split(".")
    return sys.modules[name].__dict__, first, tuple(map(sys.intern, rest)), found


def named(payload: bytes) -> object:
    """What a name's payload within a pickle stands for."""
    return resolve(payload)[3]


def trace_payload(kind: str, what: Any) -> tuple[bytes, bytes]:
    """(digest, payload) of a stack or a name in a trace, for the table of codes and names."""
    if kind == "event" and not isinstance(what, (str, int)):
        what = repr(what)
    payload = marshal.dumps((kind, what), 2)
    return hashlib.blake2b(payload, digest_size=16).digest(), payload


def trace_unpack(payload: bytes) -> Any:
    return marshal.loads(payload)[1]


def pack(what: Any) -> bytes:
    return marshal.dumps(what)


def unpack(data: bytes) -> Any:
    return marshal.loads(data)


def import_module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise CodeMismatch(f"this process cannot import {name}: {e}") from e


def module_content(module: types.ModuleType) -> dict[str, dict[str, bytes]]:
    """content_of() all functions and classes that a module, which was loaded anew, defines."""
    name = module.__name__
    found = {
        n: content_of(o, name)
        for n, o in list(vars(module).items())
        if isinstance(o, (types.FunctionType, type)) and o.__module__ == name
    }
    return {n: content for n, content in found.items() if content}


def module_named(name: str, content: dict[str, dict[str, bytes]]) -> types.ModuleType:
    """The module, if what it has under these names here is the same."""
    module = import_module(name)
    for n, theirs in content.items():
        if n not in vars(module):
            raise _mismatch(f"{name}.{n}", "nothing")
        check_content(vars(module)[n], name, n, theirs)
    return module


# ---- context variables: by the module and the global that lead to them --------------------------


_DECIMAL = "decimal", "decimal_context"  # a variable that C alone knows


def context_items(
    context: contextvars.Context, whole: bool
) -> tuple[tuple[tuple[str, str, Any], ...], str | None, object]:
    """(module, name, value) of each variable that a module's global leads to; why another is not
    among them; and decimal's context, which changes in place, if there is one. That is left out
    where it is as every thread begins with it, but for its flags if not all is wanted whole."""
    found, lost, sums = [], None, None
    for var, value in context.items():
        where = _where(var)
        if where is None and type(value) is getattr(sys.modules.get("decimal"), "Context", None):
            where, sums = _DECIMAL, value
            flags = any(value.flags.values())
            if _is_default(value) and not (flags and whole):
                lost = "the flags of decimal's context" if flags else lost
                continue
        if where is not None:
            found.append((*where, value))
        else:
            lost = ascii(f"context variable {var.name}: no module leads to it")[1:-1]
    return tuple(found), lost, sums


def _is_default(sums: Any) -> bool:
    default = sys.modules["decimal"].DefaultContext
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")
    return all(getattr(sums, name) == getattr(default, name) for name in names)


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
    named = variable_of(var)
    if named is None:
        _found[var] = len(sys.modules)
        return None
    _, module, name, *_ = unpack(named[1])
    _found[var] = (module, name)
    return module, name


def context_set(items: tuple[tuple[str, str, Any], ...]) -> None:
    for module, name, value in items:
        if (module, name) == _DECIMAL:
            import_module(module).setcontext(value)
            continue
        try:
            var = getattr(import_module(module), name, None)
        except Exception:
            continue
        if isinstance(var, contextvars.ContextVar):
            var.set(value)


# ---- samples of what CPython gives no name to ----------------------------------------------------


async def _ended_coroutine() -> None:
    pass


def _ended_generator() -> Iterator[None]:
    yield


async def _ended_async_generator() -> AsyncIterator[None]:
    yield


def samples() -> tuple[object, ...]:
    """One asend, one athrow and one coroutine wrapper, for their types; the stock functions on
    whose code finished generators are rebuilt; the callables that builtin iterators
    reduce to; deque."""
    agen = _ended_async_generator()
    coro = _ended_coroutine()
    send, throw, wrapper = agen.asend(None), agen.athrow(GeneratorExit), coro.__await__()  # type: ignore[attr-defined]
    coro.close()
    for awaitable in (send, throw):
        awaitable.close()
    makers = [iter, enumerate, zip, map, filter, reversed]
    for name in (
        "accumulate", "batched", "chain", "combinations", "combinations_with_replacement",
        "compress", "count", "cycle", "dropwhile", "filterfalse", "groupby", "islice", "pairwise",
        "permutations", "product", "repeat", "starmap", "takewhile", "tee", "zip_longest",
        "_grouper", "_tee", "_tee_dataobject",
    ):  # fmt: skip
        maker = getattr(itertools, name, None)
        if isinstance(maker, type):
            makers.append(maker)
    stock = (_ended_coroutine, _ended_generator, _ended_async_generator)
    return send, throw, wrapper, *stock, makers, collections.deque


async def self_test(park: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What is encoded, dropped, rebuilt and resumed once before any other frame may move."""
    seen: list[Any] = []
    text = "x" * len(__name__)
    for i in (1, 2):
        try:
            raise KeyError(i)
        except KeyError as e:
            seen.append((i, await park(), text))
            seen.append(e.args)
    return seen
