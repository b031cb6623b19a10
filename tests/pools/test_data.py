"""Large buffers cross without a copy; mpgort.shared is one memory for all."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from conftest import large_bytes, wait_until

import mpgort
from mpgort import chan, go, gosched, shared, spawn

BIG = 100_000  # doubles: above the 64 KiB from which buffers are shared


def describe(a: Any) -> tuple[Any, ...]:
    return a.dtype.str, a.shape, a.flags.writeable, a.tolist()


class Tagged(np.ndarray[Any, Any]):
    def __new__(cls, a: Any) -> Any:
        return np.asarray(a).view(cls)


RECORD = np.dtype([("a", "<i4"), ("b", ">f8", (2,))])
DATED = np.dtype([("at", "M8[s]"), ("a", "<i4")])


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
        np.asfortranarray(np.arange(BIG).astype("m8[D]").reshape(1000, 100))[::2],
        np.zeros((10, BIG // 10), DATED)[:, ::-1],
        np.arange(BIG)[::-1],
        np.arange(24 * BIG // 20).reshape(2, 3, -1).transpose(2, 0, 1),
        np.broadcast_to(np.arange(BIG), (3, BIG)),
        np.arange(BIG).astype("c16"),
        np.ones(BIG, "f2"),
        np.zeros(BIG, "V3"),
        np.zeros(BIG, RECORD)["b"],
        np.zeros(BIG, RECORD).view(np.recarray),
        np.zeros(BIG, object),
        np.zeros(0),
        np.zeros((), RECORD),
        np.float32(3.5),
        Tagged(np.arange(BIG)),
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

    for dtype in (float, "M8[s]", RECORD, DATED):
        assert not rt.spawn(writeable, np.zeros((100, BIG // 100), dtype)).result()
        assert not rt.spawn(writeable, np.zeros((100, BIG // 100), dtype, "F")).result()
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


def test_large_and_small_arrays_in_one_value_each_have_their_bytes(rt: mpgort.Runtime) -> None:
    a, b, few = np.arange(BIG), np.arange(BIG).astype("M8[s]")[::-1].copy(), np.arange(5.0)
    back = rt.spawn(lambda x: x, {"all": [a, (b, few)], "again": b, "part": a[7:]}).result()
    assert back["all"][0].tolist() == a.tolist() and back["part"].tolist() == a[7:].tolist()
    assert back["again"] is back["all"][1][0] and np.array_equal(back["again"], b)
    assert back["all"][1][1].tolist() == few.tolist()
    del back


def test_a_read_only_array_arrives_read_only_also_when_it_is_small(rt: mpgort.Runtime) -> None:
    for n in (3, BIG):
        a = np.arange(n)
        a.flags.writeable = False
        b = rt.spawn(lambda x: x, a).result()
        assert np.array_equal(a, b) and (n == 3 or not b.flags.writeable)
        del b


@pytest.mark.parametrize(
    "part",
    [
        lambda a: a[7:],
        lambda a: a[::2],
        lambda a: a[::-1],
        lambda a: a.reshape(100, -1).T,
        lambda a: a.reshape(100, -1)[3:50, 5:],
        lambda a: a.view(">i8"),
        lambda a: a.view("u1")[1:-1],
        lambda a: np.broadcast_to(a[:5], (9, 5)),
        lambda a: memoryview(a)[3:],
        lambda a: np.lib.stride_tricks.sliding_window_view(a, 9),
        lambda a: a.view("M8[s]"),
        lambda a: a.view("m8[ns]")[5:].reshape(5, -1, order="F"),
        lambda a: a.view([("at", "M8[us]")]),
        lambda a: a.view([("x", "f8")]).view(np.recarray)[2:],
    ],
)
def test_whatever_part_of_a_received_array_is_sent_on_nothing_is_written(
    rt: mpgort.Runtime, part: Any
) -> None:
    a = rt.spawn(np.arange, BIG, dtype=float).result()
    before = large_bytes(rt)
    there = rt.spawn(lambda x: x, part(a)).result()
    assert large_bytes(rt) == before
    assert np.array_equal(np.asarray(there), np.asarray(part(a)))
    assert np.shares_memory(np.asarray(there), a)
    del a, there


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


@pytest.mark.parametrize("n", [0, 10, 1 << 17])
def test_bytes_bytearrays_and_memoryviews_arrive_as_such(rt: mpgort.Runtime, n: int) -> None:
    data = bytes(range(256)) * (n // 256) + bytes(n % 256)
    for o in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        back = rt.spawn(lambda x: x, o).result()
        assert type(back) is type(o) and back == data
        assert not isinstance(back, memoryview) or back.readonly
        del back, o


@pytest.mark.parametrize("n", [12, 1 << 15])
def test_a_memoryview_keeps_its_format_and_shape(rt: mpgort.Runtime, n: int) -> None:
    whole = memoryview(np.arange(n, dtype="i4"))
    for view in (whole, whole[3:9], whole[::2], whole.cast("B").cast("h", (n // 2, 4))):
        back = rt.spawn(lambda x: x, view).result()
        assert (back.format, back.shape, back.tolist()) == (view.format, view.shape, view.tolist())
        del back
    assert rt.spawn(lambda x: x[()], memoryview(np.array(5))).result() == 5


def test_a_memoryview_of_shared_memory_is_that_memory(rt: mpgort.Runtime) -> None:
    a = shared.zeros(10, "u1")

    def write(view: Any) -> None:
        view[2] = 7

    rt.spawn(write, memoryview(a)[1:]).result()
    assert a.tolist() == [0, 0, 0, 7, 0, 0, 0, 0, 0, 0]
    with pytest.raises(TypeError, match="read-only"):
        rt.spawn(write, memoryview(a).toreadonly()).result()


def test_a_memoryview_that_no_process_could_cast_is_refused(rt: mpgort.Runtime) -> None:
    with pytest.raises(mpgort.SerializationError, match="send the array"):
        rt.spawn(len, memoryview(np.zeros(3, RECORD)))
    released = memoryview(b"abc")
    released.release()
    with pytest.raises(mpgort.SerializationError, match="released"):
        rt.spawn(len, released)


async def holds_views(a: Any) -> list[Any]:
    view, mine = memoryview(a)[5:], memoryview(bytearray(b"mine"))
    for _ in range(5):
        await gosched()
    mine[0] = 65
    return [view.tolist(), bytes(mine), view.readonly]


@pytest.mark.parametrize("migrate", ["auto", "always"])
def test_a_goroutines_views_are_what_they_were(migrate: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", migrate)

    async def main() -> list[Any]:
        handles = [spawn(holds_views, np.arange(BIG)) for _ in range(3)]
        return [await h for h in handles]

    assert mpgort.run(main, procs=2) == [[list(range(5, BIG)), b"Aine", True]] * 3


def test_frames_of_pandas_share_their_columns(rt: mpgort.Runtime) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": np.arange(BIG), "y": np.ones(BIG), "s": ["a", "b"] * (BIG // 2)})
    back = rt.spawn(lambda f: f, frame).result()
    assert back.equals(frame)
    assert large_bytes(rt) > 0
    before = large_bytes(rt)
    assert rt.spawn(lambda f: float(f["y"].sum()), back[["x", "y"]]).result() == BIG
    del back
    assert before > 2 * 8 * BIG


@pytest.mark.parametrize(
    "dtype", ["string[pyarrow]", "int64[pyarrow]", "Int64", "category", "M8[s]"]
)
def test_a_column_of_pandas_is_written_once_however_often_it_is_sent_on(
    rt: mpgort.Runtime, dtype: str
) -> None:
    """pandas copies a column that Arrow holds, each time that it is pickled."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"c": pd.Series(np.arange(BIG) % 100).astype(dtype), "x": np.ones(BIG)})
    back = rt.spawn(lambda f: f, frame).result()
    before = large_bytes(rt)
    again = [rt.spawn(lambda f: f, back).result() for _ in range(3)]
    assert large_bytes(rt) == before > 8 * BIG
    again.append(rt.spawn((lambda f: lambda: f)(back)).result())
    assert all(f.equals(frame) and (f.dtypes == frame.dtypes).all() for f in [back, *again])
    assert rt.spawn(lambda f: f.assign(c=f["c"].shift())["c"].isna().sum(), back).result() == 1
    del back, again


def test_tables_of_arrow_share_their_columns(rt: mpgort.Runtime) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"x": np.arange(BIG), "s": ["a", None] * (BIG // 2)})
    back = rt.spawn(lambda t: t, table).result()
    assert back.equals(table)
    before = large_bytes(rt)
    again = rt.spawn(lambda t: t, back).result()
    assert 8 * BIG < large_bytes(rt) < 1.5 * before
    del back, again


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


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[ns]", RECORD, DATED, "V3", "S5", "U2", "?", "c16"])
def test_a_shared_array_of_any_type_is_one_memory(rt: mpgort.Runtime, dtype: Any) -> None:
    def mark(x: Any) -> Any:
        x[2:4] = np.ones(1, "u1").repeat(x.itemsize).view(x.dtype)
        return x[::-1]

    for order in ("C", "F"):
        a = shared.zeros((6, 3), dtype, order=order)
        expected = mark(np.zeros((6, 3), dtype))
        back = rt.spawn(mark, a).result()
        assert back.tobytes() == expected.tobytes() == a[::-1].tobytes()
        assert np.shares_memory(a, back)
    records = shared.zeros(5, RECORD).view(np.recarray)

    def put(x: np.recarray[Any, Any]) -> bool:
        x.a[1] = 7
        return isinstance(x, np.recarray)

    assert rt.spawn(put, records).result() and records.a[1] == 7
    matrix = shared.zeros((2, 2)).view(np.matrix)
    rt.spawn(mark, matrix).result()
    windows = np.lib.stride_tricks.sliding_window_view(matrix.A1, 2, writeable=True)
    rt.spawn(lambda w: w.fill(3), windows).result()
    assert matrix.A1.tolist() == [3.0] * 4


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
        lambda: shared.zeros(5)[3:3],
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
    with pytest.raises(mpgort.OutOfSharedMemory, match=f"for {1 << 53} bytes more") as e:
        shared.empty(1 << 50)
    assert int(str(e.value).rpartition("=")[2][:-1]) > 1 << 53
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


@pytest.mark.usefixtures("auto")
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


def test_what_is_made_of_memory_kept_from_a_former_array_holds_what_it_should(
    rt: mpgort.Runtime,
) -> None:
    sizes = [BIG, BIG + 100, 2 * BIG, 10 * BIG]
    for k in range(40):
        n = sizes[k % 4]
        back = rt.spawn(np.full, n, float(k)).result()
        assert rt.spawn(np.sum, np.full(n, float(k))).result() == n * float(k) == back.sum()
        z = shared.zeros(n, runtime=rt)
        assert not z.any()
        z[:] = k


@pytest.mark.parametrize("options", [{"procs": 0}, {"procs": 1, "scrub": True}])
def test_without_a_keeper_or_under_scrub_pages_go_back_at_once(options: dict[str, Any]) -> None:
    async def main() -> int:
        prog = mpgort._core.current()
        assert prog is not None
        ch = chan(1)
        await ch.send(np.ones(BIG))
        before: int = prog.stats()["committed"]
        got = await ch.recv()
        assert got.sum() == BIG
        del got
        return before - prog.stats()["committed"]

    assert mpgort.run(main, **options) > 7 * BIG


def test_sending_a_shared_array_writes_no_more_for_its_size(rt: mpgort.Runtime) -> None:
    def written(a: Any) -> int:
        before = rt.stats()["alloc_bytes"]
        assert rt.spawn(len, a).result() == len(a)
        after: int = rt.stats()["alloc_bytes"]
        return after - before

    small, large = shared.empty(10), shared.empty(200 << 17)
    assert written(large) < written(small) + 4096
    del small, large
