"""CPython's own test_coroutines, with every suspension made a park and every park a move.

The installed interpreter's Lib/test/test_coroutines.py is read as source and changed:

1. A `yield x` of a generator that coroutines await (one under `@types.coroutine`, or an
   `__await__`) becomes a park that remembers x: the coroutine suspends where it did.
2. A test that drives its coroutines by `run_async` or `run_async__await__` becomes a coroutine
   itself and awaits them: so what the test and its coroutines share is inside the chain, and the
   test moves as a whole at each park. The test case goes by name, as a module global.
3. `name.send(v)` on a local name moves the chain too, and rebinds the name.
4. A class that a function defines becomes a global one (`global Name` in front): a class that no
   module leads to would keep its goroutine at home.
5. Few of its coroutines suspend at all, so each `await`, each body of an `async def`, `async for`
   or `async with` gets one more park in front, which is passed over without the test seeing it.
   The tests are run without these too, for the few that a further park disturbs.

It is run three times: as installed; changed, but without moves (the control: what fails there
drives its coroutines in ways that the change cannot follow); and with moves. What passes in the
control must pass with moves. What the outside still shares keeps a chain at home, as it must;
the table that is printed says how many moved and why the others did not."""

from __future__ import annotations

import ast
import collections
import functools
import importlib.util
import io
import re
import sys
import types
import unittest
import warnings
from pathlib import Path
from typing import Any

import continuation_harness as h
import pytest

from mpgort import _core

h.require_frames()

ORIGINAL = importlib.util.find_spec("test.test_coroutines")
if ORIGINAL is None or ORIGINAL.origin is None:
    pytest.skip(
        f"CPYTHON'S TEST PACKAGE IS NOT INSTALLED with {sys.executable}: "
        "its test_coroutines was NOT run",
        allow_module_level=True,
    )

# These start interpreters of their own, which know nothing of the change.
OWN_PROCESS = {"UnawaitedWarningDuringShutdownTest"}
# This one counts the references to a tuple of constants; a tuple is copied freely by a move.
COUNTS_REFERENCES = {"CoroutineTest.test_for_2"}


# ---- what the changed source calls --------------------------------------------------------------


class Mover:
    """Counts, and the last value that a park stands for."""

    def __init__(self, moving: bool) -> None:
        self.moving = moving
        self.suspended = self.moved = 0
        self.stayed: collections.Counter[str] = collections.Counter()
        self.value: Any = None
        self.passing = False

    def extra(self) -> Any:
        """A park that the test knows nothing of."""
        self.passing = True
        return h.park()

    def parked(self, value: Any = None) -> Any:
        """What a generator yields from instead of yielding `value`."""
        self.value = value
        YIELDED.append(value)
        return h.park().__await__()

    def parked_all(self, source: Any) -> Any:
        """`yield from` of a list is a park for each item; of anything else it stays what it is."""
        if type(source) not in (list, tuple, range):
            return (yield from source)
        for value in source:
            yield from self.parked(value)

    def seen(self, obj: Any) -> Any:
        """What the test should see of what its coroutine has yielded."""
        if type(obj) is PARK_TYPE:
            obj, self.value = self.value, None
        return obj

    def move(self, coro: Any) -> Any:
        """The same coroutine, moved if it can be."""
        self.suspended += 1
        if not self.moving:
            return coro
        try:
            blob = _core.chain_encode(coro)
        except _core.Pinned as e:
            self.stayed[why(str(e))] += 1
            return coro
        _core.chain_drop(coro)
        self.moved += 1
        return _core.chain_decode(blob)

    def step(self, coro: Any, value: Any) -> Any:
        """`coro.send(value)`: keeps what it gave for out(), returns the coroutine to go on with."""
        obj = coro.send(value)
        if type(coro) is types.CoroutineType:
            while self.passing:
                self.passing = False
                coro = self.move(coro)
                obj = coro.send(None)
            if type(obj) is PARK_TYPE:
                obj = self.seen(obj)
                coro = self.move(coro)
        self.given = self.seen(obj)
        return coro

    def out(self, coro: Any) -> Any:
        given, self.given = self.given, None
        return given

    def drive(self, coro: Any, value: Any) -> Any:
        """`expression.send(value)` where there is no name to rebind: no move."""
        return self.seen(coro.send(value))

    def test(self, fn: Any) -> Any:
        """Makes a test out of a coroutine function: drives it, moving it at each park."""

        @functools.wraps(fn)
        def driven(case: unittest.TestCase) -> None:
            global CASE
            CASE = type(case)(fn.__name__)  # a fresh one, which no runner refers to
            coro = fn(CASE)
            done = False
            while not done:
                done, _ = _core.chain_send(coro, None)
                if not done:
                    self.passing = False
                    coro = self.move(coro)

        return driven


CASE: unittest.TestCase | None = None
YIELDED: list[Any] = []


async def run_async(coro: Any) -> Any:
    """What the changed tests await: the list of what `coro` yielded, and its result."""
    assert coro.__class__ in {types.GeneratorType, types.CoroutineType}
    YIELDED.clear()
    result = await coro
    return list(YIELDED), result


PARK_TYPE = type(_core.park())


def why(reason: str) -> str:
    """The kind of a refusal, without names and places."""
    what = re.sub(r"^.*?\(\S+:\d+\): ", "", reason)
    return re.sub(r"['\"(<].*?['\")>]|\d+", "_", what)[:90]


# ---- the change ---------------------------------------------------------------------------------


class Parks(ast.NodeTransformer):
    def __init__(self, extras: bool) -> None:
        self.extras = extras
        self.awaiting: list[ast.AST] = []  # the tests that become coroutines
        self.functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = []

    def _function(self, node: Any) -> Any:
        self.functions.append(node)
        classes = sorted(classes_of(node))
        node.body = [self.visit(s) for s in node.body]
        self.functions.pop()
        if classes:
            node.body.insert(0, ast.copy_location(ast.Global(classes), node.body[0]))
        if node in self.awaiting:
            made = {f: getattr(node, f) for f in node._fields}
            made["decorator_list"] = [mover("test"), *node.decorator_list]
            return ast.copy_location(ast.AsyncFunctionDef(**made), node)
        return self.visit_AsyncBlock(node) if type(node) is ast.AsyncFunctionDef else node

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_AsyncBlock(self, node: Any) -> Any:
        if not self.extras:
            return node
        extra = ast.copy_location(
            ast.Expr(ast.Await(ast.Call(mover("extra"), [], []))), node.body[0]
        )
        node.body.insert(0, extra)
        return node

    def visit_AsyncFor(self, node: Any) -> Any:
        self.generic_visit(node)
        return self.visit_AsyncBlock(node)

    visit_AsyncWith = visit_AsyncFor

    def visit_Await(self, node: ast.Await) -> Any:
        self.generic_visit(node)
        if not self.extras:
            return node
        extra = ast.Await(ast.Call(mover("extra"), [], []))
        pair = ast.Tuple([extra, node], ast.Load())
        return ast.copy_location(ast.Subscript(pair, ast.Constant(1), ast.Load()), node)

    def _awaited_generator(self) -> bool:
        if not self.functions or type(self.functions[-1]) is not ast.FunctionDef:
            return False
        fn = self.functions[-1]
        marks = [ast.unparse(d) for d in fn.decorator_list]
        return fn.name == "__await__" or "types.coroutine" in marks

    def visit_Yield(self, node: ast.Yield) -> Any:
        self.generic_visit(node)
        if not self._awaited_generator():
            return node
        call = ast.Call(mover("parked"), [node.value] if node.value else [], [])
        return ast.copy_location(ast.YieldFrom(call), node)

    def visit_YieldFrom(self, node: ast.YieldFrom) -> Any:
        self.generic_visit(node)
        if not self._awaited_generator():
            return node
        call = ast.Call(mover("parked_all"), [node.value], [])
        return ast.copy_location(ast.YieldFrom(call), node)

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("run_async", "run_async__await__") and self.functions:
            test = self.functions[-1]
            if len(self.functions) == 1 and test.name.startswith("test_"):
                self.awaiting.append(test)
                node.func = ast.Name("_run_async", ast.Load())
                return ast.copy_location(ast.Await(node), node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "send"):
            return node
        target, args = node.func.value, node.args
        if (
            isinstance(target, ast.Name)
            and self.functions
            and is_local(self.functions[-1], target.id)
        ):
            step = ast.Call(mover("step"), [target, *args], [])
            rebound = ast.NamedExpr(ast.Name(target.id, ast.Store()), step)
            return ast.copy_location(ast.Call(mover("out"), [rebound], []), node)
        return ast.copy_location(ast.Call(mover("drive"), [target, *args], []), node)


def mover(method: str) -> ast.Attribute:
    return ast.Attribute(ast.Name("_mover", ast.Load()), method, ast.Load())


def classes_of(fn: ast.AST) -> set[str]:
    """The names of the classes that fn itself defines, not a function or class within it."""
    names = set[str]()
    for node in ast.iter_child_nodes(fn):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            names |= classes_of(node)
    return names


def is_local(fn: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    """Whether fn itself assigns the name (and no function inside it calls it nonlocal)."""
    for node in ast.walk(fn):
        if isinstance(node, (ast.Nonlocal, ast.Global)) and name in node.names:
            return False
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
        for node in fn.body
    )


def load(name: str, change: ast.NodeTransformer | None, moving: bool) -> types.ModuleType:
    assert ORIGINAL is not None and ORIGINAL.origin is not None
    tree = ast.parse(Path(ORIGINAL.origin).read_text(encoding="utf-8"))
    if change is not None:
        tree = ast.fix_missing_locations(change.visit(tree))
    module = types.ModuleType(name)
    module.__dict__.update(__file__=ORIGINAL.origin, _mover=Mover(moving), _run_async=run_async)
    sys.modules[name] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        exec(compile(tree, ORIGINAL.origin, "exec", dont_inherit=True), module.__dict__)
    return module


class Row:
    """One test's result and what moved in it."""

    def __init__(self, result: str, suspended: int, moved: int, text: str) -> None:
        self.result, self.suspended, self.moved, self.text = result, suspended, moved, text


def run(module: types.ModuleType) -> dict[str, Row]:
    rows = {}
    counts = module._mover
    for suite in unittest.defaultTestLoader.loadTestsFromModule(module):
        for test in suite:  # type: ignore[union-attr]
            short = test.id().split(".", 1)[1]
            if short.split(".")[0] in OWN_PROCESS:
                continue
            suspended, moved = counts.suspended, counts.moved
            stream = io.StringIO()
            with h.native_park():
                runner = unittest.TextTestRunner(stream, verbosity=0, warnings="default")
                result = runner.run(test)
            if result.skipped:
                kind = "skip"
            else:
                kind = "ok" if result.wasSuccessful() else "FAIL"
            rows[short] = Row(
                kind, counts.suspended - suspended, counts.moved - moved, stream.getvalue()
            )
    return rows


# ---- the test -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("extras", [True, False], ids=["extra-parks", "own-parks"])
@pytest.mark.parametrize("ff", [True, False], ids=["ff", "park"])
def test_cpythons_coroutine_tests_pass_with_every_suspension_moved(
    ff: bool, extras: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _core.set_fast_forward(ff)
    try:
        installed = run(load("cpython_coroutines_installed", None, False))
        control = run(load("cpython_coroutines_control", Parks(extras), False))
        module = load("cpython_coroutines_moved", Parks(extras), True)
        moved = run(module)
    finally:
        _core.set_fast_forward(True)
        for name in ("installed", "control", "moved"):
            sys.modules.pop(f"cpython_coroutines_{name}", None)

    by_hand = sorted(
        t for t, row in control.items() if row.result == "FAIL" and installed[t].result != "FAIL"
    )
    worse = {
        t: row.text
        for t, row in moved.items()
        if row.result == "FAIL" and control[t].result != "FAIL" and t not in COUNTS_REFERENCES
    }
    counts = module._mover
    with capsys.disabled():
        print(
            f"\ntest_coroutines of {sys.version.split()[0]}, "
            f"fast-forward {ff}, extra parks {extras}"
        )
        print(f"  tests run {len(moved)}, failing as installed "
              f"{sum(r.result == 'FAIL' for r in installed.values())}, that suspend "
              f"{sum(r.suspended > 0 for r in moved.values())}, that moved "
              f"{sum(r.moved > 0 for r in moved.values())}")  # fmt: skip
        print(f"  suspensions {counts.suspended}, moved {counts.moved}")
        for reason, n in counts.stayed.most_common():
            print(f"  stayed {n}: {reason}")
        print(f"  not comparable, drive their coroutines by hand: {by_hand}")
    assert not worse, "\n".join(f"{t}\n{text}" for t, text in worse.items())
    if extras:
        assert counts.suspended >= 300 and counts.moved >= 100 and len(by_hand) <= 14
    else:
        assert counts.suspended >= 50 and counts.moved >= 10 and len(by_hand) <= 4
