"""Generated programs: whatever the grammar can say runs the same with its parks made moves.

Each example is the text of a module with one `body()`, made by `Writer` out of hypothesis' choices,
so that a failure shrinks to a small program and is printed whole. The same text runs in plain
Python (the oracle), moved within this process at parks that the example chooses, and, for a sample,
hopping between this process and a long-lived child with another hash seed. Compared are the result
(all locals, and which of the mutable ones are the same object), the exception with its chain, and
the log, which also notes at many places what sys.exc_info() sees.

MPGORT_FUZZ_EXAMPLES sets the number of examples."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import continuation_harness as h
import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from mpgort import _core

h.require_frames()

EXAMPLES = int(os.environ.get("MPGORT_FUZZ_EXAMPLES", "150"))

PRELUDE = """\
from contextlib import contextmanager, asynccontextmanager
from continuation_harness import Boom, exc_info_name, log, park

class Manager:
    def __init__(self, tag, swallow):
        self.tag, self.swallow = tag, swallow
    def __enter__(self):
        log("enter", self.tag)
        return [self.tag]
    def __exit__(self, kind, e, tb):
        log("exit", self.tag, kind and kind.__name__)
        return self.swallow and kind is not GeneratorExit

class AsyncManager(Manager):
    async def __aenter__(self):
        log("aenter", self.tag, await park())
        return [self.tag]
    async def __aexit__(self, kind, e, tb):
        log("aexit", self.tag, await park(), kind and kind.__name__)
        return self.swallow and kind is not GeneratorExit

@contextmanager
def manager(tag):
    log("in", tag)
    try:
        yield [tag]
    finally:
        log("out", tag, exc_info_name())

@asynccontextmanager
async def amanager(tag):
    log("in", tag, await park())
    try:
        yield [tag]
    except ValueError as e:
        log("swallowed", e, await park())

def count(n):
    got = []
    try:
        for i in range(n):
            got.append((yield (i, len(got))))
    finally:
        log("count ends", n)

async def ticks(n):
    for i in range(n):
        log("tick", await park())
        yield [i]

class Box:
    def __init__(self, item):
        self.item = item
    def __repr__(self):
        return f"Box({type(self.item).__name__})"
    async def swap(self, other):
        mine, self.item = self.item, await park()
        return [mine, other]

def step(v):
    return next(v, "spent") if hasattr(v, "__next__") else v

def push(v, x):
    if isinstance(v, list) and len(v) < 5:
        v.append(x)
    return v

def mix(*args, **kw):
    return (len(args), [type(a).__name__ for a in args], sorted(kw))

def same(*things):
    kinds = (list, dict, set, Box)
    return [[i for i, b in enumerate(things) if a is b] for a in things if isinstance(a, kinds)]

"""

NAMES = ["a", "b", "c", "d"]
ERRORS = ["KeyError", "ValueError", "Boom", "LookupError", "Exception"]


class Writer:
    """Writes one program. `pick(n)` is a choice below n; 0 is the simplest."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        self.pick = pick
        self.lines: list[str] = []
        self.indent = 0
        self.budget = 34
        self.loops = self.tries = 0
        self.serial = 0
        self.subs = 0
        self.in_generator = False

    # -- text

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(head)
        self.indent += 1
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.line("pass")
        self.indent -= 1

    def new(self, stem: str) -> str:
        self.serial += 1
        return f"{stem}{self.serial}"

    def name(self) -> str:
        return NAMES[self.pick(len(NAMES))]

    # -- expressions

    def expr(self, depth: int = 2) -> str:
        if depth == 0:
            return ["1", "await park()", self.name(), "'s'", "[]"][self.pick(5)]
        e = self.expr
        low = depth - 1
        kinds: list[Callable[[], str]] = [
            lambda: "await park()",
            lambda: self.name(),
            lambda: f"[{e(low)}, {e(low)}]",
            lambda: f"({e(low)}, {e(low)})",
            lambda: f"{{'k': {e(low)}, 2: {e(low)}}}",
            lambda: f"mix({e(low)}, *[{e(low)}, {e(low)}], k={e(low)}, **{{'z': {e(low)}}})",
            lambda: f'f"{{{e(0)}!r:.9}}-{{{e(0)}!s:>3.9}}"',
            lambda: f"({e(low)} if {e(low)} else {e(low)})",
            lambda: f"({e(low)} or {e(low)})",
            lambda: f"({e(low)} and {e(low)})",
            lambda: f"({self.name()} := {e(low)})",
            lambda: f"[{e(low)}, {e(low)}][{self.pick(2)}]",
            lambda: f"[{e(low)} for {self.new('i')} in (1, 2)]",
            lambda: f"{{{(i := self.new('i'))}: {e(low)} for {i} in range(2)}}",
            lambda: (
                f"[[{e(0)} for {self.new('j')} in 'xy'] for {self.new('i')} in (1, 2) if {e(0)}]"
            ),
            lambda: f"[{(t := self.new('t'))} async for {t} in ticks({self.pick(3)})]",
            lambda: f"list({(x := self.new('x'))} for {x} in range(3) if {x} != 1)",
            lambda: f"(lambda: {self.name()})()",
            lambda: f"push({self.name()}, {e(low)})",
            lambda: f"step({self.name()})",
            lambda: f"count({self.pick(4)})",
            lambda: f"iter([{e(0)}, {e(0)}, 3])",
            lambda: f"iter({{'p': {e(0)}, 'q': 2}}.items())",
            lambda: f"enumerate([{e(0)}, 'y'])",
            lambda: "zip([1, 2], 'ab')",
            lambda: f"Box({e(low)})",
            lambda: f"await Box({e(low)}).swap({e(low)})",
            lambda: f"({(z := self.new('z'))} for {z} in [1, 2, 3])",
            lambda: f"await sub{self.pick(self.subs)}({e(low)})" if self.subs else "await park()",
            lambda: "exc_info_name()",
            lambda: "{1, 2, 3}",
            lambda: "10 ** 30",
        ]
        return kinds[self.pick(len(kinds))]()

    def iterable(self) -> str:
        kinds = [
            "[1, 'two']", "(1, 2, 3)", "{'x': 1, 'y': [2]}", "{'x': 1, 'y': 2}.items()", "{1, 2}",
            "range(3)", "enumerate('ab', 5)", "zip([1, 2, 3], 'pq')", "reversed([1, 2])", "'xyz'",
            "count(3)", "(u * 2 for u in [1, 2])", "map(str, [1, 2])", "b'ab'",
            f"[{self.expr(1)}, {self.expr(0)}]", "{'x': 1, 'y': 2}.values()", "range(9, 0, -4)",
        ]  # fmt: skip
        return kinds[self.pick(len(kinds))]

    # -- statements

    def body(self, size: int) -> None:
        for _ in range(1 + self.pick(size)):
            self.statement()

    def statement(self) -> None:
        self.budget -= 1
        simple = [
            self.assign, self.note_log, self.await_park, self.mutate, self.delete, self.raise_it,
            self.closure, self.leave, self.unpack,
        ]  # fmt: skip
        compound = [
            self.if_else, self.for_loop, self.while_loop, self.try_except, self.try_finally,
            self.with_block, self.async_with, self.async_for, self.match, self.local_coroutine,
            self.except_star,
        ]  # fmt: skip
        if self.budget <= 0 or self.indent > 5:
            simple[self.pick(len(simple))]()
        else:
            every = [*simple, *compound]
            every[self.pick(len(every))]()

    def assign(self) -> None:
        self.line(f"{self.name()} = {self.expr()}")

    def note_log(self) -> None:
        self.line(f"log({self.serial}, {self.expr()}, exc_info_name())")

    def await_park(self) -> None:
        self.line(f"log('parked', {len(self.lines)}, await park(), exc_info_name())")

    def mutate(self) -> None:
        self.line(f"push({self.name()}, {self.expr(1)})")

    def delete(self) -> None:
        self.line(f"{self.name()} = None")
        if self.pick(3) == 2:
            self.line(f"del {self.name()}")

    def unpack(self) -> None:
        self.line(f"{self.name()}, *{self.name()} = {self.expr(1)}, {self.expr(0)}, {self.expr(0)}")

    def raise_it(self) -> None:
        if not self.tries and self.pick(4) != 3:
            return self.await_park()
        err = f"{ERRORS[self.pick(4)]}({self.pick(9)})"
        forms = [f"raise {err}", "raise", f"raise {err} from KeyError({self.pick(9)})"]
        with self.block(f"if {self.expr(0)}:"):
            self.line(forms[self.pick(3)])

    def leave(self) -> None:
        if self.loops:
            with self.block(f"if {self.expr(0)}:"):
                self.line(["break", "continue"][self.pick(2)])
        elif self.pick(4) == 3:
            with self.block(f"if {self.expr(0)}:"):
                self.line(f"return {'' if self.in_generator else self.expr(1)}")

    def closure(self) -> None:
        fn, var = self.new("fn"), self.name()
        with self.block(f"def {fn}(x={self.name()}):"):
            self.line(f"nonlocal {var}")
            self.line(f"{var} = [x, 'set by {fn}']")
            self.line(f"return {self.name()}")
        self.line(["log", "mix"][self.pick(2)] + f"({self.expr(0)})")
        self.line(f"{self.name()} = {fn}()")

    def if_else(self) -> None:
        with self.block(f"if {self.expr()}:"):
            self.body(2)
        with self.block("else:"):
            self.body(2)

    def looped(self, head: str) -> None:
        self.loops += 1
        with self.block(head):
            self.body(3)
        self.loops -= 1
        if self.pick(3) == 2:
            with self.block("else:"):
                self.body(1)

    def for_loop(self) -> None:
        self.looped(f"for {self.name()} in {self.iterable()}:")

    def while_loop(self) -> None:
        n = self.new("n")
        self.line(f"{n} = {self.pick(4)}")
        self.looped(f"while ({n} := {n} - 1) >= 0:")

    def try_except(self) -> None:
        self.tries += 1
        with self.block("try:"):
            self.body(3)
        self.tries -= 1
        for _ in range(1 + self.pick(2)):
            e = self.new("e")
            with self.block(f"except {ERRORS[self.pick(len(ERRORS))]} as {e}:"):
                self.line(f"log('caught', {e})")
                self.body(2)
        if self.pick(2):
            with self.block("else:"):
                self.body(1)
        if self.pick(2):
            self.final()

    def final(self) -> None:
        loops, self.loops = self.loops, 0  # break out of a finally would hide the exception
        with self.block("finally:"):
            self.line("log('finally', exc_info_name())")
            self.body(2)
        self.loops = loops

    def try_finally(self) -> None:
        with self.block("try:"):
            self.body(3)
        self.final()

    def except_star(self) -> None:
        loops, self.loops = self.loops, 0
        e = self.new("e")
        with self.block("try:"):
            self.line(f"log({self.expr(1)})")
            self.line("raise ExceptionGroup('g', [ValueError(1), KeyError(2), TypeError(3)])")
        with self.block(f"except* {ERRORS[self.pick(2)]} as {e}:"):
            self.line(f"log({e}, {self.expr(1)})")
        with self.block(f"except* {['Exception', 'TypeError'][self.pick(2)]}:"):
            self.line(f"log({self.expr(1)})")
        self.loops = loops

    def with_block(self) -> None:
        tag = self.serial
        heads = [
            f"with Manager({tag}, {bool(self.pick(2))}) as {self.name()}:",
            f"with manager({tag}) as {self.name()}, Manager('in', False):",
        ]
        with self.block(heads[self.pick(2)]):
            self.body(2)

    def async_with(self) -> None:
        tag = self.serial
        heads = [
            f"async with AsyncManager({tag}, {bool(self.pick(2))}) as {self.name()}:",
            f"async with amanager({tag}) as {self.name()}, AsyncManager('in', False):",
        ]
        with self.block(heads[self.pick(2)]):
            self.body(2)

    def async_for(self) -> None:
        self.looped(f"async for {self.name()} in ticks({self.pick(4)}):")

    def match(self) -> None:
        with self.block(f"match {self.expr()}:"):
            with self.block(f"case [x, *{self.name()}] if x != {self.expr(0)}:"):
                self.body(2)
            with self.block("case {'k': y}:"):
                self.line(f"log('k', y, {self.expr(1)})")
            with self.block("case _:"):
                self.body(2)

    def local_coroutine(self) -> None:
        fn, var = self.new("co"), self.name()
        with self.block(f"async def {fn}(x, *args, k={self.name()}):"):
            self.line(f"nonlocal {var}")
            self.line(f"{var} = {self.expr(1)}")
            self.line(f"log('in {fn}', x, args, k, await park())")
            if self.pick(2):
                self.raise_it()
            self.line(f"return [x, {self.expr(1)}]")
        self.line(f"{self.name()} = await {fn}({self.expr(1)}, *[{self.expr(0)}])")

    # -- the whole

    def function(self, head: str, size: int) -> None:
        with self.block(head):
            self.line("a, b, c, d = x, [1], {'k': 2}, iter((1, 2, 3))")
            self.body(size)
            self.line("return [a, b, c, d, same(a, b, c, d)]")
        self.line("")

    def program(self) -> str:
        for i in range(self.pick(3)):
            self.function(f"async def sub{i}(x):", 3)
            self.subs = i + 1
        self.budget = 34
        self.function("async def body(x='start'):", 6)
        return PRELUDE + "\n".join(self.lines)


@st.composite
def programs(draw: st.DrawFn) -> str:
    return Writer(lambda n: draw(st.integers(0, n - 1)) if n > 1 else 0).program()


ANSWERS = st.lists(
    st.sampled_from(["number", "none", "list", "text", "throw"]), min_size=4, max_size=12
)


def plan_of(answers: list[str], close: int) -> h.Plan:
    def plan(k: int) -> h.Act:
        if k == close:
            return ("close", None)
        match answers[k % len(answers)]:
            case "number":
                return ("send", k)
            case "list":
                return ("send", [k])
            case "text":
                return ("send", f"s{k}")
            case "throw" if k < 40:
                return ("throw", k)
        return ("send", None)

    return plan


@pytest.fixture(autouse=True, scope="module")
def frozen_heap() -> Iterator[None]:
    """Keeps what exists already out of the collection that ends each run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def child() -> Iterator[h.Child]:
    child = h.Child(seed=31337)
    yield child
    child.close()


TALLY = {"parks": 0, "moves": 0, "pinned": 0, "examples": 0, "hops": 0}
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="MPGORT_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(0)
@SETTINGS
@given(
    source=programs(),
    answers=ANSWERS,
    close=st.integers(0, 60),
    bits=st.integers(0, 2**16 - 1),
    ff=st.booleans(),
    hop=st.integers(0, 4),
)
def _check(
    child: h.Child, source: str, answers: list[str], close: int, bits: int, ff: bool, hop: int
) -> None:
    note(source)
    name = "generated_program"
    module = h.define(name, source)
    plan = plan_of(answers, close if close < 20 else -1)
    try:
        plain = h.run(module.body, plan, h.PlainEngine())
    except h.TooManyParks:
        assume(False)
    if any("ignored GeneratorExit" in d for d in plain.dropped):
        assume(False)  # a park inside a close: when the rest is torn down is up to the collector
    engine = h.MovingEngine(
        lambda k: bits == 0 or bool(bits >> k % 16 & 1), may_pin=True, fast_forward=ff
    )
    moved = h.run(module.body, plan, engine)
    assert moved == plain
    assert moved.dropped == plain.dropped
    TALLY["examples"] += 1
    TALLY["parks"] += moved.parks
    TALLY["moves"] += moved.moves
    TALLY["pinned"] += len(moved.pinned)
    for reason in moved.pinned[:1]:
        REASONS[reason] = REASONS.get(reason, 0) + 1
    if (hop == 4 or TALLY["examples"] % 8 == 0) and plain.parks:
        _core.set_fast_forward(True)
        child.call("define", name, source)
        hopped = h.run(module.body, plan, h.HoppingEngine(child, may_pin=True))
        assert hopped == plain
        TALLY["hops"] += hopped.moves
    sys.modules.pop(name, None)


REASONS: dict[str, int] = {}


def test_generated_programs_run_the_same_with_their_parks_made_moves(
    child: h.Child, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        _check(child)
    finally:
        _core.set_fast_forward(True)
        with capsys.disabled():
            print(f"\ngenerated programs: {TALLY}")
            for reason, n in sorted(REASONS.items(), key=lambda r: -r[1])[:5]:
                print(f"  stayed {n}: {reason}")
    assert TALLY["moves"] > TALLY["examples"] and TALLY["hops"] > 20
    assert TALLY["pinned"] < TALLY["moves"] / 10
