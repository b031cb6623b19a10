"""NumPy arrays in a move: what shares memory before it shares memory after it.

INV (a move is unobservable). A view moves as a view of its base, which moves once; so two views of
an array that no local holds stay together too. What cannot be put together again stays at home."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import continuation_harness as h
import numpy as np
import pytest

from mpgort import _core

h.require_frames()

Body = Callable[[], Coroutine[Any, Any, Any]]
SOMEBODYS = np.zeros(10)


@pytest.fixture(autouse=True)
def parks() -> Iterator[None]:
    with h.native_park():
        yield


async def view_and_base() -> Any:
    a = np.zeros(10)
    v = a[2:5]
    await h.park()
    v[0] = 1
    return a[2], v.base is a


async def two_views_of_an_array_without_a_name() -> Any:
    v = np.zeros(10)[2:5]
    w, u = v[1:], v[1:]
    await h.park()
    w[0] = 1
    return v[1], u[0], v.base is w.base, v.base.size


async def backwards() -> Any:
    v = np.arange(10.0)[::-1]
    w = v[1::2]
    await h.park()
    w[0] = 77
    return v.tolist(), w.tolist(), v.base.tolist()


async def in_fortrans_order() -> Any:
    a = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    w = a[1:, ::2]
    await h.park()
    w[0] = 77
    return a.tolist(), a.flags.f_contiguous, w.base is a


async def a_field_of_records() -> Any:
    a = np.zeros(4, dtype=[("x", "i4"), ("y", "f8")])
    y = a["y"]
    await h.park()
    y[1] = 4
    return a.tolist()


async def bytes_that_two_arrays_share() -> Any:
    b = bytearray(16)
    x, y = np.frombuffer(b, np.uint8), np.frombuffer(b, np.float64)
    await h.park()
    y[0] = 1
    return x.tolist(), list(b)


async def an_array_that_owns_its_memory() -> Any:
    a = np.arange(4.0)
    await h.park()
    a.resize(6, refcheck=False)
    return a.tolist(), a.base, a.flags.owndata


async def what_may_not_be_written() -> Any:
    a, b = np.arange(4.0), np.arange(4.0)
    a.flags.writeable = False
    v, w = a[1:], b[1:]
    w.flags.writeable = False
    await h.park()
    return [x.flags.writeable for x in (a, b, v, w)], v.base is a, w.base is b


async def one_view_in_a_list_in_a_dict() -> Any:
    a = np.zeros(10)
    d = {"views": [a[2:5], a[2:5]]}
    await h.park()
    d["views"][0][0] = 1
    return a[2], d["views"][1][0]


async def without_dimensions_or_elements() -> Any:
    a, e = np.array(5.0), np.zeros((0, 3))
    v, f = a.reshape(1), e[:, 1:]
    await h.park()
    v[0] = 2
    return a.tolist(), f.shape


async def a_lone_array_of_objects_and_records() -> Any:
    o = np.array([10**20, None], dtype=object).reshape(2, 1)
    r = np.rec.array([(1, 2.0), (3, 4.0)])
    m = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    await h.park()
    o[1] = 2
    r[0] = (5, 6.0)
    return o.tolist(), r.tolist(), m.tolist()


MOVES: list[Body] = [
    view_and_base,
    two_views_of_an_array_without_a_name,
    backwards,
    in_fortrans_order,
    a_field_of_records,
    an_array_that_owns_its_memory,
    what_may_not_be_written,
    one_view_in_a_list_in_a_dict,
    without_dimensions_or_elements,
    a_lone_array_of_objects_and_records,
]


async def holds(a: Any, views: bool) -> Any:
    v = a[1:] if views else None
    await h.park()
    a[1] = 7
    return a.tolist(), v if v is None else v.tolist()


@pytest.mark.parametrize("views", [False, True])
def test_an_array_that_was_received_moves(views: bool) -> None:
    made = [_core.value_decode(_core.value_encode(np.arange(3.0)))]
    coro = h.start(holds(made.pop(), views))
    for _ in range(3):
        coro = h.move(coro)
    assert h.finish(coro) == ([0.0, 7.0, 2.0], [7.0, 2.0] if views else None)


def plainly(body: Body) -> Any:
    """The body's result without a move: the park answers at once."""
    coro = h.start(body())
    return h.finish(coro)


@pytest.mark.parametrize("body", MOVES, ids=lambda body: body.__name__)
def test_arrays_that_share_memory_share_it_after_moves(body: Body) -> None:
    coro = h.start(body())
    for _ in range(3):  # what came out of a move moves again
        coro = h.move(coro)
    assert h.finish(coro) == plainly(body)


async def a_view_of_what_a_module_holds() -> Any:
    v = SOMEBODYS[2:5]
    await h.park()
    return v.base is SOMEBODYS


async def two_views_of_objects() -> Any:
    v = np.array([[1], None], dtype=object)[:]
    w = v[1:]
    await h.park()
    w[0] = 7
    return v.tolist(), len(w)


async def an_array_and_its_view_of_another_class() -> Any:
    v = np.zeros(4)[:]
    r = v.view(np.recarray)
    await h.park()
    r[0] = 7
    return v.tolist(), len(r)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (bytes_that_two_arrays_share, "a bytearray with a memoryview on it"),
        (two_views_of_objects, "shares its memory"),
        (an_array_and_its_view_of_another_class, "a recarray that shares its memory"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_cannot_be_put_together_again_stays_at_home_and_says_why(
    body: Body, word: str
) -> None:
    coro = h.start(body())
    with pytest.raises(_core.Pinned, match=word):
        _core.chain_encode(coro)
    assert h.finish(coro) == plainly(body)


def test_a_view_of_an_array_that_others_hold_goes_by_that_arrays_name_or_stays() -> None:
    coro = h.start(a_view_of_what_a_module_holds())
    try:
        coro = h.move(coro)
    except _core.Pinned:
        assert inspect.getcoroutinestate(coro) == "CORO_SUSPENDED"
    assert h.finish(coro) is True


async def a_large_base() -> Any:
    v = np.zeros(100_000)[2:4]
    await h.park()
    return v.tolist(), v.base.size


def test_a_view_is_as_large_as_its_base_and_looked_at_before_a_copy() -> None:
    coro = h.start(a_large_base())
    with pytest.raises(_core.Heavy):
        _core.chain_encode(coro, 16384)
    assert h.finish(coro) == ([0.0, 0.0], 100_000)
