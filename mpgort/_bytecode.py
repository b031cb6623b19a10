"""What the interpreter believes about a suspended frame: asked once per code object and process.

A continuation names its code by a number of the shared code table (_code.py) and its position by a
*resume point*: the index of a place where a frame of that code can stand suspended. The decoder
runs on bytes it does not trust, and the interpreter trusts every frame: it pops what it believes to
be a list, calls the slot of what it believes to be an iterator, loads a local it believes to be
bound. So for each resume point `analyse` predicts what the interpreter believes there, by the
forward dataflow that the compiler itself relies on, and the decoder refuses bytes that say
otherwise.

A kind is one letter, for a stack slot and for a local alike:

    ?  any object      0  no object (NULL)        N  an object or NULL
    i  an iterator     a  what is being awaited   c  a cell
    l  list            s  set       d  dict       t  tuple
    e  an exception    p  an exception or None    n  the index of an instruction (an int)

Two paths that meet keep what both promise. What an opcode is not known to promise is `?`: a gap in
the table below weakens a check, and never refuses a frame that the interpreter has made.
"""

from __future__ import annotations

import dis
import inspect
import itertools
import sys
import types
from collections.abc import Iterator
from typing import NamedTuple

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
