"""Hand-written bodies, moved at each of their parks: nothing they can notice may differ.

continuation_bodies*.py have the bodies, continuation_harness.py the engines. Each body runs under
each plan once in plain Python (the oracle), once with every park made encode, drop, decode, resume.
The second half sends the same bodies to and fro between two processes with different hash seeds,
and looks at what an outcome does not show: tracebacks, context variables, `__main__`."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import inspect
import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import continuation_bodies
import continuation_harness as h
import pytest
from continuation_table import BODIES, MAY_PIN

from mpgort import _core

h.require_frames()

SURE = sorted(BODIES.keys() - MAY_PIN)
EITHER_FF = pytest.mark.parametrize("ff", [True, False], ids=["ff", "park"])
THROWS_AND_CLOSES = 24


@pytest.fixture(autouse=True, scope="module")
def frozen_heap() -> Iterator[None]:
    """Keeps what exists already out of the many gc.collect() calls below."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def fast_forward_again() -> Iterator[None]:
    yield
    _core.set_fast_forward(True)


@pytest.fixture(scope="module")
def child() -> Iterator[h.Child]:
    child = h.Child(seed=4242)
    yield child
    child.close()


def same(name: str, plan: h.Plan, **options: Any) -> h.Outcome:
    """Asserts that the moved run is equal to the plain one, and that it did move."""
    plain = h.run(BODIES[name], plan, h.PlainEngine())
    engine = h.MovingEngine(may_pin=name in MAY_PIN, **options)
    moved = h.run(BODIES[name], plan, engine)
    assert moved == plain
    assert moved.dropped == plain.dropped
    return moved


# ---- in one process -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BODIES))
def test_unmoved_body_runs_on_the_native_park_as_on_a_plain_one(name: str) -> None:
    same(name, h.answer_numbers, when=lambda k: False)


@EITHER_FF
@pytest.mark.parametrize("name", sorted(BODIES))
def test_moved_body_gets_the_values_it_is_sent(name: str, ff: bool) -> None:
    out = same(name, h.answer_numbers, fast_forward=ff)
    if name in SURE:
        assert out.moves == out.parks > 0


@EITHER_FF
@pytest.mark.parametrize("name", sorted(BODIES))
def test_moved_body_resumed_with_none(name: str, ff: bool) -> None:
    same(name, h.answer_none, fast_forward=ff)


@EITHER_FF
@pytest.mark.parametrize("name", sorted(BODIES))
def test_moved_body_with_a_full_collection_around_every_move(name: str, ff: bool) -> None:
    same(name, h.answer_numbers, fast_forward=ff, collect=True)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_moved_body_while_the_collector_runs_at_every_allocation(name: str) -> None:
    """The collector looks at what the decoder has half built."""
    former = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        same(name, h.answer_numbers)
    finally:
        gc.set_threshold(*former)


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("name", sorted(BODIES))
def test_moves_at_every_second_park_alternate_with_live_resumes(name: str, odd: int) -> None:
    same(name, h.answer_numbers, when=lambda k: k % 2 == odd)


@EITHER_FF
@pytest.mark.parametrize("name", sorted(BODIES))
def test_exception_thrown_at_each_park_after_the_move(name: str, ff: bool) -> None:
    parks = h.run(BODIES[name], h.answer_numbers, h.PlainEngine()).parks
    for at in range(min(parks, THROWS_AND_CLOSES)):
        same(name, h.throw_at(at), fast_forward=ff)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_close_at_each_park_after_the_move(name: str) -> None:
    parks = h.run(BODIES[name], h.answer_numbers, h.PlainEngine()).parks
    for at in range(min(parks, THROWS_AND_CLOSES)):
        same(name, h.close_at(at))


@pytest.mark.parametrize("name", SURE)
def test_encoding_twice_gives_the_same_bytes_and_leaves_the_coroutine_alone(name: str) -> None:
    class Twice(h.MovingEngine):
        def _encode(self) -> bytes | None:
            first = super()._encode()
            assert super()._encode() == first
            return first

    plain = h.run(BODIES[name], h.answer_numbers, h.PlainEngine())
    assert h.run(BODIES[name], h.answer_numbers, Twice()) == plain


@pytest.mark.parametrize("name", SURE)
def test_encoded_chain_that_is_not_dropped_goes_on_live(name: str) -> None:
    class KeepLive(h.MovingEngine):
        def _move(self) -> None:
            self._encode()
            self.moves += 1

    plain = h.run(BODIES[name], h.answer_numbers, h.PlainEngine())
    assert h.run(BODIES[name], h.answer_numbers, KeepLive()) == plain


@pytest.mark.parametrize("name", SURE)
def test_one_blob_decoded_twice_gives_two_independent_runs(name: str) -> None:
    """The first park's bytes are resumed twice, to the end each time."""
    with h.native_park():
        coro = h.start(BODIES[name]())
        blob = _core.chain_encode(coro)
        _core.chain_drop(coro)
        ends = []
        for _ in range(2):
            h.LOG.clear()
            try:
                ends.append((h.canon(h.finish(_core.chain_decode(blob), 1)), list(h.LOG)))
            except Exception as e:
                ends.append((h.describe(e), list(h.LOG)))
    assert ends[0] == ends[1]


# ---- in another process -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURE)
def test_body_hops_between_two_processes_with_different_hash_seeds(
    name: str, child: h.Child
) -> None:
    for plan in (h.answer_numbers, h.throw_at(1)):
        plain = h.run(BODIES[name], plan, h.PlainEngine())
        assert h.run(BODIES[name], plan, h.HoppingEngine(child)) == plain


MAIN = """
    import dataclasses, enum, os, subprocess, sys
    from mpgort import _core
    from continuation_harness import park, native_park, start, finish

    class Shape:
        sides = 4
        def __init__(self, n): self.n = n
        async def area(self): return self.n * self.n + (await park())

    @dataclasses.dataclass
    class Point:
        x: int
        y: list

    class Color(enum.Enum):
        RED = 1

    def helper(x): return x + 1
    CONFIG = {"mode": "on"}
    double = lambda x: x * 2

    async def inner(s):
        return await s.area()

    async def body():
        s, p, c, f, g, k = Shape(3), Point(1, [2]), Color.RED, helper, double, CONFIG
        local = lambda x: g(x) + f(x) + s.n
        a = await inner(s)
        b = await park()
        return [a, b, p.x, p.y, c is Color.RED, f is helper, g is double, k is CONFIG,
                type(s) is Shape, local(10)]

    if __name__ == "__main__":
        with native_park():
            if sys.argv[1] == "parent":
                coro = start(body())
                blob = _core.chain_encode(coro)
                _core.chain_drop(coro)
                out = subprocess.run(
                    [sys.executable, __file__, "child", blob.hex(), _core.codes_dump().hex()],
                    env={**os.environ, "PYTHONHASHSEED": "77"}, stdout=subprocess.PIPE, text=True)
                print(out.stdout.strip(), out.returncode)
            else:
                _core.codes_load(bytes.fromhex(sys.argv[3]))
                print(finish(_core.chain_decode(bytes.fromhex(sys.argv[2])), 100))
"""


def test_what_main_defines_is_found_in_the_main_of_the_other_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(MAIN))
    run = subprocess.run(
        [sys.executable, str(program), "parent"],
        env={**h.child_env(1), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    want = "[109, None, 1, [2], True, True, True, True, True, 34] 0"
    assert run.stdout.strip() == want, run.stderr


def test_a_process_with_other_code_under_that_name_refuses(child: h.Child) -> None:
    """Code is matched by content: running other bytes at a foreign offset would be a crash."""
    source = (
        "from continuation_harness import park\n"
        "async def body():\n    x = {}\n    return await park(), x\n"
    )
    module = h.define("changing_module", source.format(1))
    child.call("define", "changing_module", source.format("[1, 2]"))
    with h.native_park():
        coro = h.start(module.body())
        blob = _core.chain_encode(coro)
        _core.chain_drop(coro)
    with pytest.raises(AssertionError, match="CodeMismatch.*changing_module"):
        child.call("resume", blob, _core.codes_dump(), ("send", 5))


def test_decode_without_the_code_table_is_an_error_not_a_crash() -> None:
    script = (
        "import sys; from mpgort import _core\n"
        "try: _core.chain_decode(bytes.fromhex(sys.argv[1]))\n"
        "except Exception as e: print(type(e).__name__)\n"
    )
    with h.native_park():
        coro = h.start(continuation_bodies.nested_three_deep())
        blob = _core.chain_encode(coro)
        _core.chain_drop(coro)
    run = subprocess.run(
        [sys.executable, "-c", script, blob.hex()],
        env=h.child_env(2),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout.strip()) == (0, "BadContinuation"), run.stderr


# ---- what an outcome does not show --------------------------------------------------------------


async def _raises_after_a_park() -> None:
    await continuation_bodies._leaf("x")
    raise KeyError("after")


async def _outer_of_raises() -> None:
    await _raises_after_a_park()


@EITHER_FF
def test_traceback_of_a_moved_frame_names_its_functions_and_lines(ff: bool) -> None:
    _core.set_fast_forward(ff)

    def entries(moved: bool) -> list[tuple[str, int | None]]:
        coro = h.start(_outer_of_raises())
        if moved:
            coro = h.move(coro)
        with pytest.raises(KeyError) as info:
            h.finish(coro)
        frames = traceback.extract_tb(info.value.__traceback__)
        return [(f.name, f.lineno) for f in frames if f.name.startswith("_")]

    with h.native_park():
        assert entries(moved=True) == entries(moved=False)
        assert [name for name, _ in entries(True)] == ["_outer_of_raises", "_raises_after_a_park"]


async def _inspected() -> Any:
    x = [1]
    y = "local"
    await continuation_bodies._deep(2)
    return x, y


def test_introspection_of_a_moved_coroutine_shows_its_frames_and_locals() -> None:
    def look(coro: Any) -> Any:
        chain, root = [], coro  # the root keeps the others alive
        while inspect.iscoroutine(coro):
            chain.append((
                coro.__name__, coro.__qualname__, inspect.getcoroutinestate(coro), coro.cr_running,
                coro.cr_frame.f_lineno, coro.cr_code.co_name, sorted(coro.cr_frame.f_locals),
                coro.cr_frame.f_globals["__name__"],
            ))  # fmt: skip
            coro = coro.cr_await
        assert inspect.getcoroutinestate(root) == inspect.CORO_SUSPENDED
        return chain

    with h.native_park():
        live = look(h.start(_inspected()))
        coro = h.start(_inspected())
        moved = h.move(coro)
        assert look(moved) == live
        assert len(live) == 4
        assert h.finish(moved) == ([1], "local")


def test_reading_the_locals_of_a_parked_frame_does_not_keep_it_from_moving() -> None:
    with h.native_park():
        coro = h.start(_inspected())
        assert coro.cr_frame.f_locals["y"] == "local"
        coro = h.move(coro)
        assert coro.cr_frame.f_locals["x"] == [1]
        assert h.finish(h.move(coro)) == ([1], "local")


async def _sums(g: Any) -> Any:
    await h.park()
    return sum(g)


def test_renamed_coroutine_and_generator_keep_their_names() -> None:
    gen = (x for x in [1, 2])
    gen.__name__, gen.__qualname__ = "renamed", "quite.renamed"
    with h.native_park():
        coro = _sums(gen)
        coro.__name__, coro.__qualname__ = "other", "quite.other"
        del gen
        coro = h.move(h.start(coro))
        moved = coro.cr_frame.f_locals["g"]
        assert (coro.__name__, coro.__qualname__) == ("other", "quite.other")
        assert (moved.__name__, moved.__qualname__) == ("renamed", "quite.renamed")
        assert h.finish(coro) == 3


def test_origin_of_a_coroutine_is_kept_or_keeps_it_home() -> None:
    sys.set_coroutine_origin_tracking_depth(2)
    try:
        coro = continuation_bodies.one_park()
    finally:
        sys.set_coroutine_origin_tracking_depth(0)
    origin = coro.cr_origin
    assert origin
    with h.native_park():
        h.start(coro)
        with contextlib.suppress(_core.Pinned):
            coro = h.move(coro)
        assert coro.cr_origin == origin
        assert h.finish(coro, 1) == 1


async def _leaves_an_async_generator() -> Any:
    g = continuation_bodies._ticks(3)
    await anext(g)
    await h.park()
    return "left"


def test_finalizer_hook_of_async_generators_sees_an_abandoned_one_after_a_move() -> None:
    seen: list[str] = []
    former = sys.get_asyncgen_hooks()

    def first(g: Any) -> None:
        seen.append("first")

    def final(g: Any) -> None:
        seen.append("final")

    def run(moved: bool) -> list[str]:
        seen.clear()
        coro = h.start(_leaves_an_async_generator())
        _core.chain_send(coro, None)
        if moved:
            with contextlib.suppress(_core.Pinned):
                coro = h.move(coro)
        seen[:] = [s for s in seen if s == "final"]  # a move may greet the loop again
        assert h.finish(coro) == "left"
        del coro
        gc.collect()
        return [s for s in seen if s == "final"]

    sys.set_asyncgen_hooks(first, final)
    try:
        with h.native_park():
            assert run(moved=True) == run(moved=False) == ["final"]
    finally:
        sys.set_asyncgen_hooks(*former)


VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="unset")


async def _reads_a_context_variable() -> Any:
    before = VAR.get()
    await h.park()
    between = VAR.get()
    VAR.set("by the body")
    await h.park()
    return before, between, VAR.get()


def test_context_variable_of_the_resumer_is_seen_after_the_move() -> None:
    """A coroutine has no context of its own: it sees that of whoever resumes it, moved or not."""
    context = contextvars.copy_context()
    context.run(VAR.set, "outside")
    with h.native_park():
        coro = context.run(h.start, _reads_a_context_variable())
        coro = h.move(coro)
        context.run(_core.chain_send, coro, None)
        coro = h.move(coro)
        assert context.run(h.finish, coro) == ("outside", "outside", "by the body")
    assert VAR.get() == "unset"


async def _first_frame_of_many(n: int) -> int:
    total = 0
    while n:
        n -= 1
        total += 1 if await h.park() is None else 2
    return total


@EITHER_FF
def test_ten_thousand_moves_of_one_coroutine(ff: bool) -> None:
    _core.set_fast_forward(ff)
    with h.native_park():
        coro = h.start(_first_frame_of_many(10_000))
        for i in range(9_999):
            coro = h.move(coro)
            assert _core.chain_send(coro, i & 1 or None)[0] is False
        assert _core.chain_send(h.move(coro), None) == (True, 10_000 + 4_999 + 0)


def test_many_parked_chains_decoded_in_another_order() -> None:
    with h.native_park():
        blobs = []
        for i in range(200):
            coro = h.start(continuation_bodies._deep(i % 7))
            blobs.append((i % 7, _core.chain_encode(coro)))
            _core.chain_drop(coro)
            del coro
        for depth, blob in reversed(blobs):
            out = h.finish(_core.chain_decode(blob), "v")
            for _ in range(depth):
                out = out[1]
            assert out == "v"


def test_small_frame_is_a_small_blob() -> None:
    """The figure of a parked goroutine, 256 bytes in all, leaves little room for its frame."""

    async def body(a: int, b: int, c: int, name: str) -> Any:
        for _ in [a, b, c]:
            await h.park()
        return name

    with h.native_park():
        blob = _core.chain_encode(h.start(body(1000, 2000, 3000, "seventeen letters")))
    assert len(blob) <= 100, len(blob)


def test_error_text_of_encode_says_what_is_wrong_with_the_argument() -> None:
    coro = continuation_bodies.one_park()
    for wrong in (None, 3, "coroutine", continuation_bodies.one_park, coro):
        with pytest.raises((TypeError, ValueError, _core.Pinned)):
            _core.chain_encode(wrong)
    coro.close()
    with pytest.raises((TypeError, ValueError, _core.Pinned)):
        _core.chain_encode(coro)


def test_coroutine_that_is_running_cannot_be_encoded() -> None:
    seen: list[str] = []
    holder: list[Any] = []

    async def body() -> None:
        try:
            _core.chain_encode(holder[0])
        except (TypeError, ValueError, RuntimeError, _core.Pinned) as e:
            seen.append(type(e).__name__)

    holder.append(body())
    assert _core.chain_send(holder[0], None)[0] is True
    assert len(seen) == 1


def test_code_info_and_chain_frames_name_the_functions_of_the_blob() -> None:
    with h.native_park():
        coro = h.start(continuation_bodies._deep(2))
        frames = _core.chain_frames(_core.chain_encode(coro))
    text = repr(frames)
    assert text.count("_deep") >= 3
    assert os.path.basename(continuation_bodies.__file__) in text
