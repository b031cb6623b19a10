"""NumPy's arrays and scalars by the codec's own tag: what arrives is what pickle would have made.

A blob that needs no pickle says so in its second byte. INV (a move is unobservable): an array that
moves has its memory afterwards, and what others can see of it keeps it at home; views and all that
shares memory are in test_continuation_arrays.py."""

from __future__ import annotations

import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import continuation_harness as h
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp

from mpgort import _core

h.require_frames()

BARE = 0  # BLOB_BARE

DTYPES = [c if c in "?bB" else o + c for c in "?bBhHiIlLqQefdgFDG" for o in "=><"]
DTYPES = sorted({np.dtype(d).str + np.dtype(d).char: d for d in DTYPES}.values())
DTYPES += ["M8[s]", "<M8[25us]", ">M8[D]", "M8", "m8[ns]", ">m8[h]", "m8", "S1", "S7", "U3", ">U3"]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (3, 4), (2, 0, 3), (1, 5), (5, 1), (2, 3, 2)]


def trip(value: Any) -> Any:
    return _core.value_decode(_core.value_encode(value))


def is_bare(value: Any) -> bool:
    return bool(_core.value_encode(value)[1] == BARE)


def filled(dtype: Any, shape: tuple[int, ...], order: Any = "C") -> Any:
    """An array of this kind, no element of which is like the next, made of no value that NumPy
    might warn about."""
    a = np.empty(shape, dtype, order=order)
    items = np.prod(shape, dtype=int)
    if a.dtype.kind in "SU":
        a[...] = np.array([f"{i}" for i in range(items)], dtype).reshape(shape)
    else:
        a[...] = (
            (np.arange(items) % 100)
            .astype("i8" if a.dtype.kind in "mM" else "i4")
            .astype(np.dtype(dtype))
            .reshape(shape)
        )
    return a


def facts(a: Any) -> tuple[Any, ...]:
    flags = a.flags
    strides = a.strides if a.size else None  # NumPy has two ways with them
    order = flags.c_contiguous, flags.f_contiguous
    return type(a), a.shape, strides, order, flags.writeable, flags.aligned


def same(back: Any, a: Any) -> bool:
    """Its dtype is the sender's. (Of some arrays NumPy's pickle makes their bytes native.)"""
    d, e = back.dtype, a.dtype
    return (d, d.byteorder, d.char) == (e, e.byteorder, e.char) and back.tobytes() == a.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_arrives_as_pickle_makes_it_and_has_its_memory(dtype: str) -> None:
    for shape in SHAPES:
        for order in "CF":
            for writeable in (True, False):
                a = filled(dtype, shape, order)
                a.flags.writeable = writeable or dtype in (">g", ">G")  # NumPy's own would lose it
                back = trip(a)
                assert is_bare(a) and same(back, a)
                assert facts(back) == facts(pickle.loads(pickle.dumps(a, 5)))
                assert back.base is None and back.flags.owndata


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    hnp.arrays(
        hnp.scalar_dtypes() | hnp.unicode_string_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)
    )
)
def test_any_array_arrives_as_pickle_makes_it(a: Any) -> None:
    for b in (a, a.T, a[..., ::2], a[1:]) if a.ndim else (a,):
        back, plain = trip(b), pickle.loads(pickle.dumps(b, 5))
        assert (type(back), back.shape, back.dtype.kind) == (np.ndarray, plain.shape, b.dtype.kind)
        assert back.astype(plain.dtype).tobytes() == plain.tobytes()


SCALARS = [np.dtype(c).type(1) for c in "?bBhHiIlLqQefdgFDG"]
SCALARS += [np.datetime64("2024-05-06T07:08"), np.datetime64("NaT"), np.timedelta64(3, "D")]
SCALARS += [np.float64("nan"), np.float32("-inf"), np.uint64(2**64 - 1), np.bool_(False)]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda s: f"{s.dtype.str}-{s}")
def test_a_scalar_needs_no_pickle_and_keeps_its_type(scalar: Any) -> None:
    back = trip([scalar])[0]
    assert is_bare(scalar)
    assert type(back) is type(scalar) and back.dtype == scalar.dtype
    assert back.tobytes() == scalar.tobytes()
    assert not isinstance(scalar, np.bool_) or back is scalar


class Tagged(np.ndarray[Any, Any]):
    pass


class Real(float):
    pass


class Real64(np.float64):
    tag = 5


RECORD = np.dtype([("a", "<i4"), ("b", ">f8", (2,))])
NOT_PLAIN: list[Any] = [
    np.array([1, None, "x"], dtype=object),
    np.zeros(3, RECORD),
    np.zeros(3, RECORD)[0],
    np.zeros(3, "V5"),
    np.array(["", ""], "S"),
    np.arange(4).view(Tagged),
    np.rec.array([(1, 2.0)]),
    np.ma.masked_less(np.arange(5), 2),
    np.arange(9)[::2],
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    np.broadcast_to(np.arange(3), (2, 3)),
    np.zeros(2, np.dtype("f8", metadata={"unit": "m"})),
    Real64(1.5),
    np.str_("ends\0"),
    np.bytes_(b"ends\0"),
    np.dtype("f8"),
    np.sin,
    np.ndarray,
    np.float64,
]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda v: f"{type(v).__name__}-{v!s:.12}")
def test_what_is_not_plain_is_still_what_pickle_makes_of_it(value: Any) -> None:
    back, plain = trip(value), pickle.loads(pickle.dumps(value, 5))
    assert type(back) is type(plain)
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype and back.dtype.metadata == value.dtype.metadata
        assert back.shape == value.shape and str(back) == str(value)
    else:
        assert str(back) == str(plain)


class Holder:
    """Falls to pickle."""

    def __init__(self, a: Any) -> None:
        self.a = a

    def __reduce__(self) -> Any:
        return Holder, (self.a,)


def test_an_array_that_is_met_again_is_one_array() -> None:
    a, s = np.arange(5), np.float64(2.5)
    ring: list[Any] = [a, {"a": a}, (a, s, s)]
    ring.append(ring)
    back = trip(ring)
    assert back[0] is back[1]["a"] is back[2][0] and back[2][1] is back[2][2]
    assert back[3] is back
    back = trip([a, Holder(a), a.copy()])
    assert back[0] is back[1].a and back[2] is not back[0]
    assert back[2].tolist() == a.tolist()


def test_what_arrives_is_nobody_elses() -> None:
    a = np.arange(5)
    back, again = trip(a), trip(a)
    a[0] = 7
    back[1] = 8
    assert (back[0], again.tolist()) == (0, [0, 1, 2, 3, 4])
    back.resize(6, refcheck=False)


def test_a_view_without_gaps_brings_its_own_bytes_alone() -> None:
    whole = np.zeros(100_000)
    blob = _core.value_encode(whole[10:20])
    assert len(blob) < 120 and blob[1] == BARE
    assert _core.value_decode(blob).base is None


def test_bytes_of_an_array_make_sense_where_numpy_is_not_there_yet() -> None:
    code = (
        "import sys; from mpgort import _core; assert 'numpy' not in sys.modules;"
        "b = bytes.fromhex(sys.argv[1]); x, y = _core.value_decode(b);"
        "assert _core.value_encode(x)[1] == 0; print(x.tolist(), type(y).__name__)"
    )
    blob = _core.value_encode((np.arange(3, dtype=">i2"), np.float32(1)))
    command = [sys.executable, "-c", code, blob.hex()]
    assert subprocess.check_output(command, text=True) == "[0, 1, 2] float32\n"


# ---- in a move ----------------------------------------------------------------------------------

Body = Callable[[], Coroutine[Any, Any, Any]]


@pytest.fixture
def parks() -> Iterator[None]:
    with h.native_park():
        yield


async def holds_one_of_each() -> Any:
    a, f = np.arange(6, dtype=">i4"), np.asfortranarray(np.ones((2, 3), "g"))
    f.flags.writeable = False
    days, s, q = np.zeros(2, "M8[D]"), np.float32(1.5), np.zeros(1, "q")
    same = a
    await h.park()
    a[0] = 5
    return (
        [(facts(x), x.flags.owndata, x.base, x.dtype.char) for x in (a, f, days, q)],
        (type(s), s, same is a, len(memoryview(b"x" * 9)[2:])),
    )


async def holds_none_that_moves() -> Any:
    a = np.arange(3)
    ref = weakref.ref(a)
    await h.park()
    return ref() is a


def test_arrays_of_a_frame_are_what_they_were_without_a_pickle(parks: None) -> None:
    coro = h.start(holds_one_of_each())
    for _ in range(3):
        blob = _core.chain_encode(coro)
        assert blob[1] == BARE
        assert [f[0] for f in _core.chain_frames(blob)][-1:] == ["holds_one_of_each"]
        coro = h.move(coro)
    assert h.finish(coro) == h.finish(h.start(holds_one_of_each()))


def test_an_array_with_a_weak_reference_to_it_stays_at_home(parks: None) -> None:
    coro = h.start(holds_none_that_moves())
    with pytest.raises(_core.Pinned, match="weak reference"):
        _core.chain_encode(coro)
    assert h.finish(coro) is True


async def holds(a: Any) -> Any:
    await h.park()
    a[0] = 7
    return a.tolist()


def test_an_array_that_somebody_else_holds_stays_at_home(parks: None) -> None:
    a = np.arange(3)
    coro = h.start(holds(a))
    with pytest.raises(_core.Pinned, match="outside"):
        _core.chain_encode(coro)
    view, a = memoryview(a), None
    with pytest.raises(_core.Pinned, match="outside"):
        _core.chain_encode(coro)
    del view
    assert h.finish(h.move(coro)) == [7, 1, 2]


def test_an_array_beyond_the_budget_is_heavy(parks: None) -> None:
    coro = h.start(holds(np.zeros(3000)))
    with pytest.raises(_core.Heavy):
        _core.chain_encode(coro, 16384)
    assert len(_core.chain_encode(coro, 24000 + 200)) > 24000
    _core.chain_drop(coro)
