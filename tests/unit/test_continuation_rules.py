"""What a continuation may copy, what goes by name, and what keeps a goroutine at home.

INV (a move is unobservable): one test per rule. A refusal must say which local holds what, and must
leave the coroutine exactly as it was, so that it can go on live."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import functools
import random
import re
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import continuation_harness as h
import numpy as np
import pytest

from mpgort import _core

h.require_frames()


@pytest.fixture(autouse=True)
def parks() -> Iterator[None]:
    with h.native_park():
        yield


# ---- what the outside also holds ----------------------------------------------------------------


OUTSIDE: list[Any] = []


async def _holds(thing: Any) -> Any:
    await h.park()
    return thing


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1],
        lambda: {"a": 1},
        lambda: {1, 2},
        lambda: bytearray(b"x"),
        lambda: collections.deque([1]),
        lambda: types.SimpleNamespace(a=1),
        lambda: iter([1, 2]),
        lambda: (x for x in "ab"),
        lambda: ([],),
        lambda: {"k": [1]}["k"],
    ],
    ids="list dict set bytearray deque instance iterator generator list-in-tuple item".split(),
)
def test_mutable_object_shared_with_the_outside_pins_and_names_the_local(
    make: Callable[[], Any],
) -> None:
    thing = make()
    coro = h.refused(_holds(thing), "thing", "_holds", h.here(_holds), type(thing).__name__)
    assert h.finish(coro) is thing


async def _holds_deep(thing: Any) -> Any:
    box = {"k": [0, (thing,)]}
    await h.park()
    return box


def test_sharing_deep_inside_a_local_is_found_too() -> None:
    thing = [1]
    coro = h.refused(_holds_deep(thing), "_holds_deep")
    assert h.finish(coro)["k"][1][0] is thing


async def _shares_a_cell(out: list[Any]) -> int:
    n = 0

    def up() -> int:
        nonlocal n
        n += 1
        return n

    out.append(up)
    del out
    await h.park()
    return n


def test_closure_cell_shared_with_the_outside_pins() -> None:
    out: list[Any] = []
    coro = h.refused(_shares_a_cell(out), "_shares_a_cell")
    out[0]()
    assert h.finish(coro) == 1


def test_sub_coroutine_that_somebody_else_holds_pins() -> None:
    inner = _holds(1)

    async def outer() -> Any:
        return await inner

    coro = h.refused(outer())
    assert h.finish(coro) == 1


def test_object_goes_again_once_the_outside_has_let_go() -> None:
    thing = [1]
    coro = h.refused(_holds(thing), "thing")
    del thing
    assert h.finish(h.move(coro)) == [1]


def test_iterator_over_a_shared_list_pins() -> None:
    items = [1, 2]

    async def body(it: Any) -> Any:
        for _ in it:
            await h.park()
        return "end"

    assert h.finish(h.refused(body(iter(items)))) == "end"


def test_two_coroutines_that_share_a_list_both_stay() -> None:
    shared = [1]
    a, b = h.start(_holds(shared)), h.start(_holds(shared))
    del shared
    for coro in (a, b):
        with pytest.raises(_core.Pinned):
            _core.chain_encode(coro)
    assert h.finish(a) is h.finish(b)


@pytest.mark.parametrize(
    "thing",
    [10**40, "a long string " * 20, b"bytes" * 50, 2.5, 1j, (1, ("a", b"b")), frozenset({1, 2})],
    ids=lambda v: type(v).__name__,
)
def test_immutable_object_shared_with_the_outside_is_copied_freely(thing: Any) -> None:
    assert h.finish(h.move(h.start(_holds(thing)))) == thing


# ---- what goes by name --------------------------------------------------------------------------

CONFIG: dict[str, Any] = {"mode": "on", "nested": [1]}
TABLE = [1, 2, 3]
GUARD = threading.Lock()
COUNT = collections.Counter("aab")


class _Registry:
    def __init__(self) -> None:
        self.items: list[Any] = []


REGISTRY = _Registry()


async def _uses_globals() -> Any:
    c, t, g, r, n = CONFIG, TABLE, GUARD, REGISTRY, COUNT
    await h.park()
    return c is CONFIG, t is TABLE, g is GUARD, r is REGISTRY, n is COUNT


def test_module_global_goes_by_name_and_is_the_same_object() -> None:
    assert h.finish(h.move(h.start(_uses_globals()))) == (True,) * 5


async def _class_and_method(kind: Any, put: Any) -> Any:
    await h.park()
    return kind, put


def test_name_within_a_class_is_asked_again_after_the_class_was_defined_anew() -> None:
    def define() -> Any:
        source = "class Anew:\n    def put(self): pass\n    class In: pass\n"
        exec(source, globals())
        return globals()["Anew"]

    old = define()
    assert h.finish(h.move(h.start(_class_and_method(old, old.put)))) == (old, old.put)
    new = define()
    assert new is not old
    assert h.finish(h.move(h.start(_class_and_method(new.In, new.put)))) == (new.In, new.put)
    new.put = lambda self: None
    assert h.finish(h.move(h.start(_class_and_method(new, new.put))))[1].__code__ is (
        new.put.__code__
    )


async def _has_a_local_class() -> Any:
    class Local:
        pass

    thing = Local()
    await h.park()
    return type(thing) is Local


async def _has_an_instance_of_a_local_class(thing: Any) -> Any:
    again = thing
    del thing
    await h.park()
    return again is not None


def test_class_that_no_module_leads_to_keeps_its_goroutine_at_home() -> None:
    """A copy would be another class, and its methods would see copies of the globals."""
    assert h.finish(h.refused(_has_a_local_class(), "Local", "Local", "no module leads to"))

    class Local:
        pass

    class Wrong(Exception):
        pass

    for make in (Local, Wrong, lambda: [Local], lambda: (Local(), 1)):
        coro = _has_an_instance_of_a_local_class(make())
        assert h.finish(h.refused(coro, "local 'again'", "no module leads to"))


async def _iterates_a_global() -> Any:
    out = []
    for x in TABLE:
        out.append(x)
        await h.park()
    for k in CONFIG:
        out.append(k)
        await h.park()
    return out


def test_iterator_over_a_module_global_stays_an_iterator_over_that_global() -> None:
    coro = h.start(_iterates_a_global())
    try:
        coro = h.move(coro)
        TABLE.append(4)
        for _ in range(10):
            coro = h.move(coro)
            done, out = _core.chain_send(coro, None)
            if done:
                break
        assert out == [1, 2, 3, 4, "mode", "nested"]
    finally:
        TABLE[:] = [1, 2, 3]


async def _is_inside_a_global() -> Any:
    inner = CONFIG["nested"]
    await h.park()
    return inner is CONFIG["nested"]


def test_object_inside_a_module_global_is_never_copied() -> None:
    """It has no name of its own: by name through the global, or at home, but never twice."""
    coro = h.start(_is_inside_a_global())
    with contextlib.suppress(_core.Pinned):
        coro = h.move(coro)
    assert h.finish(coro) is True


async def _method_of_a_global() -> Any:
    put = REGISTRY.items.append
    grow = TABLE.append
    await h.park()
    return put.__self__ is REGISTRY.items, grow.__self__ is TABLE  # type: ignore[attr-defined]


def test_bound_method_of_what_a_global_holds_is_not_rebound_to_a_copy() -> None:
    coro = h.start(_method_of_a_global())
    with contextlib.suppress(_core.Pinned):
        coro = h.move(coro)
    assert h.finish(coro) == (True, True)


async def _modules_and_types() -> Any:
    a, b, c, d, e, f = sys, int, _Registry, len, functools.partial, h.park
    await h.park()
    return a is sys, b is int, c is _Registry, d is len, e is functools.partial, f is h.park


def test_modules_classes_and_functions_go_by_name() -> None:
    assert h.finish(h.move(h.start(_modules_and_types()))) == (True,) * 6


def test_function_that_its_name_no_longer_leads_to_is_not_exchanged_for_another() -> None:
    module = h.define(
        "renamed_module",
        "from continuation_harness import park\n"
        "def f(): return 'old'\n"
        "async def body():\n    g = f\n    await park()\n    return g()\n",
    )
    coro = h.start(module.body())
    module.f = lambda: "new"  # type: ignore[attr-defined]
    with contextlib.suppress(_core.Pinned):
        coro = h.move(coro)
    assert h.finish(coro) == "old"


# ---- heavy --------------------------------------------------------------------------------------


async def _large(n: int) -> Any:
    big = list(range(1000, 1000 + n))
    await h.park()
    return sum(big)


def test_frame_over_the_budget_is_heavy_and_untouched() -> None:
    coro = h.start(_large(10_000))
    for _ in range(2):
        with pytest.raises(_core.Heavy) as info:
            _core.chain_encode(coro, 16_384)
        assert "big" in str(info.value)
    assert h.finish(coro) == sum(range(1000, 11_000))


def test_heavy_frame_moves_whole_without_a_budget() -> None:
    coro = h.start(_large(10_000))
    with pytest.raises(_core.Heavy):
        _core.chain_encode(coro, 16_384)
    assert h.finish(h.move(coro)) == sum(range(1000, 11_000))


def test_budget_is_kept_to_the_byte_and_heavy_costs_no_more_than_the_budget() -> None:
    coro = h.start(_large(100))
    size = len(_core.chain_encode(coro))
    assert len(_core.chain_encode(coro, size)) == size
    with pytest.raises(_core.Heavy):
        _core.chain_encode(coro, size // 2)
    for budget in range(0, size // 2, 7):
        with pytest.raises(_core.Heavy):
            _core.chain_encode(coro, budget)
    assert h.finish(coro) == sum(range(1000, 1100))


async def _large_string() -> Any:
    text = "x" * (1 << 20)
    data = bytes(1 << 20)
    await h.park()
    return len(text) + len(data)


def test_one_large_immutable_local_counts_against_the_budget() -> None:
    coro = h.start(_large_string())
    with pytest.raises(_core.Heavy):
        _core.chain_encode(coro, 16_384)
    assert h.finish(h.move(coro)) == 2 << 20


async def _large_array() -> Any:
    import numpy

    array = numpy.arange(100_000)
    await h.park()
    array[0] = 5
    return int(array.sum()) - 5


def test_out_of_band_buffer_counts_against_the_budget_and_stays_writable_after_a_move() -> None:
    coro = h.start(_large_array())
    with pytest.raises(_core.Heavy):
        _core.chain_encode(coro, 16_384)
    assert h.finish(h.move(coro)) == sum(range(100_000))


async def _deeply_nested() -> Any:
    box: list[Any] = []
    for _ in range(100_000):
        box = [box]
    await h.park()
    depth = 0
    while box:
        box, depth = box[0], depth + 1
    return depth


def test_nesting_deeper_than_the_c_stack_is_refused_or_moved_but_no_crash() -> None:
    coro = h.start(_deeply_nested())
    with contextlib.suppress(_core.Pinned, RecursionError):
        coro = h.move(coro)
    assert h.finish(coro) == 100_000


# ---- inside of what falls to the pickle ---------------------------------------------------------


@dataclasses.dataclass(slots=True, eq=False)
class _Slotted:
    """Falls to the pickle, and is no value: identity counts."""

    held: Any = None
    more: Any = None


def test_object_inside_a_pickled_one_that_the_outside_also_holds_pins() -> None:
    for thing in ([1], {"k": 1}, _Registry(), _Slotted(2)):
        coro = _has_an_instance_of_a_local_class(_Slotted([thing]))
        assert h.finish(h.refused(coro, "local 'again'", "outside", type(thing).__name__))


async def _shares_with_the_pickled() -> Any:
    inner: Any = [1]
    a, b = _Slotted(inner, CONFIG), _Slotted([inner, inner])
    a.more = (a.more, b, a)
    await h.park()
    return (
        a.held is inner,
        b.held[0] is inner is b.held[1],
        a.more[1] is b,
        a.more[2] is a,
        (a.more[0] is CONFIG),
    )


def test_what_pickled_objects_share_with_each_other_the_frame_and_a_module_stays_shared() -> None:
    coro = h.start(_shares_with_the_pickled())
    for _ in range(3):
        coro = h.move(coro)
    assert h.finish(coro) == (True,) * 5


async def _holds_library_objects() -> Any:
    things = [
        collections.defaultdict(list, a=[1]), collections.OrderedDict(a=[1]),
        collections.Counter("aab"), collections.ChainMap({}, {"a": 1}), functools.partial(int, "7"),
        Path("a/b"), random.Random(1), np.arange(6).reshape(2, 3), np.random.default_rng(1),
        decimal.Decimal("1.5"), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        re.compile("a+"), uuid.UUID(int=1), _Slotted([1]), types.SimpleNamespace(a=[1]),
    ]  # fmt: skip
    await h.park()
    return [type(t).__name__ for t in things]


def test_objects_of_the_library_that_nobody_else_holds_are_not_taken_for_shared() -> None:
    coro = h.start(_holds_library_objects())
    for _ in range(2):
        coro = h.move(coro)
    assert len(h.finish(coro)) == 15
