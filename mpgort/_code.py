"""What must be known of a code object before its frames may move: asked once per code and process.

A continuation names its code by a number of the shared code table and its position by a *resume
point*: the index of a place where a frame of that code can stand suspended. The decoder runs on
bytes it does not trust, and the interpreter trusts every frame: it pops what it believes to be a
list, calls the slot of what it believes to be an iterator, loads a local it believes to be bound.
So for each resume point `analyse` predicts what the interpreter believes there, by the forward
dataflow that the compiler itself relies on, and the decoder refuses bytes that say otherwise.

A kind is one letter, for a stack slot and for a local alike:

    ?  any object      0  no object (NULL)        N  an object or NULL
    i  an iterator     a  what is being awaited   c  a cell
    l  list            s  set       d  dict       t  tuple
    e  an exception    p  an exception or None    n  the index of an instruction (an int)

Two paths that meet keep what both promise. What an opcode is not known to promise is `?`: a gap in
the table below weakens a check, and never refuses a frame that the interpreter has made.

The identity of code is a digest of its content. `marshal.dumps` of two equal code objects may
differ (it notes which objects are shared), and the raw bytecode changes as it warms up, so neither
will do.

A function or class that goes by its name has the digests of its code with it (`content_of`), and
who finds other code under that name refuses it: the module was edited, or reloaded on one side
only. What the import of its module gives is compared, so a wrapper is looked through
(`__wrapped__`: somebody traces calls on one side), and of a class the methods that it defines on
both sides. Rejected: to send the new code along. It would run beside the rest of the old module.
"""

from __future__ import annotations

import collections
import dis
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
from typing import Any, NamedTuple, cast

from . import _byvalue
from ._errors import CodeMismatch

CREATED, AWAIT, YIELD = 0, 1, 2

# Opcodes after which the next one is not reached.
_LEAVES = {
    "RETURN_VALUE",
    "RETURN_CONST",
    "RERAISE",
    "RAISE_VARARGS",
    "JUMP_FORWARD",
    "JUMP_BACKWARD",
    "JUMP_BACKWARD_NO_INTERRUPT",
    "INTERPRETER_EXIT",
}
# What an opcode without a rule of its own takes off the stack, and the kinds it puts there.
_SIMPLE: dict[str, tuple[int, str]] = {
    "POP_TOP": (1, ""),
    "POP_EXCEPT": (1, ""),
    "PUSH_NULL": (0, "0"),
    "GET_ITER": (1, "i"),
    "GET_YIELD_FROM_ITER": (1, "a"),
    "GET_AWAITABLE": (1, "a"),
    "GET_AITER": (1, "?"),
    "GET_ANEXT": (0, "a"),
    "BEFORE_ASYNC_WITH": (1, "?a"),
    "BEFORE_WITH": (1, "??"),
    "PUSH_EXC_INFO": (1, "pe"),
    "CHECK_EXC_MATCH": (1, "?"),
    "CHECK_EG_MATCH": (2, "pp"),
    "PREP_RERAISE_STAR": (2, "p"),
    "WITH_EXCEPT_START": (0, "?"),
    "END_ASYNC_FOR": (2, ""),
    "LIST_TO_TUPLE": (1, "t"),
    "BINARY_OP": (2, "?"),
    "BINARY_SUBSCR": (2, "?"),
    "BINARY_SLICE": (3, "?"),
    "COMPARE_OP": (2, "?"),
    "IS_OP": (2, "?"),
    "CONTAINS_OP": (2, "?"),
    "STORE_SUBSCR": (3, ""),
    "STORE_SLICE": (4, ""),
    "DELETE_SUBSCR": (2, ""),
    "STORE_ATTR": (2, ""),
    "DELETE_ATTR": (1, ""),
    "STORE_GLOBAL": (1, ""),
    "STORE_NAME": (1, ""),
    "STORE_DEREF": (1, ""),
    "LIST_APPEND": (1, ""),
    "LIST_EXTEND": (1, ""),
    "SET_ADD": (1, ""),
    "SET_UPDATE": (1, ""),
    "MAP_ADD": (2, ""),
    "DICT_UPDATE": (1, ""),
    "DICT_MERGE": (1, ""),
    "LOAD_CONST": (0, "?"),
    "LOAD_DEREF": (0, "?"),
    "LOAD_CLOSURE": (0, "c"),
    "LOAD_BUILD_CLASS": (0, "?"),
    "LOAD_ASSERTION_ERROR": (0, "?"),
    "LOAD_NAME": (0, "?"),
    "UNARY_NOT": (1, "?"),
    "UNARY_NEGATIVE": (1, "?"),
    "UNARY_INVERT": (1, "?"),
    "UNARY_POSITIVE": (1, "?"),
    "TO_BOOL": (1, "?"),
    "CONVERT_VALUE": (1, "?"),
    "FORMAT_SIMPLE": (1, "?"),
    "FORMAT_WITH_SPEC": (2, "?"),
    "CALL_INTRINSIC_1": (1, "?"),
    "RETURN_GENERATOR": (0, "?"),
    "YIELD_VALUE": (1, "?"),
    "END_SEND": (2, "?"),
    "CLEANUP_THROW": (3, "??"),
    "MATCH_SEQUENCE": (0, "?"),
    "MATCH_MAPPING": (0, "?"),
    "MATCH_KEYS": (0, "?"),
    "MATCH_CLASS": (3, "?"),
    "ASYNC_GEN_WRAP": (1, "?"),
    "GET_LEN": (0, "?"),
    "IMPORT_NAME": (2, "?"),
    "IMPORT_FROM": (0, "?"),
    "END_FOR": (1 if sys.version_info >= (3, 13) else 2, ""),
    "SET_FUNCTION_ATTRIBUTE": (2, "?"),
}
# The count of operands is the argument; what it makes.
_BUILDS = {
    "BUILD_LIST": (1, "l"),
    "BUILD_SET": (1, "s"),
    "BUILD_MAP": (2, "d"),
    "BUILD_TUPLE": (1, "t"),
    "BUILD_STRING": (1, "?"),
    "BUILD_SLICE": (1, "?"),
}
_UNCHANGED = {
    "NOP", "RESUME", "CACHE", "EXTENDED_ARG", "PRECALL", "KW_NAMES", "JUMP_FORWARD",
    "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "SETUP_ANNOTATIONS", "DELETE_GLOBAL",
    "DELETE_NAME", "DELETE_DEREF",
}  # fmt: skip
_NULL_FIRST = sys.version_info < (3, 13)  # 3.13 moved the NULL of a call above the callable


class Point(NamedTuple):
    """A place where a frame can stand suspended. Offsets count code units (2 bytes)."""

    next: int  # the instruction that runs when it is resumed
    forward: int  # where SEND leaves to once the awaited has its result; -1: not by this way
    line: int
    how: int  # CREATED, AWAIT or YIELD
    locals: bytes  # a kind per local
    stack: bytes  # a kind per slot of the value stack


class _Unknown(Exception):
    """The bytecode has a shape that this analysis does not understand."""


def _join(a: str, b: str) -> str:
    if a == b:
        return a
    return "N" if a in "0N" or b in "0N" else "?"


def _exception_table(code: types.CodeType) -> list[tuple[int, int, int, int, bool]]:
    """(start, end, handler, depth, lasti) in bytes, as Objects/exception_handling_notes.txt."""
    data = iter(code.co_exceptiontable)

    def number() -> int:
        byte = next(data)
        value = byte & 63
        while byte & 64:
            byte = next(data)
            value = value << 6 | byte & 63
        return value

    table: list[tuple[int, int, int, int, bool]] = []
    while True:
        try:
            start = number() * 2
        except StopIteration:
            return table
        end, target, depth = start + number() * 2, number() * 2, number()
        table.append((start, end, target, depth >> 1, bool(depth & 1)))


class _State(NamedTuple):
    locals: str
    stack: str

    def put(self, i: int, kind: str) -> _State:
        """With local i as `kind`; only what the interpreter relies on for locals is told apart."""
        kept = kind if kind in "0Nci" else "?"
        return self._replace(locals=self.locals[:i] + kept + self.locals[i + 1 :])

    def loaded(self, i: int) -> str:
        """The kind of local i on the stack: reading an unbound one raises."""
        return self.locals[i] if self.locals[i] in "ci" else "?"

    def pop(self, n: int, push: str = "") -> _State:
        if n > len(self.stack):
            raise _Unknown("the stack runs empty")
        return self._replace(stack=self.stack[: len(self.stack) - n] + push)


def _step(ins: dis.Instruction, s: _State, jump: bool) -> _State:
    """The state after `ins`, on the way of its jump or on to the next instruction."""
    name, arg, stack = ins.opname, ins.arg or 0, s.stack
    if name in _SIMPLE:
        return s.pop(*_SIMPLE[name])
    if name in _UNCHANGED:
        return s
    if name in _BUILDS:
        each, made = _BUILDS[name]
        return s.pop(each * arg, made)
    if name == "COPY":
        return s.pop(0, stack[-arg])
    if name == "SWAP":
        under = len(stack) - arg
        return s._replace(stack=stack[:under] + stack[-1] + stack[under + 1 : -1] + stack[under])
    if name in ("LOAD_FAST", "LOAD_FAST_CHECK"):
        return s.pop(0, s.loaded(arg))
    if name == "LOAD_FAST_AND_CLEAR":
        return s.put(arg, "0").pop(0, s.locals[arg])
    if name == "STORE_FAST":
        return s.put(arg, stack[-1]).pop(1)
    if name == "DELETE_FAST":
        return s.put(arg, "0")
    if name == "MAKE_CELL":
        return s.put(arg, "c")
    if name == "COPY_FREE_VARS":
        return s._replace(locals=s.locals[: len(s.locals) - arg] + "c" * arg)
    if name == "LOAD_FAST_LOAD_FAST":
        return s.pop(0, s.loaded(arg >> 4) + s.loaded(arg & 15))
    if name == "STORE_FAST_LOAD_FAST":
        stored = s.put(arg >> 4, stack[-1])
        return stored.pop(1, stored.loaded(arg & 15))
    if name == "STORE_FAST_STORE_FAST":
        return s.put(arg >> 4, stack[-1]).put(arg & 15, stack[-2]).pop(2)
    if name == "LOAD_GLOBAL":
        if arg & 1:
            return s.pop(0, "0?" if _NULL_FIRST else "?0")
        return s.pop(0, "?")
    if name == "LOAD_METHOD" or name == "LOAD_ATTR" and sys.version_info >= (3, 12) and arg & 1:
        return s.pop(1, "N?" if _NULL_FIRST else "?N")
    if name == "LOAD_ATTR":
        return s.pop(1, "?")
    if name == "LOAD_SUPER_ATTR":
        return s.pop(3, ("N?" if _NULL_FIRST else "?N") if arg & 1 else "?")
    if name == "CALL":
        return s.pop(arg + 2, "?")
    if name == "CALL_KW":
        return s.pop(arg + 3, "?")
    if name == "MAKE_FUNCTION":  # defaults, annotations, closure: one below the code for each bit
        return s.pop(1 + arg.bit_count(), "?")
    if name == "CALL_FUNCTION_EX":
        return s.pop(3 + (arg & 1), "?")
    if name == "CALL_INTRINSIC_2":
        return s.pop(2, "p" if arg == 1 else "?")
    if name == "MAKE_FUNCTION":
        return s.pop(1 + (arg & 15).bit_count() if sys.version_info < (3, 13) else 1, "?")
    if name == "BUILD_CONST_KEY_MAP":
        return s.pop(arg + 1, "d")
    if name == "FORMAT_VALUE":
        return s.pop(2 if arg & 4 else 1, "?")
    if name == "UNPACK_SEQUENCE":
        return s.pop(1, "?" * arg)
    if name == "UNPACK_EX":
        return s.pop(1, "?" * ((arg & 255) + 1 + (arg >> 8)))
    if name == "SEND":
        if jump and sys.version_info < (3, 12):
            return s.pop(2, "?")
        return s.pop(1, "?")
    if name == "FOR_ITER" and not jump:
        return s.pop(0, "?")
    effect = _effect(ins, jump)
    if name.startswith(("POP_JUMP", "FOR_ITER", "JUMP_IF")):
        return s.pop(-effect) if effect < 0 else s.pop(0, "?" * effect)
    return _blur(name, s, effect)


def _effect(ins: dis.Instruction, jump: bool) -> int:
    has_arg = ins.opcode >= dis.HAVE_ARGUMENT
    return dis.stack_effect(ins.opcode, ins.arg if has_arg else None, jump=jump)


def _blur(name: str, s: _State, effect: int) -> _State:
    """The state after an opcode without a rule. Its operands were near the top, but below them may
    stand a call's NULL."""
    stack = s.stack
    depth = len(stack) + effect
    if depth < 0:
        raise _Unknown(name)
    left = stack[: min(depth, len(stack))]
    kept = max(0, len(left) - 4)
    blurred = "".join(_join(kind, "?") for kind in left[kept:])
    return s._replace(stack=left[:kept] + blurred + "?" * (depth - len(left)))


def _entry(code: types.CodeType) -> _State:
    n_args = code.co_argcount + code.co_kwonlyargcount
    n_args += bool(code.co_flags & inspect.CO_VARARGS) + bool(
        code.co_flags & inspect.CO_VARKEYWORDS
    )
    n_slots = len({*code.co_varnames, *code.co_cellvars, *code.co_freevars})
    args = "?" * n_args
    if code.co_varnames[:1] == (".0",) and _iterates(code):
        args = "i" + args[1:]
    return _State(args + "0" * (n_slots - n_args), "")


def _iterates(code: types.CodeType) -> bool:
    """Whether `.0` of a comprehension's code is what FOR_ITER takes, unasked, for an iterator: the
    function that makes it has called iter(). One with `async for` asks what it got."""
    pairs = itertools.pairwise(dis.get_instructions(code))
    return any(a.argval == ".0" and b.opname == "FOR_ITER" for a, b in pairs)


def analyse(code: types.CodeType) -> list[Point]:
    """The resume points of a coroutine, generator or async generator's code, the first one CREATED.

    Returns an empty list where the bytecode has a shape that is not understood: such a frame does
    not move.
    """
    try:
        return list(_points(code))
    except (_Unknown, IndexError, ValueError):
        return []


def _points(code: types.CodeType) -> Iterator[Point]:
    instructions = list(dis.get_instructions(code))
    index = {ins.offset: i for i, ins in enumerate(instructions)}
    handlers = _exception_table(code)
    states: dict[int, _State] = {}
    todo: list[int] = []

    def reach(offset: int, s: _State) -> None:
        old = states.get(offset)
        if old is not None:
            if len(old.stack) != len(s.stack):
                raise _Unknown(f"two depths at {offset}")
            s = _State(*("".join(map(_join, a, b)) for a, b in zip(old, s, strict=True)))
            if s == old:
                return
        states[offset] = s
        todo.append(index[offset])

    reach(0, _entry(code))
    while todo:
        i = todo.pop()
        ins = instructions[i]
        s = states[ins.offset]
        for start, end, target, depth, lasti in handlers:
            if start <= ins.offset < end:
                reach(target, s._replace(stack=s.stack[:depth] + ("n" if lasti else "") + "e"))
                break
        if ins.opcode in dis.hasjrel or ins.opcode in dis.hasjabs:
            reach(ins.argval, _step(ins, s, True))
        if ins.opname not in _LEAVES:
            reach(instructions[i + 1].offset, _step(ins, s, False))

    line = code.co_firstlineno
    lines = dict[int, int]()
    for start, end, number in code.co_lines():
        for offset in range(start, end, 2):
            lines[offset] = number if number is not None else line
    for i, ins in enumerate(instructions):
        state = states.get(ins.offset)
        if state is None:
            continue
        here = lines.get(ins.offset, line)
        if ins.opname == "RETURN_GENERATOR":
            after = instructions[i + 1].offset // 2
            yield Point(after, -1, line, CREATED, state.locals.encode(), b"")
        elif ins.opname == "YIELD_VALUE":
            after = instructions[i + 1].offset // 2
            send = instructions[i - 1] if instructions[i - 1].opname == "SEND" else None
            stack = state.stack[:-1]
            forward = _forward(instructions, index, states, send, len(stack)) if send else -1
            how = AWAIT if send else YIELD
            yield Point(after, forward, here, how, state.locals.encode(), stack.encode())


def _forward(
    instructions: list[dis.Instruction],
    index: dict[int, int],
    states: dict[int, _State],
    send: dis.Instruction,
    depth: int,
) -> int:
    """Where SEND leaves to with a result, one past END_SEND; -1 unless the depths agree."""
    i = index[send.argval]
    if instructions[i].opname == "END_SEND":
        i += 1
    elif sys.version_info >= (3, 12):
        return -1
    state = states.get(instructions[i].offset)
    if state is None or len(state.stack) != depth:
        return -1
    return instructions[i].offset // 2


# ---- identity, names ----------------------------------------------------------------------------


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
    body: bytes | tuple[bytes, bytes] | None = None
    if unit is not None:
        key = digest(code, unit.key.hex())
        body = marshal.dumps(code), unit.data
    else:
        assert module is not None
        name = _main_name(name)
        key = digest(code, name)
        if not _same_everywhere(module) or _find(module, code.co_qualname, key, name) is not code:
            body = marshal.dumps(code)
    lines = tuple(p.line for p in points)
    slots = tuple(len(p.locals) + len(p.stack) for p in points)
    first = code.co_firstlineno
    what = ("code", name, code.co_qualname, code.co_filename, first, lines, slots, body)
    return key, marshal.dumps(what), points


def locate(payload: bytes, key: bytes) -> tuple[types.CodeType, dict[str, Any]]:
    """The code that a payload describes, and its globals here. Raises CodeMismatch."""
    _, name, qualname, filename, line, _, _, body = marshal.loads(payload)
    where = f"{name}.{qualname} ({filename}:{line})"
    if isinstance(body, tuple):
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
        code = cast(types.CodeType, marshal.loads(body))
        if digest(code, name) != key:
            raise CodeMismatch(f"{where}: the code that was sent does not match its own digest")
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
        if name not in sys.modules or _walk(name, qualname) is not o:
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
        culprit = ".".join(filter(None, (name, qualname, other[0])))
        raise CodeMismatch(
            f"{culprit}: process {os.getpid()} has other code under that name. A module that was "
            "edited or reloaded needs new workers: Runtime.recycle() under spawn, else a new "
            "Runtime, Executor or Pool"
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
