"""Values by value: messages, arguments, results, as bytes and back.

Round trips of every native type and of what falls to pickle and cloudpickle, here and in a process
with another hash seed; and the text of the error when something cannot cross."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import operator
import pathlib
import random
import socket
import threading
import types
import uuid
from collections.abc import Iterator
from typing import Any

import continuation_harness as h
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpgort import _core
from mpgort._errors import SerializationError


def trip(value: Any) -> Any:
    return _core.value_decode(_core.value_encode(value))


@pytest.fixture(scope="module")
def child() -> Iterator[h.Child]:
    child = h.Child(seed=99)
    yield child
    child.close()


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Flag(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024


class WithState:
    def __init__(self) -> None:
        self.kept, self.dropped = [1], 2

    def __getstate__(self) -> Any:
        return {"kept": self.kept}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state, back=True)


class SubList(list[Any]):
    pass


class SubDict(dict[Any, Any]):
    pass


class SubInt(int):
    pass


class SubStr(str):
    pass


def module_function(x: int) -> int:
    return x + 1


INTS = [0, 1, -1, 127, 128, -128, -129, 255, 256, 2**15, 2**16, 2**29, 2**30, 2**31 - 1, 2**31]
INTS += [2**32, 2**59, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1]
INTS += [10**100, -(10**100), 1 << 10_000, -(1 << 10_001) + 1]

PLAIN: list[Any] = [
    None, True, False, Ellipsis, NotImplemented, 0.0, -0.0, 1.5, 5e-324, float("inf"),
    1j, complex(-0.0, 2), "", "a", "é", "日本", "𝄞 music", "\ud800", "\0", "x" * 100_000,
    b"", b"\0\xff", b"z" * 100_000, bytearray(), bytearray(b"ab"), (), (1,), ((), ((),)), [],
    [1, [2, [3]]], {}, {"a": {1: (2, [3])}, None: b""}, set(), {1, "a", (2,)}, frozenset(),
    frozenset({frozenset({1}), "b"}), range(3), range(10, -10, -3), range(2**80, 2**80 + 5),
    slice(1, None, -2), int, len, dict.fromkeys, Color.RED, Flag.A | Flag.B, Frozen(3),
    Pair(1, [2]),
    datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), decimal.Decimal("1.10"),
    fractions.Fraction(1, 3), uuid.UUID(int=5), pathlib.PurePosixPath("/a/b"), module_function,
    collections.OrderedDict(b=1, a=2), collections.Counter("aab"), collections.deque([1, 2], 5),
    array.array("i", [1, 2]), SubList([1]), SubDict(a=1), SubInt(5), SubStr("s"), types, Point,
    operator.itemgetter(1), types.SimpleNamespace(a=1), Point(1, [Point(2)]), str.upper,
]  # fmt: skip


def name_of(value: Any) -> str:
    return f"{type(value).__name__}-{str(value)[:12]}".encode("ascii", "replace").decode()


@pytest.mark.parametrize("value", INTS, ids=lambda v: f"{v.bit_length()}bits{'-' if v < 0 else ''}")
def test_int_of_every_size_round_trips(value: int) -> None:
    assert trip(value) == value
    assert type(trip(value)) is int


@pytest.mark.parametrize("value", PLAIN, ids=name_of)
def test_value_round_trips_with_its_type(value: Any) -> None:
    back = trip([value])[0]
    assert type(back) is type(value)
    assert repr(back) == repr(value) if "0x" not in repr(value) else True
    assert h.canon(back) == h.canon(value)
    if not isinstance(value, operator.itemgetter):
        assert back == value


@pytest.mark.parametrize("value", [v for v in PLAIN if v is not Point], ids=name_of)
def test_value_decoded_in_another_process_is_the_same(value: Any, child: h.Child) -> None:
    form, again, codes = child.call("value", _core.value_encode(value), _core.codes_dump())
    assert form == h.canon(value)
    _core.codes_load(codes)
    assert h.canon(_core.value_decode(again)) == form


def test_nan_stays_nan() -> None:
    assert trip(float("nan")) != trip(float("nan"))


def test_singletons_and_things_with_a_name_keep_their_identity() -> None:
    things = [None, True, Ellipsis, int, len, Color.RED, module_function, Point, types, Exception]
    assert all(a is b for a, b in zip(things, trip(things), strict=True))


def test_what_is_sent_is_a_copy() -> None:
    value = [1, {"a": [2]}]
    back = trip(value)
    value[1]["a"].append(3)  # type: ignore[index]
    assert back == [1, {"a": [2]}]


def test_shared_parts_stay_shared_and_equal_parts_stay_apart() -> None:
    a: list[Any] = [1]
    back = trip([a, a, [1], (a, {"k": a})])
    assert back[0] is back[1] is back[3][0] is back[3][1]["k"]
    assert back[2] is not back[0]


def test_shared_part_seen_by_pickled_and_native_objects_is_one_object() -> None:
    """Point falls to pickle, the list does not; they hold the same list all the same."""
    a: list[Any] = [1]
    p, w = Point(1, a), WithState()
    w.kept = a
    back = trip([a, p, w, p])
    assert back[1].y is back[0] and back[2].kept is back[0] and back[3] is back[1]
    assert back[2].back is True and not hasattr(back[2], "dropped")


def test_cycles_through_every_container() -> None:
    a: list[Any] = []
    a.append(a)
    assert (b := trip(a))[0] is b
    d: dict[str, Any] = {}
    d["d"] = d
    assert (e := trip(d))["d"] is e
    t: tuple[Any, ...] = ([],)
    t[0].append(t)
    u = trip(t)
    assert u[0][0] is u
    p = Point(1)
    p.y = {"p": [p]}
    q = trip(p)
    assert q.y["p"][0] is q
    s = SubList()
    s.append((s,))
    r = trip(s)
    assert r[0][0] is r


def test_deep_nesting_is_a_value_or_a_clean_error() -> None:
    for depth in (500, 5_000, 200_000):
        box: list[Any] = []
        for _ in range(depth):
            box = [box]
        try:
            back = trip(box)
        except (SerializationError, RecursionError):
            assert depth > 500
            continue
        for _ in range(depth):
            back = back[0]
        assert back == []


def test_wide_and_long_values() -> None:
    value = [list(range(1000)), {i: str(i) for i in range(5000)}, tuple("ab" * 5000)]
    assert trip(value) == value


@pytest.mark.parametrize(
    "made",
    [
        np.arange(10),
        np.zeros((0, 3)),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(100)[::3],
        np.array(["a", "bc"]),
        np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array([{"a": 1}, None], dtype=object),
        np.random.default_rng(1).random(50_000),
    ],
    ids="arange empty transposed strided str record object large".split(),
)
def test_numpy_array_round_trips(made: Any) -> None:
    back = trip({"array": made})["array"]
    assert back.dtype == made.dtype and back.shape == made.shape
    assert (back == made).all()


def test_numpy_scalars_and_views_of_one_array() -> None:
    scalar = trip(np.float32(1.5))
    assert scalar == 1.5 and type(scalar) is np.float32
    a = np.arange(5)
    back = trip([a, a])
    assert back[0] is back[1]


# ---- functions and classes that pickle cannot take ----------------------------------------------


def test_lambda_closure_partial_and_local_function_cross() -> None:
    k = [10]

    def local(x: int, *, y: int = 5) -> Any:
        return x + y + k[0]

    back = trip([lambda x: x * 2, local, functools.partial(local, 1), local])
    assert back[0](4) == 8 and back[1](1) == 16 and back[2](y=0) == 11
    assert back[1].__name__ == "local" and back[1] is back[3]


def test_local_class_and_its_instances_cross() -> None:
    class Local:
        tag = "t"

        def __init__(self, x: int) -> None:
            self.x = x

        def double(self) -> int:
            return self.x * 2

    back = trip([Local(4), Local])
    assert back[0].double() == 8 and back[0].tag == "t"
    assert isinstance(back[0], back[1])


def test_function_of_a_module_keeps_the_globals_of_the_module() -> None:
    assert trip(module_function) is module_function
    assert trip(functools.partial(module_function, 2))() == 3


def test_recursive_local_function_crosses() -> None:
    def fact(n: int) -> int:
        return 1 if n < 2 else n * fact(n - 1)

    assert trip(fact)(5) == 120


# ---- what cannot cross --------------------------------------------------------------------------


class Holder:
    def __init__(self, conn: Any) -> None:
        self.conn = conn


class Explodes:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise LookupError("no reduce today")


class ExplodesBack:
    def __reduce__(self) -> Any:
        return (_fail, ())


def _fail() -> Any:
    raise LookupError("no making today")


@pytest.mark.parametrize("thing", ["socket", "lock", "file", "generator", "coroutine", "thread"])
@pytest.mark.parametrize(
    "wrap, path",
    [
        (lambda x: x, ""),
        (lambda x: [x], "[0]"),
        (lambda x: (1, 2, x), "[2]"),
        (lambda x: {"key": [x]}, "['key'][0]"),
        (lambda x: [0, Holder(x)], "[1].conn"),
        (lambda x: {"a": Holder([x])}, "['a'].conn[0]"),
        (lambda x: (Point(1, Holder(x)),), "[0].y.conn"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_error_names_the_path_to_the_culprit(thing: str, wrap: Any, path: str) -> None:
    gen = (x for x in ())
    coro = _coroutine()
    things: dict[str, Any] = {
        "socket": socket.socket(),
        "lock": threading.Lock(),
        "file": open(__file__),  # noqa: SIM115
        "generator": gen,
        "coroutine": coro,
        "thread": threading.Thread(),
    }
    try:
        with pytest.raises(SerializationError) as info:
            _core.value_encode(wrap(things[thing]))
    finally:
        coro.close()
        things["socket"].close()
        things["file"].close()
    assert path in str(info.value), str(info.value)
    kind = {"file": "TextIOWrapper", "thread": "Thread"}.get(thing, thing)
    if thing != "thread":
        assert kind in str(info.value), str(info.value)


async def _coroutine() -> None:
    pass


def test_cause_is_the_original_error() -> None:
    with pytest.raises(SerializationError) as info:
        _core.value_encode([Holder(Explodes())])
    cause = info.value.__cause__
    assert isinstance(cause, LookupError) and cause.args == ("no reduce today",)
    assert "[0].conn" in str(info.value)
    with pytest.raises(SerializationError) as info:
        _core.value_encode(threading.Lock())
    assert isinstance(info.value.__cause__, TypeError)  # whoever refused it, there is one


def test_culprit_inside_a_closure_is_named() -> None:
    guard = threading.Lock()
    with pytest.raises(SerializationError) as info:
        _core.value_encode([lambda: guard])
    assert "guard" in str(info.value) and "lock" in str(info.value)


def test_error_while_making_the_value_on_the_other_side_is_that_error_or_names_it() -> None:
    blob = _core.value_encode([ExplodesBack()])
    with pytest.raises(Exception, match="no making today"):
        _core.value_decode(blob)


def test_encoder_is_whole_after_an_error() -> None:
    for _ in range(50):
        with pytest.raises(SerializationError):
            _core.value_encode([[1], {"a": Holder(threading.Lock())}])
        assert trip([[1], "after"]) == [[1], "after"]


def test_list_that_changes_while_it_is_encoded_is_a_value_or_an_error() -> None:
    victim: list[Any] = []

    class Clears:
        def __reduce__(self) -> Any:
            victim.clear()
            return (int, ("7",))

    victim += [Clears(), *([["x"]] * 50)]
    try:
        back = trip(victim)
    except (SerializationError, RuntimeError):
        return
    assert back[0] == 7


# ---- any value ----------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(), st.binary(), st.sampled_from(list(Color)), st.dates(), st.decimals(allow_nan=False),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
)  # fmt: skip
KEYS = st.one_of(st.integers(), st.text(max_size=3), st.binary(max_size=3), st.booleans())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
        st.frozensets(KEYS, max_size=4),
        st.sets(KEYS, max_size=4),
        st.builds(Point, st.integers(), inner),
        inner.map(lambda v: [v, v]),
        st.lists(inner, max_size=3).map(SubList),
    ),
    max_leaves=25,
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES)
def test_any_value_round_trips(value: Any) -> None:
    assert h.canon(trip(value)) == h.canon(value)


def test_random_graphs_keep_their_shape() -> None:
    """Lists, dicts and objects that point at each other at random: compared as labelled graphs."""
    rng = random.Random(20)
    for _ in range(200):
        nodes: list[Any] = []
        for i in range(rng.randint(1, 12)):
            nodes.append(rng.choice([lambda: [], lambda: {}, lambda i=i: Point(i)])())
        for node in nodes:
            for j in range(rng.randint(0, 4)):
                other = rng.choice(nodes)
                if type(node) is list:
                    node.append(other if rng.random() < 0.7 else (other, j))
                elif type(node) is dict:
                    node[j] = other
                else:
                    node.y = other
        assert shape(trip(nodes)) == shape(nodes)


def shape(root: Any) -> list[Any]:
    """The graph below `root` as a list of (type, edges), numbered in order of first visit."""
    number: dict[int, int] = {}
    order: list[Any] = []

    def visit(node: Any) -> Any:
        if not isinstance(node, (list, dict, tuple, Point)):
            return ("leaf", repr(node))
        if id(node) in number:
            return number[id(node)]
        number[id(node)] = len(order)
        row: list[Any] = [type(node).__name__]
        order.append(row)
        if isinstance(node, dict):
            row += [(repr(k), visit(v)) for k, v in node.items()]
        elif isinstance(node, Point):
            row += [visit(node.x), visit(node.y)]
        else:
            row += [visit(v) for v in node]
        return number[id(node)]

    visit(root)
    return order
