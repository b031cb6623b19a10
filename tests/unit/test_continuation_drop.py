"""Dropping an encoded chain is silent, leaks nothing, and hides nothing from a tracer.

The bytes have taken over from the live coroutine: its finally blocks belong to whoever decodes
them. So the drop must run none of them, warn of nothing, call no finalizer and give back every
object. The second half: settrace, setprofile and sys.monitoring see a moved frame as they see any
other, also when they are switched on or off while it is parked."""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import continuation_bodies as bodies
import continuation_bodies_hold as holding
import continuation_bodies_raise as raising
import continuation_harness as h
import pytest
from continuation_table import BODIES

from mpgort import _core

h.require_frames()


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Warnings are errors and nothing may reach the unraisable hook, also not in a collection."""
    gc.collect()
    with warnings.catch_warnings(), h.unraisable() as dropped, h.native_park():
        warnings.simplefilter("error")
        yield
        gc.collect()
    _core.set_fast_forward(True)
    assert dropped == []


def drop(coro: Any) -> bytes:
    blob: bytes = _core.chain_encode(coro)
    _core.chain_drop(coro)
    return blob


# ---- silence ------------------------------------------------------------------------------------


async def _cleans_up(tag: str) -> str:
    def gen() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            h.log("generator finally", tag)

    async def agen() -> Any:
        try:
            yield 1
            yield 2
        finally:
            h.log("async generator finally", tag)

    g, a = gen(), agen()
    next(g)
    await a.__anext__()
    try:
        with raising._Manager(tag):
            async with raising._acm(tag):
                await bodies._leaf(tag)
    finally:
        h.log("finally", tag)
        await a.aclose()
        g.close()
    return tag


def test_no_finally_no_exit_and_no_generator_is_closed_by_a_drop() -> None:
    h.LOG.clear()
    coro = h.start(_cleans_up("t"))
    _core.chain_send(coro, None)
    before = list(h.LOG)
    blob = drop(coro)
    del coro
    gc.collect()
    assert h.LOG == before
    assert h.finish(_core.chain_decode(blob)) == "t"
    text = repr(h.LOG)
    for each in ("'finally'", "generator finally", "async generator finally", "exit", "out"):
        assert text.count(each) >= 1


async def _holds_a_fresh_coroutine() -> Any:
    later = bodies._leaf("later")
    await h.park()
    return await later


def test_dropped_coroutine_that_never_started_is_not_reported() -> None:
    coro = h.start(_holds_a_fresh_coroutine())
    blob = drop(coro)
    del coro
    gc.collect()
    assert h.finish(_core.chain_decode(blob), "v") is None


def test_fresh_coroutine_lost_by_a_decoded_chain_is_still_reported() -> None:
    """What would warn in an unmoved run warns after a move."""
    coro = h.move(h.start(_holds_a_fresh_coroutine()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        coro.close()
        del coro
        gc.collect()
    assert any("never awaited" in str(w.message) for w in seen)


@pytest.mark.parametrize("name", ["cyclic_objects", "recursive_closure", "context_crosses_frames"])
def test_decoded_graph_with_cycles_is_gone_after_its_end(name: str) -> None:
    gc.collect()
    before = sum(type(o).__name__ in ("_Point", "coroutine", "cell") for o in gc.get_objects())
    coro = h.move(h.start(BODIES[name]()))
    h.finish(coro)
    del coro
    gc.collect()
    assert (
        sum(type(o).__name__ in ("_Point", "coroutine", "cell") for o in gc.get_objects()) == before
    )


def test_drop_leaves_an_object_that_is_only_an_empty_coroutine() -> None:
    coro = h.start(bodies.nested_three_deep())
    drop(coro)
    assert coro.cr_await is None
    with pytest.raises(RuntimeError):
        coro.send(None)
    with pytest.raises((TypeError, ValueError, _core.Pinned)):
        _core.chain_encode(coro)
    coro.close()


def test_drop_twice_and_drop_of_a_finished_coroutine_do_no_harm() -> None:
    coro = h.start(bodies.one_park())
    drop(coro)
    try:
        _core.chain_drop(coro)
    except (RuntimeError, TypeError, ValueError):
        pass
    done = h.start(bodies.one_park())
    assert h.finish(done, 3) == 3
    try:
        _core.chain_drop(done)
    except (RuntimeError, TypeError, ValueError):
        pass


class _Local:
    """Has no __del__; its death shows in a list all the same, through the list's own count."""

    def __init__(self, held: Any) -> None:
        self.held = held


async def _holds_immutable(marker: Any) -> Any:
    box = [_Local(marker)]
    await h.park()
    return box[0].held


def test_drop_gives_back_every_reference_to_what_the_frame_held() -> None:
    marker = "a string made at run time " * 3
    marker = marker + str(id(marker))
    base = sys.getrefcount(marker)
    coro = h.start(_holds_immutable(marker))
    assert sys.getrefcount(marker) > base
    drop(coro)
    assert sys.getrefcount(marker) == base
    del coro
    assert sys.getrefcount(marker) == base


def test_frame_object_kept_by_a_debugger_does_not_keep_the_dropped_locals() -> None:
    marker = "another string made at run time " * 3
    marker = marker + str(id(marker))
    base = sys.getrefcount(marker)
    coro = h.start(_holds_immutable(marker))
    frame = coro.cr_frame
    try:
        drop(coro)
    except _core.Pinned:
        coro.close()
        return
    del coro
    gc.collect()
    assert sys.getrefcount(marker) == base
    assert frame.f_code.co_name == "_holds_immutable"


def test_frame_object_of_a_dropped_coroutine_does_not_show_the_next_one() -> None:
    """Coroutines are filled again from a pool: who still knows the old one must not see the new."""
    coro = h.start(_holds_immutable("old"))
    frame, ref = coro.cr_frame, weakref.ref(coro)
    try:
        blob = drop(coro)
    except _core.Pinned:
        coro.close()
        return
    del coro
    others = [_core.chain_decode(blob) for _ in range(50)]
    assert "box" not in frame.f_locals
    assert ref() is None or ref() not in others
    assert all(o.cr_frame is not frame for o in others)
    for o in others:
        assert h.finish(o) == "old"


def test_dropped_coroutine_that_somebody_holds_is_not_filled_again() -> None:
    held, blobs = [], []
    for i in range(40):
        coro = h.start(_holds_immutable(f"text {i}"))
        blobs.append(drop(coro))
        held.append(coro)
    fresh = [_core.chain_decode(b) for b in blobs]
    assert not {id(c) for c in held} & {id(c) for c in fresh}
    for coro in held:
        assert coro.cr_await is None
        coro.close()
    assert [h.finish(c) for c in fresh] == [f"text {i}" for i in range(40)]


class _HasDel:
    def __del__(self) -> None:
        h.log("__del__")


async def _holds_del() -> Any:
    thing = _HasDel()
    await h.park()
    return type(thing).__name__


async def _holds_del_deep() -> Any:
    things = {"k": [(_HasDel(),)]}
    await h.park()
    return len(things)


async def _weakly() -> Any:
    thing = _Local(1)
    _WEAK.append(weakref.ref(thing, lambda r: h.log("died")))
    await h.park()
    return _WEAK.pop()() is thing


_WEAK: list[Any] = []


@pytest.mark.parametrize("body", [_holds_del, _holds_del_deep, _weakly])
def test_finalizers_and_weak_references_keep_the_goroutine_home(body: Callable[[], Any]) -> None:
    h.LOG.clear()
    coro = h.start(body())
    with pytest.raises(_core.Pinned):
        _core.chain_encode(coro)
    assert h.LOG == []
    assert h.finish(coro)


async def _weakly_generator() -> Any:
    gen = (x for x in [1, 2])
    _WEAK.append(weakref.ref(gen))
    await h.park()
    return _WEAK.pop()() is gen


def test_weak_reference_to_a_generator_in_the_frame_keeps_it_home() -> None:
    coro = h.start(_weakly_generator())
    with pytest.raises(_core.Pinned):
        _core.chain_encode(coro)
    assert h.finish(coro) is True


# ---- leaks --------------------------------------------------------------------------------------


def growth(trips: Callable[[], Any], runs: int, rounds: int = 30) -> int:
    """The smallest growth in allocated blocks over rounds of `runs`: what leaks each time. Free
    lists and pools fill up in the first rounds, so it looks on until a round grows by nothing."""
    least = 1 << 30
    for _ in range(rounds):
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(runs):
            trips()
        gc.collect()
        least = min(least, sys.getallocatedblocks() - before)
        if least <= 0:
            break
    return least


LEAKY = [
    "parks_in_an_expression", "nested_three_deep", "for_over_list", "for_over_dict",
    "generator_that_receives", "two_frames_share_a_generator", "nested_handlers_unwind",
    "finally_parks_while_an_exception_flies", "async_with_two_managers", "exit_stacks",
    "cell_shared_by_two_closures", "recursive_closure", "comprehensions_that_await",
    "async_for_over_async_generator", "cyclic_objects", "instances_of_many_kinds",
    "methods_of_an_instance", "function_attributes_and_defaults", "star_args_and_keywords",
    "numbers_and_text_of_every_size", "for_over_set", "enumerate_zip_map_filter_reversed",
    "coroutine_wrapper", "boom_goes_through_three_frames", "coroutine_awaited_later",
]  # fmt: skip


@pytest.mark.parametrize("name", LEAKY)
def test_moves_leak_no_more_than_a_plain_run(name: str) -> None:
    gc.collect()
    gc.freeze()
    try:
        body = BODIES[name]
        plain = growth(lambda: h.run(body, h.answer_numbers, h.PlainEngine()), 12)
        moved = growth(lambda: h.run(body, h.answer_numbers, h.MovingEngine()), 12)
        assert moved - max(plain, 0) < 6, (moved, plain)
    finally:
        gc.unfreeze()


def test_throws_closes_and_abandoned_blobs_leak_nothing() -> None:
    body = raising.try_except_else_finally

    def once() -> None:
        for plan in (h.throw_at(1), h.close_at(2)):
            h.run(body, plan, h.MovingEngine())
        with h.native_park():
            drop(h.start(bodies.nested_three_deep()))

    gc.collect()
    gc.freeze()
    try:
        assert growth(once, 20) < 10
    finally:
        gc.unfreeze()


async def _unencodable() -> Any:
    first, thing, last = [1], iter([]), {"a": [2]}
    frame = sys._getframe()
    await h.park()
    return first, thing, last, frame.f_code.co_name


def test_refusals_and_damaged_bytes_leak_nothing() -> None:
    coro = h.start(holding.match_statements())
    blob = _core.chain_encode(coro)

    def once() -> None:
        live = h.start(_unencodable())
        with pytest.raises(_core.Pinned):
            _core.chain_encode(live)
        h.finish(live)
        del live
        with pytest.raises(_core.Heavy):
            _core.chain_encode(coro, 10)
        for n in range(0, len(blob), 5):
            try:
                _core.chain_decode(blob[:n])
            except Exception:
                pass

    assert growth(once, 40) < 20
    h.finish(coro)


def test_values_and_their_errors_leak_nothing() -> None:
    value = [1, "a" * 50, {"k": (2.5, [3])}, {1, 2}, holding._Point(1, [2]), lambda: 1, 10**50]

    def once() -> None:
        _core.value_decode(_core.value_encode(value))
        with pytest.raises(Exception):  # noqa: B017
            _core.value_encode([value, sys._getframe()])

    assert growth(once, 30) < 15


# ---- tracers ------------------------------------------------------------------------------------


async def _traced_leaf() -> Any:
    x = await h.park()
    y = x
    return y


async def _traced() -> Any:
    out = []
    for _ in range(2):
        out.append(await _traced_leaf())
    try:
        raise KeyError(out)
    except KeyError:
        await h.park()
    return out


NAMES = {"_traced", "_traced_leaf"}


def events(install: Callable[[Any], Callable[[], None]], moved: bool, on: int, off: int) -> Any:
    """What a tracer sees that is switched on before the resume of park `on`, off before `off`."""
    seen: list[Any] = []
    coro = h.start(_traced())
    stop: Callable[[], None] | None = None
    done, k = False, 0
    while not done:
        if moved:
            coro = h.move(coro)
        if k == on:
            stop = install(seen)
        if k == off and stop is not None:
            stop()
            stop = None
        done, _ = _core.chain_send(coro, k)
        k += 1
    if stop is not None:
        stop()
    return seen


def install_trace(seen: Any) -> Callable[[], None]:
    def tracer(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_name not in NAMES:
            return None
        seen.append((event, frame.f_code.co_name, frame.f_lineno - frame.f_code.co_firstlineno))
        return tracer

    former = sys.gettrace()
    sys.settrace(tracer)
    return lambda: sys.settrace(former)


def install_profile(seen: Any) -> Callable[[], None]:
    def profiler(frame: Any, event: str, arg: Any) -> None:
        if frame.f_code.co_name in NAMES and event in ("call", "return"):
            seen.append((event, frame.f_code.co_name))

    sys.setprofile(profiler)
    return lambda: sys.setprofile(None)


def install_monitoring(seen: Any) -> Callable[[], None]:
    mon = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    tool = 3
    mon.use_tool_id(tool, "test")
    kinds = ["PY_START", "PY_RESUME", "PY_YIELD", "PY_RETURN", "LINE", "RAISE", "EXCEPTION_HANDLED"]
    for kind in kinds:

        def callback(code: Any, where: int, *args: Any, kind: str = kind) -> None:
            if code.co_name in NAMES:
                seen.append((kind, code.co_name, where))

        mon.register_callback(tool, getattr(mon.events, kind), callback)
    mon.set_events(tool, sum(getattr(mon.events, kind) for kind in kinds))

    def stop() -> None:
        mon.set_events(tool, 0)
        for kind in kinds:
            mon.register_callback(tool, getattr(mon.events, kind), None)
        mon.free_tool_id(tool)

    return stop


TRACERS = [install_trace, install_profile]
if hasattr(sys, "monitoring"):
    TRACERS.append(install_monitoring)


@pytest.mark.parametrize("ff", [True, False], ids=["ff", "park"])
@pytest.mark.parametrize("on, off", [(0, 99), (1, 99), (2, 99), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("install", TRACERS, ids=lambda f: f.__name__)
def test_tracer_switched_on_or_off_while_parked_sees_the_same_events_after_a_move(
    install: Any, on: int, off: int, ff: bool
) -> None:
    _core.set_fast_forward(ff)
    live = events(install, False, on, off)
    assert events(install, True, on, off) == live
    assert {e[1] for e in live} == NAMES or on == 2


@pytest.mark.parametrize("install", TRACERS, ids=lambda f: f.__name__)
def test_fast_forward_shows_a_tracer_what_a_plain_resume_shows(install: Any) -> None:
    got = []
    for ff in (True, False):
        _core.set_fast_forward(ff)
        got.append(events(install, True, 1, 99))
    assert got[0] == got[1] and got[0]
