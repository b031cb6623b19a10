"""Group: asyncio.TaskGroup's rules, on goroutines that live on any process.

Sources: CPython Lib/test/test_asyncio/test_taskgroups.py (named at each port); x/sync errgroup."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from goroutines import until

import mpgort
from mpgort import Cancelled, Chan, Goroutine, Group, chan, go, goexit, gosched, sleep, spawn


async def value(x: Any, parks: int = 3) -> Any:
    for _ in range(parks):
        await gosched()
    return x


async def fail(text: str, parks: int = 3) -> None:
    for _ in range(parks):
        await gosched()
    raise ValueError(text)


async def wait_for_ever(log: Chan | None = None, name: str = "") -> None:
    try:
        await chan().recv()
    except Cancelled:
        if log is not None:
            await log.send(name)
        raise


def names(e: BaseExceptionGroup) -> list[str]:
    return [f"{type(x).__name__}: {x}" for x in e.exceptions]


# ---- the block -------------------------------------------------------------------------------


async def all_end() -> tuple[list[int], list[bool], str]:
    async with Group() as g:
        handles = [g.spawn(value, i, i % 4) for i in range(20)]
    return [await h for h in handles], [h.done() for h in handles], repr(g)


def test_the_block_ends_when_all_have_ended(procs: int) -> None:
    """test_taskgroup_01."""
    values, done, text = mpgort.run(all_end, procs=procs)
    assert values == list(range(20)) and all(done)
    assert text == "<mpgort.Group finished, 0 goroutines>"


async def empty() -> str:
    async with Group():
        pass
    return "left"


def test_an_empty_block_ends_at_once(procs: int) -> None:
    assert mpgort.run(empty, procs=procs) == "left"


async def first_failure(log: Chan) -> tuple[list[str], list[str]]:
    try:
        async with Group() as g:
            stays = [g.spawn(wait_for_ever, log, f"w{i}") for i in range(5)]
            await until(lambda: all(h.status() == "chan receive" for h in stays))
            g.spawn(fail, "first")
    except* ValueError as e:
        caught = names(e)
    return caught, [h.status() for h in stays]


async def first_failure_main() -> tuple[Any, Any, int]:
    log = chan(10)
    caught, states = await first_failure(log)
    return caught, states, len(log)


def test_the_first_failure_cancels_the_others_and_is_raised_in_a_group(procs: int) -> None:
    """test_taskgroup_02, _03."""
    caught, states, told = mpgort.run(first_failure_main, procs=procs)
    assert caught == ["ValueError: first"]
    assert states == ["cancelled"] * 5 and told == 5


async def body_is_interrupted() -> list[str]:
    seen = []
    try:
        async with Group() as g:
            g.spawn(fail, "child")
            try:
                await chan().recv()
            except Cancelled:
                seen.append("body cancelled")
                raise
    except ExceptionGroup as e:
        seen += names(e)
    await sleep(0)  # the parent itself is not cancelled any more
    seen.append("on")
    return seen


def test_a_failure_cancels_the_body_and_only_the_body(procs: int) -> None:
    """test_taskgroup_04, _05."""
    expected = ["body cancelled", "ValueError: child", "on"]
    assert mpgort.run(body_is_interrupted, procs=procs) == expected


async def in_a_child(fn: Callable[[], Any]) -> Any:
    return await spawn(fn)


@pytest.mark.parametrize("fn", [body_is_interrupted, all_end])
def test_a_block_in_a_goroutine_that_moves(fn: Callable[[], Any], procs: int) -> None:
    assert mpgort.run(in_a_child, fn, procs=procs) == mpgort.run(fn, procs=procs)


async def started_by_go(out: Chan) -> None:
    await out.send(await body_is_interrupted())


async def in_go() -> Any:
    out = chan()
    go(started_by_go, out)
    return await out.recv()


def test_a_goroutine_started_by_go_can_have_a_group(procs: int) -> None:
    assert mpgort.run(in_go, procs=procs) == ["body cancelled", "ValueError: child", "on"]


async def body_fails() -> tuple[list[str], str, str]:
    try:
        async with Group() as g:
            h = g.spawn(wait_for_ever)
            raise KeyError("body")
    except ExceptionGroup as e:
        return names(e), h.status(), repr(e.__context__)
    return [], "", ""


def test_an_exception_of_the_body_cancels_the_children(procs: int) -> None:
    """test_taskgroup_07."""
    caught, state, context = mpgort.run(body_fails, procs=procs)
    assert caught == ["KeyError: 'body'"]
    assert state == "cancelled" and context == "KeyError('body')"


async def fails_in_cancel() -> None:
    try:
        await chan().recv()
    finally:
        raise OSError("while it was cancelled")


async def several() -> list[str]:
    try:
        async with Group() as g:
            h = g.spawn(fails_in_cancel)
            await until(lambda: h.status() == "chan receive")
            g.spawn(fail, "first")
            await chan().recv()
    except ExceptionGroup as e:
        return names(e)
    return []


def test_failures_come_in_the_order_in_which_they_happened(procs: int) -> None:
    """test_taskgroup_08."""
    expected = ["ValueError: first", "OSError: while it was cancelled"]
    assert mpgort.run(several, procs=procs) == expected


async def cancelled_child_is_no_failure() -> list[Any]:
    async with Group() as g:
        a = g.spawn(wait_for_ever)
        b = g.spawn(value, "b", 20)
        await until(lambda: a.status() == "chan receive")
        a.cancel()
    return [a.status(), await b]


def test_a_child_that_is_cancelled_is_no_failure(procs: int) -> None:
    """test_taskgroup_15 and following."""
    assert mpgort.run(cancelled_child_is_no_failure, procs=procs) == ["cancelled", "b"]


# ---- cancel from outside ---------------------------------------------------------------------


async def block(log: Chan, body_waits: bool) -> None:
    try:
        async with Group() as g:
            h = g.spawn(wait_for_ever, log, "child")
            await until(lambda: h.status() == "chan receive")
            if body_waits:
                await chan().recv()
    except Cancelled:
        await log.send("parent")
        raise


async def outer_cancel(body_waits: bool) -> tuple[str, list[str]]:
    log = chan(5)
    h = spawn(block, log, body_waits)
    await until(lambda: h.status() == ("chan receive" if body_waits else "group wait"))
    h.cancel()
    try:
        await h
    except Cancelled:
        pass
    return h.status(), [await log.recv(), await log.recv()]


@pytest.mark.parametrize("body_waits", [True, False], ids=["in the body", "at the end"])
def test_a_cancel_of_the_parent_cancels_the_children_and_is_raised_on(
    procs: int, body_waits: bool
) -> None:
    """test_taskgroup_09, _10, _12."""
    state, log = mpgort.run(outer_cancel, body_waits, procs=procs)
    assert state == "cancelled"
    assert log == ["child", "parent"] or body_waits and sorted(log) == ["child", "parent"]


async def caught_before() -> list[str]:
    """A goroutine that has caught a cancel once is not haunted by it."""
    seen = []
    try:
        await chan().recv()
    except Cancelled:
        seen.append("caught")
    seen += await body_is_interrupted()
    return seen


async def caught_before_main() -> Any:
    h = spawn(caught_before)
    await until(lambda: h.status() == "chan receive")
    h.cancel()
    return await h


def test_a_cancel_caught_before_the_block_does_not_count(procs: int) -> None:
    expected = ["caught", "body cancelled", "ValueError: child", "on"]
    assert mpgort.run(caught_before_main, procs=procs) == expected


async def nested(inner_fails: bool) -> list[str]:
    seen = []
    try:
        async with Group() as outer:
            w = outer.spawn(wait_for_ever)
            try:
                async with Group() as inner:
                    inner.spawn(wait_for_ever)
                    (inner if inner_fails else outer).spawn(fail, "deep")
            except ExceptionGroup as e:
                seen += ["inner", *names(e)]
                w.cancel()
            except Cancelled:
                seen.append("inner cancelled")
                raise
            await sleep(0)
    except ExceptionGroup as e:
        seen += ["outer", *names(e)]
    return seen


def test_nested_groups_each_end_what_is_theirs(procs: int) -> None:
    """test_taskgroup_11, _13, _14."""
    assert mpgort.run(nested, True, procs=procs) == ["inner", "ValueError: deep"]
    expected = ["inner cancelled", "outer", "ValueError: deep"]
    assert mpgort.run(nested, False, procs=procs) == expected


# ---- what is not gathered --------------------------------------------------------------------


async def exits() -> None:
    await gosched()
    raise SystemExit(7)


async def system_exit() -> str:
    try:
        async with Group() as g:
            g.spawn(wait_for_ever)
            g.spawn(exits)
            await chan().recv()
    except SystemExit as e:
        return f"exit {e.code}"
    except BaseException as e:
        return repr(e)
    return ""


def test_system_exit_of_a_child_is_raised_as_itself(procs: int) -> None:
    """test_taskgroup_20a, _21."""
    assert mpgort.run(system_exit, procs=procs) == "exit 7"


async def interrupted_body() -> str:
    try:
        async with Group() as g:
            h = g.spawn(wait_for_ever)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return h.status()


def test_keyboard_interrupt_of_the_body_is_raised_as_itself(procs: int) -> None:
    """test_taskgroup_20."""
    assert mpgort.run(interrupted_body, procs=procs) == "cancelled"


async def leaves_by_goexit() -> None:
    async with Group() as g:
        g.spawn(wait_for_ever)
        goexit()


async def goexit_in_a_block() -> Any:
    return await spawn(leaves_by_goexit)


def test_goexit_in_the_body_cancels_the_children_and_is_no_exception(procs: int) -> None:
    assert mpgort.run(goexit_in_a_block, procs=procs) is None


# ---- spawn -----------------------------------------------------------------------------------


async def misuse() -> list[str]:
    seen = []
    g = Group()

    def tries() -> None:
        try:
            g.spawn(value, 1)
        except RuntimeError as e:
            seen.append(str(e))

    tries()
    try:
        async with g:
            g.spawn(fail, "x", 0)
            try:
                await chan().recv()
            finally:
                tries()
    except ExceptionGroup:
        pass
    async with Group() as h:
        pass
    g = h
    tries()
    try:
        async with h:
            pass
    except RuntimeError as e:
        seen.append(str(e))
    return seen


def test_spawn_outside_the_block_says_why_not(procs: int) -> None:
    assert mpgort.run(misuse, procs=procs) == [
        "this Group has not been entered: use it in `async with`",
        "this Group is shutting down",
        "this Group is finished",
        "this Group has been entered already",
    ]


async def spawns_more(g: Group, depth: int, out: Chan) -> None:
    await out.send(os.getpid())
    if depth:
        for _ in range(2):
            g.spawn(spawns_more, g, depth - 1, out)


async def tree() -> tuple[int, int]:
    out = chan(1000)
    async with Group() as g:
        g.spawn(spawns_more, g, 6, out)
    out.close()
    pids = [pid async for pid in out]
    return len(pids), len(set(pids))


def test_a_group_can_be_sent_and_spawned_into_from_any_process(procs: int) -> None:
    n, _ = mpgort.run(tree, procs=procs)
    assert n == 2**7 - 1


async def counts(now: Chan, most: Chan, parks: int) -> None:
    await now.send(1)  # capacity is the limit: a child too many would park here
    await most.send(len(now))
    for _ in range(parks):
        await gosched()
    await now.recv()


async def limited(limit: int, n: int) -> tuple[int, int, float]:
    now, most = chan(n), chan(n)
    start = time.monotonic()
    async with Group(limit=limit) as g:
        handles = [g.spawn(counts, now, most, i % 5) for i in range(n)]
        queued = time.monotonic() - start
    most.close()
    seen = [m async for m in most]
    assert all(h.done() for h in handles)
    return len(seen), max(seen), queued


async def in_order(n: int) -> list[int]:
    out = chan(n)
    async with Group(limit=1) as g:
        for i in range(n):
            g.spawn(out.send, i)
    return [await out.recv() for _ in range(n)]


def test_queued_children_start_in_the_order_of_the_spawns(procs: int) -> None:
    assert mpgort.run(in_order, 50, procs=procs) == list(range(50))


def test_no_more_than_limit_children_run_and_spawn_never_blocks(procs: int) -> None:
    """errgroup TestGoLimit."""
    n, most, _ = mpgort.run(limited, 3, 100, procs=procs)
    assert n == 100 and most <= 3


async def at_limit(ran: Chan, gate: Chan) -> None:
    await ran.send(1)
    await gate.recv()
    raise ValueError("first")


async def abort_with_queue() -> tuple[list[str], list[str], int]:
    ran, gate = chan(10), chan()
    try:
        async with Group(limit=1) as g:
            first = g.spawn(at_limit, ran, gate)
            rest = [g.spawn(at_limit, ran, gate) for _ in range(5)]
            await until(lambda: first.status() == "chan receive")
            await until(lambda: all(h.status() == "group limit" for h in rest))
            rest[2].cancel()
            await until(lambda: rest[2].done())
            go(gate.send, None)
            await chan().recv()
    except ExceptionGroup as e:
        return names(e), [h.status() for h in rest], len(ran)
    return [], [], 0


def test_queued_children_that_are_cancelled_never_run(procs: int) -> None:
    caught, states, ran = mpgort.run(abort_with_queue, procs=procs)
    assert caught == ["ValueError: first"]
    assert states == ["cancelled"] * 5 and ran == 1


def test_a_limit_is_a_positive_number() -> None:
    async def main(limit: Any) -> str:
        try:
            Group(limit)
        except (ValueError, TypeError) as e:
            return str(e)
        return ""

    for limit in (0, -1, 1 << 40):
        assert "give 1 or more, or None" in mpgort.run(main, limit, procs=0)
    assert "integer" in mpgort.run(main, "3", procs=0)
    with pytest.raises(RuntimeError, match="outside a goroutine"):
        Group()


# ---- under load ------------------------------------------------------------------------------


async def round_of(i: int) -> int:
    try:
        async with Group(limit=(None, 2, 5)[i % 3]) as g:
            for k in range(8):
                g.spawn(value, k, (i + k) % 3)
            if i % 2:
                g.spawn(fail, "x", i % 4)
            await value(None, i % 5)
    except ExceptionGroup as e:
        return len(e.exceptions)
    return 0


async def many(n: int) -> list[int]:
    handles = [spawn(round_of, i) for i in range(n)]
    return [await h for h in handles]


def test_many_groups_at_once_lose_no_child_and_no_failure(procs: int) -> None:
    assert mpgort.run(many, 100, procs=procs) == [i % 2 for i in range(100)]


async def handles_of_the_group(g: Group) -> Goroutine:
    return g.spawn(value, "by a stranger")


async def foreign_spawn() -> Any:
    async with Group() as g:
        h = await spawn(handles_of_the_group, g)
    return await h


def test_a_goroutine_outside_the_group_may_spawn_into_it(procs: int) -> None:
    assert mpgort.run(foreign_spawn, procs=procs) == "by a stranger"
