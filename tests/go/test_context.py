"""Go's tests of contexts: context/context_test.go.

Each runs with 0, 1, 2 and 4 processors, and where every park moves (MPGORT_MIGRATE=always).

Not ported: TestTODO, TestAllocs, TestCustomContextGoroutines and the otherContext cases (a context
is no interface here: there is one sort); what String() gives; TestWithValueChecksKey's key that
cannot be compared (all of Python's can)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

import mpgort
from mpgort import Chan, chan, context, default, go, gosched, nilchan, select, spawn
from mpgort.context import CANCELED, DEADLINE_EXCEEDED, CancelFunc, Context

Run = Callable[..., Any]
LONG = 3600.0
SHORT = 0.002


async def is_done(ctx: Context) -> bool:
    i, _ = await select(ctx.done().recv, default)
    return i == 0


async def live(*contexts: Context) -> None:
    for ctx in contexts:
        assert not await is_done(ctx), f"{ctx}: done() is closed"
        assert ctx.err() is None


async def canceled(*contexts: Context) -> None:
    for ctx in contexts:
        assert await is_done(ctx), f"{ctx}: done() blocks"
        assert ctx.err() == CANCELED


# ---- trees -----------------------------------------------------------------------------------


async def background() -> None:
    bg = context.background()
    assert bg is context.background() and bg == context.background()
    await live(bg)
    assert bg.done() is nilchan and bg.deadline() is None and bg.value("key") is None
    assert context.cause(bg) is None
    assert str(bg) == "mpgort.context.background()"


def test_background_is_never_done(run: Run) -> None:
    """Go TestBackground."""
    run(background)


async def with_cancel() -> None:
    c1, cancel = context.with_cancel(context.background())
    c2, _ = context.with_cancel(c1)
    for c in (c1, c2):
        assert c.done() != nilchan
    await live(c1, c2)
    cancel()  # propagates synchronously
    await canceled(c1, c2)


def test_a_cancel_is_seen_at_once_in_the_context_and_below(run: Run) -> None:
    """Go TestWithCancel."""
    run(with_cancel)


async def parent_finishes_child() -> None:
    parent, cancel = context.with_cancel(context.background())
    cancel_child, _stop = context.with_cancel(parent)
    value_child = context.with_value(parent, "key", "value")
    timer_child, _stop2 = context.with_timeout(value_child, LONG)
    await live(parent, cancel_child, value_child, timer_child)
    cancel()
    await canceled(parent, cancel_child, value_child, timer_child)
    late = context.with_value(parent, "key", "value")
    await canceled(late)
    assert timer_child.value("key") == "value"


def test_a_parent_finishes_its_children(run: Run) -> None:
    """Go TestParentFinishesChild. (Its look at the linkage is in tests/shm/test_context.c.)"""
    run(parent_finishes_child)


async def child_finishes_first() -> None:
    cancelable, _stop = context.with_cancel(context.background())
    for parent in (context.background(), cancelable):
        child, cancel = context.with_cancel(parent)
        await live(parent, child)
        cancel()
        await canceled(child)
        await live(parent)


def test_a_child_finishes_without_its_parent(run: Run) -> None:
    """Go TestChildFinishesFirst."""
    run(child_finishes_first)


async def canceled_parent() -> None:
    parent, cancel = context.with_cancel(context.background())
    cancel()
    c, _ = context.with_cancel(parent)
    d, _ = context.with_timeout(parent, LONG)
    e, _ = context.with_timeout(parent, -1)
    await canceled(c, d, e)


def test_a_child_of_a_canceled_parent_is_canceled_from_the_start(run: Run) -> None:
    """Go TestWithCancelCanceledParent."""
    run(canceled_parent)


# ---- deadlines -------------------------------------------------------------------------------


async def times_out(ctx: Context, not_before: float) -> None:
    await ctx.done().recv()
    assert ctx.err() == DEADLINE_EXCEEDED
    assert context.cause(ctx) == DEADLINE_EXCEEDED
    assert time.monotonic() >= not_before


async def deadlines() -> None:
    bg = context.background()
    at = time.monotonic() + SHORT
    c, _ = context.with_deadline(bg, at)
    d = c.deadline()
    assert d is not None and abs(d - at) < 1e-6
    await times_out(c, at)
    at = time.monotonic() + SHORT
    c, _ = context.with_deadline(bg, at)
    child, _ = context.with_deadline(c, at + LONG)
    assert child.deadline() == c.deadline(), "a parent's earlier deadline wins"
    await times_out(child, at)
    c, _ = context.with_timeout(bg, LONG)
    at = time.monotonic() + SHORT
    child, _ = context.with_timeout(c, SHORT)
    await times_out(child, at)
    await live(c)
    for past in (time.monotonic() - SHORT, time.monotonic(), -5.0, 0.0):
        c, _ = context.with_deadline(bg, past)
        assert await is_done(c) and c.err() == DEADLINE_EXCEEDED
    c, _ = context.with_timeout(bg, 0)
    assert await is_done(c) and c.err() == DEADLINE_EXCEEDED
    for never in (math.inf, 1e300):
        c, _ = context.with_timeout(bg, never)
        assert c.deadline() is None
        c, _ = context.with_deadline(bg, never)
        assert c.deadline() is None


def test_deadlines_end_contexts_not_before_their_time(run: Run) -> None:
    """Go TestDeadline, TestTimeout."""
    run(deadlines)


async def canceled_timeout() -> None:
    c, _ = context.with_timeout(context.background(), LONG)
    c, cancel = context.with_timeout(c, LONG)
    cancel()  # propagates synchronously
    await canceled(c)
    c, cancel = context.with_timeout(context.background(), SHORT)
    await c.done().recv()
    cancel(ValueError("too late"))
    assert c.err() == DEADLINE_EXCEEDED == context.cause(c)


def test_what_comes_first_counts_cancel_or_deadline(run: Run) -> None:
    """Go TestCanceledTimeout."""
    run(canceled_timeout)


# ---- values ----------------------------------------------------------------------------------


async def values() -> None:
    bg = context.background()
    c1 = context.with_value(bg, "k1", "c1k1")
    c2 = context.with_value(c1, ("k", 2), ["c2k2"])
    c3 = context.with_value(c2, 3, {"c3": 3})
    c4 = context.with_value(c3, "k1", None)
    keys = ("k1", ("k", 2), 3)
    assert [[c.value(k) for k in keys] for c in (bg, c1, c2, c3, c4)] == [
        [None, None, None],
        ["c1k1", None, None],
        ["c1k1", ["c2k2"], None],
        ["c1k1", ["c2k2"], {"c3": 3}],
        [None, ["c2k2"], {"c3": 3}],
    ]
    o, cancel = context.with_cancel(c3)
    o = context.with_value(o, "k1", "o")
    assert [o.value(k) for k in keys] == ["o", ["c2k2"], {"c3": 3}]
    await live(c1, c4, o)
    cancel()
    await canceled(o)
    await live(c3)


def test_values_are_found_from_the_nearest_context_up(run: Run) -> None:
    """Go TestValues."""
    run(values)


async def layers(seed: int, timeout: bool) -> None:
    r = random.Random(seed)
    vals: list[int] = []
    cancels: list[CancelFunc] = []
    timers = 0
    ctx = context.background()
    i = 0
    while i < 30 or not timers or not cancels or not vals:
        i += 1
        kind = r.randrange(3)
        if kind == 0:
            vals.append(i)
            ctx = context.with_value(ctx, i, [i])
        elif kind == 1:
            ctx, cancel = context.with_cancel(ctx)
            cancels.append(cancel)
        else:
            ctx, cancel = context.with_timeout(ctx, SHORT if timeout else LONG)
            cancels.append(cancel)
            timers += 1
    assert all(ctx.value(k) == [k] for k in vals)
    if timeout:
        await ctx.done().recv()
        assert ctx.err() == DEADLINE_EXCEEDED
    else:
        await live(ctx)
        r.choice(cancels)()
        await canceled(ctx)
    assert all(ctx.value(k) == [k] for k in vals)


@pytest.mark.parametrize("timeout", [False, True])
def test_many_layers_of_contexts(run: Run, timeout: bool) -> None:
    """Go TestLayersCancel, TestLayersTimeout."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    run(layers, seed, timeout)


# ---- many at once ----------------------------------------------------------------------------


async def call(cancel: CancelFunc) -> None:
    cancel()


async def simultaneous(seed: int) -> int:
    r = random.Random(seed)
    root, cancel = context.with_cancel(context.background())
    made = [(root, cancel)]
    queue = [root]
    while len(made) < 100:
        parent = queue.pop(0)
        for _ in range(4):
            ctx, cancel = context.with_cancel(parent)
            made.append((ctx, cancel))
            queue.append(ctx)
    r.shuffle(made)
    handles = [spawn(call, cancel) for _, cancel in made]
    r.shuffle(made)
    for ctx, _ in made:
        await ctx.done().recv()
        assert ctx.err() == CANCELED
    for h in handles:
        await h
    return len(made)


def test_all_of_a_tree_canceled_at_once_in_any_order(run: Run) -> None:
    """Go TestSimultaneousCancels."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    assert run(simultaneous, seed) == 101


async def cancel_after(parent: Context, cancel: CancelFunc) -> None:
    await parent.done().recv()
    cancel()


async def interlocked() -> None:
    parent, cancel_parent = context.with_cancel(context.background())
    child, cancel_child = context.with_cancel(parent)
    h = spawn(cancel_after, parent, cancel_child)
    cancel_parent()
    await child.done().recv()
    await h


def test_a_child_canceled_because_its_parent_is(run: Run) -> None:
    """Go TestInterlockedCancels."""
    run(interlocked)


async def watch(parent: Context, child: Context, out: Chan[object]) -> None:
    while parent.err() is None:
        await gosched()
    await out.send((child.err() == CANCELED, await is_done(child), await is_done(parent)))


async def children_first(n: int) -> list[object]:
    got = []
    for _ in range(n):
        parent, cancel = context.with_cancel(context.background())
        at = parent
        for _ in range(10):
            at, _ = context.with_cancel(context.with_value(at, 1, 2))
        out: Chan[object] = chan()
        go(watch, parent, at, out)
        await gosched()
        cancel()
        got.append(await out.recv())
    return got


def test_who_sees_a_parent_canceled_sees_its_children_canceled(run: Run) -> None:
    """Stricter than Go, where a child may be live for a moment longer than its parent."""
    assert run(children_first, 30) == [(True, True, True)] * 30


# ---- errors and causes -----------------------------------------------------------------------


class Reason(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


async def cause_there(ctx: Context, back: Chan[Any]) -> None:
    await ctx.done().recv()
    await back.send((context.cause(ctx), ctx.err(), ctx))


async def causes() -> None:
    ctx, cancel = context.with_cancel(context.background())
    child, cancel_child = context.with_cancel(ctx)
    back: Chan[Any] = chan()
    for c in (ctx, child):
        go(cause_there, c, back)
    cancel(Reason(7))
    cancel(Reason(8))
    cancel_child(Reason(9))
    for _ in range(2):
        cause, err, c = await back.recv()
        assert type(cause) is Reason and cause.code == 7
        assert err == CANCELED and c in (ctx, child)
    late, _ = context.with_timeout(child, LONG)
    got = context.cause(late)
    assert isinstance(got, Reason) and got.code == 7
    plain, cancel = context.with_cancel(context.background())
    assert context.cause(plain) is None
    cancel()
    assert context.cause(plain) == CANCELED


def test_the_first_cause_is_that_of_all_below(run: Run) -> None:
    """Go TestCause of 1.20, in part."""
    run(causes)


async def raises(ctx: Context) -> None:
    err = ctx.err()
    if err:
        raise err


async def raise_there(seconds: float) -> None:
    ctx, cancel = context.with_timeout(context.background(), seconds)
    if seconds > 1:
        cancel()
    await spawn(raises, ctx)


@pytest.mark.parametrize("procs", [0, 1, 2])
def test_errors_can_be_raised_and_caught_anywhere(procs: int) -> None:
    with pytest.raises(context.Canceled, match="^context canceled$") as e:
        mpgort.run(raise_there, LONG, procs=procs)
    assert e.value == CANCELED != DEADLINE_EXCEEDED
    with pytest.raises(TimeoutError, match="^context deadline exceeded$") as f:
        mpgort.run(raise_there, 0, procs=procs)
    assert f.value == DEADLINE_EXCEEDED
    assert {CANCELED, context.Canceled()} == {CANCELED}
    assert str(CANCELED) == "context canceled"
    assert str(DEADLINE_EXCEEDED) == "context deadline exceeded"


async def misuse() -> list[str]:
    bg = context.background()
    said = []
    nil: Any = None
    for bad in (
        lambda: context.with_cancel(nil),
        lambda: context.with_deadline(nil, 1),
        lambda: context.with_timeout(nil, 1),
        lambda: context.with_value(nil, "k", 1),
        lambda: context.with_value(bg, nil, 1),
        lambda: context.with_cancel(bg.done()),  # type: ignore[arg-type]
        lambda: context.cause(nil),
        lambda: context.with_cancel(bg)[1]("why"),  # type: ignore[arg-type]
        lambda: context.with_timeout(bg, math.nan),
        lambda: context.with_deadline(bg, math.nan),
        lambda: context.with_value(bg, "k", open("/dev/null")),
        lambda: context.with_value(bg, open("/dev/null"), 1),
    ):
        try:
            bad()  # type: ignore[no-untyped-call]
        except (TypeError, ValueError) as e:
            said.append(f"{type(e).__name__}: {e}")
    return said


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_misuse_is_an_error_at_the_call_that_names_the_culprit() -> None:
    """Go TestInvalidDerivedFail, TestWithValueChecksKey."""
    said = mpgort.run(misuse, procs=0)
    nil = "cannot create context from nil parent: begin with context.background()"
    assert said[:10] == [
        f"TypeError: with_cancel: {nil}",
        f"TypeError: with_deadline: {nil}",
        f"TypeError: with_timeout: {nil}",
        f"TypeError: with_value: {nil}",
        "TypeError: with_value: nil key: None cannot be one",
        "TypeError: with_cancel: a context is needed, not mpgort.Chan",
        "TypeError: cause: a context is needed, not NoneType",
        "TypeError: cancel: a cause is an exception, not str",
        "ValueError: with_timeout: a number of seconds is needed, not nan",
        "ValueError: with_deadline: a time of time.monotonic() is needed, not nan",
    ]
    assert len(said) == 12 and all("SerializationError" in s for s in said[10:])


# ---- handles ---------------------------------------------------------------------------------


async def tell(ctx: Context, cancel: CancelFunc, back: Chan[Any]) -> None:
    await back.send((ctx, cancel, hash(ctx), ctx.done(), context.background()))


async def across() -> None:
    ctx, cancel = context.with_cancel(context.with_value(context.background(), 1, 2))
    assert ctx != cancel and cancel != ctx
    back: Chan[Any] = chan()
    for _ in range(3):
        go(tell, ctx, cancel, back)
    for _ in range(3):
        other, cancel2, h, done, bg = await back.recv()
        assert other == ctx and cancel2 == cancel and h == hash(ctx) and done == ctx.done()
        assert bg is context.background()
        assert other.value(1) == 2
    cancel2()
    await canceled(ctx, other)


def test_a_context_is_the_same_in_every_process(run: Run) -> None:
    run(across)


async def abandoned() -> None:
    root, _ = context.with_cancel(context.background())
    for _ in range(50):
        context.with_timeout(root, LONG)
        context.with_value(context.with_timeout(context.background(), LONG)[0], 1, 2)
    await chan().recv()


@pytest.mark.parametrize("procs", [0, 1, 2])
def test_contexts_nobody_can_reach_do_not_hide_a_deadlock(procs: int) -> None:
    with pytest.raises(mpgort.Deadlock):
        mpgort.run(abandoned, procs=procs)


async def recv_ok(done: Chan[None]) -> tuple[Any, bool]:
    pair: tuple[Any, bool] = await done.recv_ok()
    return pair


def done_only(parent: context.Context, seconds: float) -> Chan[None]:
    below = context.with_cancel(context.with_timeout(parent, seconds)[0])[0]
    return context.with_value(below, "key", "value").done()


async def who_knows_the_channel_only() -> list[Any]:
    root, cancel = context.with_cancel(context.background())
    ended = [await recv_ok(done_only(root, 0.01)), await spawn(recv_ok, done_only(root, 0.01))]
    waiting = spawn(recv_ok, done_only(root, LONG))
    while waiting.status() != "chan receive":
        await gosched()
    cancel()
    return [*ended, await waiting]


def test_a_channel_is_closed_at_its_contexts_end_whoever_still_has_the_context(run: Run) -> None:
    """In Go its parent and its timer hold a context; here its channel does."""
    assert run(who_knows_the_channel_only) == [(None, False)] * 3


async def abandoned_channels() -> None:
    root, _ = context.with_cancel(context.background())
    for _ in range(50):
        done_only(root, LONG)
        assert root.done() == root.done()
    await chan().recv()


@pytest.mark.parametrize("procs", [0, 1, 2])
def test_channels_of_contexts_nobody_waits_on_do_not_hide_a_deadlock(procs: int) -> None:
    with pytest.raises(mpgort.Deadlock):
        mpgort.run(abandoned_channels, procs=procs)


async def canceled_leaves_no_timer() -> None:
    root, cancel = context.with_cancel(context.background())
    kids = [context.with_timeout(root, LONG)[0] for _ in range(5)]
    cancel()
    await chan().recv()
    print(kids)


@pytest.mark.parametrize("procs", [0, 1, 2])
def test_a_canceled_deadline_does_not_hide_a_deadlock(procs: int) -> None:
    with pytest.raises(mpgort.Deadlock):
        mpgort.run(canceled_leaves_no_timer, procs=procs)
