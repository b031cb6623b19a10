"""Large buffers cross without a copy; mpgort.shared is one memory for all."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import wait_until

import mpgort
from mpgort import chan, go, gosched, shared, spawn

BIG = 100_000  # doubles: above the 64 KiB from which buffers are shared


@pytest.fixture
def rt() -> Iterator[mpgort.Runtime]:
    """A runtime that is found to have nothing left, and nothing wrong, at the end."""
    with mpgort.Runtime(2) as runtime:
        yield runtime
        wait_until("the arrays' memory is given back", lambda: large_bytes(runtime) == 0)
        assert runtime._prog.check(False) == []


def large_bytes(rt: mpgort.Runtime) -> int:
    n: int = rt.stats()["large_bytes"]
    return n


def describe(a: Any) -> tuple[Any, ...]:
    return a.dtype.str, a.shape, a.flags.writeable, a.tolist()


RECORD = np.dtype([("a", "<i4"), ("b", ">f8", (2,))])


@pytest.mark.parametrize(
    "a",
    [
        np.arange(BIG, dtype=float),
        np.arange(BIG, dtype=">i8"),
        np.arange(BIG).reshape(1000, 100),
        np.asfortranarray(np.arange(BIG).reshape(1000, 100)),
        np.zeros(BIG, RECORD),
        np.arange(BIG) % 3 == 0,
        np.arange(BIG)[::2],
        np.arange(BIG).reshape(1000, 100)[:, ::3],
        np.zeros((0, 5)),
        np.array(3.5),
        np.array(["a", None, 3], dtype=object),
        np.ma.masked_less(np.arange(BIG), 5),
        np.array(["x" * 50] * 5000),
        np.arange(BIG).astype("datetime64[s]"),
    ],
    ids=lambda a: f"{a.dtype.kind}{a.shape}",
)
def test_arrays_of_every_kind_arrive_as_they_were(rt: mpgort.Runtime, a: Any) -> None:
    b = rt.spawn(lambda x: x, a).result()
    assert type(b) is type(a) and b.dtype == a.dtype and b.shape == a.shape
    assert np.array_equal(np.asarray(b), np.asarray(a))
    del b


def test_a_large_array_arrives_read_only_and_a_small_one_as_ever(rt: mpgort.Runtime) -> None:
    def writeable(x: Any) -> bool:
        return bool(x.flags.writeable)

    assert not rt.spawn(writeable, np.ones(BIG)).result()
    assert rt.spawn(writeable, np.ones(100)).result()
    assert rt.spawn(lambda x: writeable(x.copy()), np.ones(BIG)).result()


def test_what_the_sender_writes_after_sending_is_not_seen(rt: mpgort.Runtime) -> None:
    a = np.zeros(BIG)
    gate = rt.chan()

    async def look(x: Any) -> float:
        await gate.recv()
        return float(x.sum())

    h = rt.spawn(look, a)
    a[:] = 1
    gate.put(None)
    assert h.result() == 0


def test_an_array_that_was_received_is_sent_on_without_a_copy(rt: mpgort.Runtime) -> None:
    b = rt.spawn(np.ones, 10 * BIG).result()
    assert large_bytes(rt) < 12 * BIG * 8
    again = [rt.spawn(lambda x: x, b[i:]).result() for i in range(10)]
    assert large_bytes(rt) < 12 * BIG * 8
    assert [len(x) for x in again] == [10 * BIG - i for i in range(10)]
    assert all(x.sum() == len(x) for x in again)
    del b
    assert again[3].sum() == 10 * BIG - 3  # the last of them keeps the memory
    assert large_bytes(rt) > 0
    again.clear()


def test_objects_that_hold_arrays_share_them_too(rt: mpgort.Runtime) -> None:
    class Box:
        def __init__(self, a: Any) -> None:
            self.a = a
            self.more = {"twice": [a, a]}

    b = rt.spawn(lambda box: box, Box(np.ones(10 * BIG))).result()
    assert b.a is b.more["twice"][0] is b.more["twice"][1]
    assert large_bytes(rt) < 12 * BIG * 8
    del b


def test_a_pickle_buffer_arrives_as_a_memoryview_and_bytes_as_bytes(rt: mpgort.Runtime) -> None:
    data = bytes(range(256)) * 1000

    def look(view: Any) -> Any:
        assert isinstance(view, memoryview) and view.readonly and view == data
        return pickle.PickleBuffer(view[1000:])

    view = rt.spawn(look, pickle.PickleBuffer(data)).result()
    assert isinstance(view, memoryview) and view.readonly and view == data[1000:]
    assert rt.spawn(lambda x: x, data).result() == data
    assert rt.spawn(lambda x: x, bytearray(data)).result() == bytearray(data)
    del view


# ---- mpgort.shared -----------------------------------------------------------------------------


def test_what_anybody_writes_all_see(rt: mpgort.Runtime) -> None:
    a = shared.zeros((4, BIG))

    def write(row: Any, value: int) -> None:
        row[...] = value

    for h in [rt.spawn(write, a[i], i + 1) for i in range(4)]:
        h.result()
    assert a[:, 0].tolist() == a[:, -1].tolist() == [1, 2, 3, 4]
    rt.spawn(write, a[1:3, ::2], 9).result()  # with gaps
    assert a[1, :4].tolist() == [9, 2, 9, 2] and a[2, -2:].tolist() == [9, 3]
    assert a[0, 0] == 1 and a[3, 0] == 4
    del a


def test_a_small_shared_array_is_one_memory_as_well(rt: mpgort.Runtime) -> None:
    a = shared.zeros(3, int)

    def add(x: Any) -> None:
        x += 5

    rt.spawn(add, a).result()
    rt.spawn(add, a[1:]).result()
    assert a.tolist() == [5, 10, 10]


def test_a_read_only_view_of_a_shared_array_stays_read_only(rt: mpgort.Runtime) -> None:
    a = shared.array([1, 2, 3])
    a.flags.writeable = False

    def write(x: Any) -> None:
        x[0] = 1

    for view in (a, a[::2]):
        with pytest.raises(ValueError, match="read-only"):
            rt.spawn(write, view).result()


@pytest.mark.parametrize(
    "make",
    [
        lambda: shared.empty((2, 3), "i2"),
        lambda: shared.zeros((0, 4)),
        lambda: shared.zeros((), RECORD),
        lambda: shared.zeros((3, 4), order="F"),
        lambda: shared.array(np.asfortranarray(np.arange(12).reshape(3, 4))),
        lambda: shared.array([[1, 2], [3, 4]], ">u4"),
    ],
)
def test_shapes_dtypes_and_orders_of_shared_arrays(rt: mpgort.Runtime, make: Any) -> None:
    a = make()
    dtype, shape, writeable, values = rt.spawn(describe, a).result()
    assert (dtype, shape, writeable) == (a.dtype.str, a.shape, True)
    assert str(values) == str(a.tolist())


def test_what_cannot_be_shared_is_refused_with_the_way_out(rt: mpgort.Runtime) -> None:
    with pytest.raises(TypeError, match="objects"):
        shared.zeros(3, object)
    with pytest.raises(ValueError, match="negative"):
        shared.zeros((3, -1))
    with pytest.raises(mpgort.OutOfSharedMemory, match="heap_bytes"):
        shared.empty(1 << 50)
    with mpgort.Runtime(1) as other:
        with pytest.raises(RuntimeError, match="runtime="):
            shared.zeros(3)
        assert shared.zeros(3, runtime=other).tolist() == [0, 0, 0]


def test_outside_every_runtime_it_says_that_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="no runtime"):
        shared.zeros(3)


def test_an_array_of_one_runtime_arrives_in_another_as_a_copy(rt: mpgort.Runtime) -> None:
    a = shared.array(np.ones(BIG))
    with mpgort.Runtime(1) as other:
        assert other.spawn(describe, a[:3]).result() == ("<f8", (3,), True, [1.0, 1.0, 1.0])
        b = other.spawn(lambda x: x, a).result()
    a[:] = 2
    assert b.sum() == BIG  # and it outlives its runtime
    del a


# ---- goroutines that move ----------------------------------------------------------------------


async def hold(a: Any, there: mpgort.Chan[Any], back: mpgort.Chan[Any]) -> list[Any]:
    """Parks with a received array, a view of it, a shared array and an array of its own."""
    part = a[10:20]
    mine = np.arange(BIG, dtype=float)
    ours = shared.zeros(BIG)
    for i in range(20):
        await there.send((i, ours))
        await back.recv()
        mine[i] = -1
        ours[i] += 1
    return [part.tolist(), mine[:21].tolist(), mine.flags.writeable, ours[:21].tolist()]


async def answer(there: mpgort.Chan[Any], back: mpgort.Chan[Any], n: int) -> None:
    for _ in range(n):
        i, ours = await there.recv()
        ours[i] += 2
        await back.send(None)


async def holders(n: int) -> list[Any]:
    handles = []
    for _ in range(n):
        there, back = chan(), chan()
        handles.append(spawn(hold, np.arange(BIG, dtype=float), there, back))
        go(answer, there, back, 20)
    return [await h for h in handles]


@pytest.mark.parametrize("procs", [0, 1, 2])
@pytest.mark.parametrize("migrate", ["auto", "always", "never"])
def test_arrays_are_what_they_were_after_every_move(
    procs: int, migrate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", migrate)
    wanted = [
        [float(i) for i in range(10, 20)],
        [-1.0] * 20 + [20.0],
        True,
        [3.0] * 20 + [0.0],
    ]
    assert mpgort.run(holders, 3, procs=procs) == [wanted] * 3


async def light_with_a_large_array() -> tuple[int, int]:
    async def parks(a: Any) -> float:
        for _ in range(50):
            await gosched()
        return float(a.sum())

    h = [spawn(parks, np.ones(BIG)) for _ in range(2)]
    sums = [await x for x in h]
    assert sums == [BIG, BIG]
    stats = mpgort._core.current().stats()  # type: ignore[union-attr]
    return stats["home_parks"], stats["parks"]


def test_a_goroutine_that_holds_a_received_array_is_light() -> None:
    """The array is a handle in its continuation: it is not kept at home for its size."""
    home, parks = mpgort.run(light_with_a_large_array, procs=2)
    assert parks > 100 and home < 20  # main's own


# ---- memory ------------------------------------------------------------------------------------


def test_a_full_heap_is_an_error_at_the_call_and_hurts_nothing() -> None:
    with mpgort.Runtime(1, heap_bytes=32 << 20) as rt:
        kept = rt.spawn(np.ones, BIG).result()
        with pytest.raises(mpgort.OutOfSharedMemory, match="heap_bytes"):
            rt.spawn(len, np.ones(10 << 20))
        with pytest.raises(mpgort.OutOfSharedMemory):
            rt.spawn(np.ones, 10 << 20).result()
        assert kept.sum() == BIG
        assert rt.spawn(len, np.ones(BIG)).result() == BIG


def test_pages_go_back_to_the_system(rt: mpgort.Runtime) -> None:
    before = rt.stats()["committed"]
    for _ in range(20):
        assert rt.spawn(len, np.ones(10 * BIG)).result() == 10 * BIG
    wait_until("the pages are given back", lambda: rt.stats()["committed"] < before + (4 << 20))


def test_sending_a_shared_array_takes_no_longer_for_its_size(rt: mpgort.Runtime) -> None:
    def seconds(a: Any) -> float:
        best = 1e9
        for _ in range(30):
            started = time.perf_counter()
            rt.spawn(len, a).result()
            best = min(best, time.perf_counter() - started)
        return best

    small, large = shared.empty(10 * BIG), shared.empty(200 << 17)
    assert seconds(large) < 5 * seconds(small) + 1e-3
    del small, large


# ---- mpgort.shared.dict ------------------------------------------------------------------------


def test_a_dict_is_one_for_all_who_have_it(rt: mpgort.Runtime) -> None:
    d = shared.dict({"a": 1})

    def plain(d: Any) -> Any:
        d["b"] = [2, d["a"]]
        return d

    async def goroutine(d: Any) -> int:
        d[b"b"] = 3  # another key than "b"
        await gosched()
        return len(d)

    assert rt.spawn(plain, d).result() is d
    assert rt.spawn(goroutine, d).result() == 3
    assert sorted(d.items(), key=str) == [("a", 1), ("b", [2, 1]), (b"b", 3)]
    assert (repr(d), bool(d), bool(shared.dict())) == ("<mpgort.shared.dict of 3>", True, False)


def test_a_dict_does_what_a_dict_does(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict([(f"k{i}", i) for i in range(100)])
    assert (len(d), d["k7"], d.get("k7"), d.get("no"), d.get("no", 5)) == (100, 7, 7, None, 5)
    assert "k7" in d and b"k7" not in d and "no" not in d
    assert sorted(d) == sorted(d.keys()) == sorted(f"k{i}" for i in range(100))
    assert sorted(d.values()) == list(range(100))
    for key in d:  # the keys there were
        del d[key]
    assert len(d) == 0 and d.items() == []
    d.set("x", None)
    assert "x" in d and d["x"] is None
    assert (d.setdefault("x", 1), d.setdefault("y", 1), d.setdefault("y", 2)) == (None, 1, 1)
    assert (d.pop("y"), d.pop("y", 3), d.delete("x"), d.delete("x")) == (1, 3, True, False)
    for missing in (lambda: d["z"], lambda: d.pop("z"), lambda: d.__delitem__("z")):
        with pytest.raises(KeyError, match="'z'"):
            missing()
    d[np.str_("n")] = 1  # equal to "n", so it is that key
    assert d["n"] == 1 and type(d.keys()[0]) is str
    d[""] = d["\ud800"] = d["ß" * 100_000] = 2
    assert d[""] == d["\ud800"] == d["ß" * 100_000] == 2


@pytest.mark.parametrize("key", [1, None, 2.5, ("a", 1), bytearray(b"a")], ids=repr)
def test_another_key_than_str_or_bytes_is_refused_by_name(rt: mpgort.Runtime, key: Any) -> None:
    d: Any = shared.dict()
    name = type(key).__name__
    for call in (
        lambda: d.get(key),
        lambda: d[key],
        lambda: d.set(key, 1),
        lambda: d.cas(key, 1, 2),
        lambda: d.setdefault(key, 1),
        lambda: d.delete(key),
        lambda: d.pop(key, None),
        lambda: key in d,
        lambda: shared.dict({key: 1} if name != "bytearray" else [(key, 1)]),
    ):
        with pytest.raises(TypeError, match=f"a key is str or bytes, not {name}: "):
            call()
    assert len(d) == 0


def test_a_value_that_cannot_cross_changes_nothing(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict({"a": 1})
    for call in (
        lambda: d.set("a", open("/dev/null")),
        lambda: d.cas("a", 1, open("/dev/null")),
        lambda: d.setdefault("b", open("/dev/null")),
    ):
        with pytest.raises(mpgort.SerializationError, match="an open file"):
            call()
    assert d.items() == [("a", 1)]


def test_cas_compares_as_python_does(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict({"n": 1, "l": [1, [2]], "a": np.ones(BIG), "x": float("nan")})
    assert d.cas("n", 1.0, 2) and not d.cas("n", 1, 3) and d["n"] == 2
    assert d.cas("l", [1, [2]], []) and d["l"] == []
    assert not d.cas("a", np.ones(BIG - 1), 0) and not d.cas("a", 1, 0)
    assert d.cas("a", np.ones(BIG), "b") and d["a"] == "b"
    assert not d.cas("x", float("nan"), 0)
    assert not d.cas("no", None, 1) and "no" not in d

    class Bad:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        d.cas("n", Bad(), 3)
    assert d["n"] == 2


def add(d: Any, key: str, n: int) -> None:
    for _ in range(n):
        while not d.cas(key, old := d[key], (old[0] + 1, "x" * 100)):
            pass


async def counts(n: int) -> Any:
    d = shared.dict({"n": (0, "")})
    for h in [spawn(add, d, "n", n) for _ in range(4)]:
        await h
    return d["n"][0]


def test_of_counts_by_cas_none_is_lost(run: Any) -> None:
    assert run(counts, 50) == 200


def test_a_large_array_in_a_dict_is_written_once(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict({"a": np.ones(10 * BIG)})
    once = large_bytes(rt)
    a, b = d["a"], d["a"]
    d["again"] = a
    d["part"] = a[5:]
    assert large_bytes(rt) == once
    assert not a.flags.writeable and a.sum() == b.sum() == 10 * BIG
    ours = shared.zeros(3)
    d["ours"] = ours
    ours[1] = 5
    assert d["ours"].tolist() == [0, 5, 0]
    del d["a"], d["again"], d["part"]
    assert a[-1] == 1  # its reader has it
    del a, b, ours


def test_a_dict_goes_with_its_last_handle(rt: mpgort.Runtime) -> None:
    async def hold(d: Any, gate: Any) -> int:
        await gate.recv()
        return int(d["a"].sum())

    gate = rt.chan()
    d: Any = shared.dict({"a": np.ones(10 * BIG), "b": "x" * 1000})
    h = rt.spawn(hold, d, gate)
    del d
    gate.put(None)
    assert h.result() == 10 * BIG
    del h
    wait_until("the array in it is freed", lambda: large_bytes(rt) == 0)


def test_a_dict_is_of_one_runtime_and_outlives_it() -> None:
    with pytest.raises(RuntimeError, match="no runtime"):
        shared.dict()
    with mpgort.Runtime(0) as other:
        d = shared.dict({"a": 1}, runtime=other)
        with pytest.raises(TypeError, match="cannot be pickled for anywhere else"):
            pickle.dumps(d)
    assert d["a"] == 1  # what is held is there, also when the runtime has ended
