"""Which cases of a select wait, which are ready, which fail, what is no case: Go's select3.go and
closedchan.go of test/chan, and what this select adds. The rest of Go's is in test_select.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from goroutines import parked

import mpgort
from mpgort import (
    Chan,
    ChanError,
    chan,
    default,
    go,
    gosched,
    nilchan,
    select,
    spawn,
)

Run = Callable[..., Any]


# ---- what waits, what does not, what fails ---------------------------------------------------


async def closed(cap: int = 0, *values: int) -> Chan[int]:
    c = chan(cap)
    for v in values:
        await c.send(v)
    c.close()
    return c


async def full(cap: int) -> Chan[int]:
    c = chan(cap)
    for i in range(cap):
        await c.send(i)
    return c


async def nil_send() -> None:
    await nilchan.send(7)


async def nil_recv() -> None:
    await nilchan.recv()


async def unready_recv() -> None:
    await chan().recv()


async def no_cases() -> None:
    await select()


async def only_nil_recv() -> None:
    await select(nilchan.recv)


async def only_nil_send() -> None:
    await select((nilchan.send, 7))


async def both_nil() -> None:
    await select(nilchan.recv, (nilchan.send, 7))


async def unready_select() -> None:
    await select(chan().recv)


async def full_select() -> None:
    await select(((await full(1)).send, 7))


async def sees_itself() -> None:
    c = chan()
    await select((c.send, 1), c.recv)


BLOCKS = {
    nil_send: "chan send (nil chan)",
    nil_recv: "chan receive (nil chan)",
    unready_recv: "chan receive",
    no_cases: "select (no cases)",
    only_nil_recv: "select",
    only_nil_send: "select",
    both_nil: "select",
    unready_select: "select",
    full_select: "select",
    sees_itself: "select",
}


async def blocks(fn: Callable[[], Awaitable[None]]) -> str:
    """Its wait reason once nothing else can run."""
    h = spawn(fn)
    while h.status() in ("runnable", "running"):
        await gosched()
    for _ in range(20):
        await gosched()
    return h.status()


@pytest.mark.parametrize("fn", BLOCKS, ids=lambda f: f.__name__)
def test_waits(run: Run, fn: Callable[[], Awaitable[None]]) -> None:
    """Go test/chan/select3.go, what always blocks. Stricter: for the right reason."""
    assert run(blocks, fn) == BLOCKS[fn]


async def does_not_block() -> list[Any]:
    c = await closed()
    one, room = await full(1), chan(1)
    return [
        await select((nilchan.send, 7), default),
        await select(nilchan.recv, default),
        await select(default),
        await select((room.send, 7), default),
        await select(default, one.recv),
        await select(default, (room.send, 8)),
        await select(c.recv),
        await select(c.recv_ok),
        await select(c.recv, default),
        await select(room.recv_ok),
    ]


def test_a_ready_case_or_default_never_waits(run: Run) -> None:
    """Go test/chan/select3.go, what never blocks."""
    assert run(does_not_block) == [
        (1, None),
        (1, None),
        (0, None),
        (0, None),
        (1, 0),
        (0, None),
        (0, None),
        (0, (None, False)),
        (0, None),
        (0, (7, True)),
    ]


async def fails(style: str) -> str:
    c = await closed()
    try:
        if style == "plain":
            await c.send(7)
        elif style == "select":
            await select((c.send, 7))
        elif style == "default":
            await select(default, (c.send, 7))
        else:
            await select((c.send, 7), nilchan.recv, chan().recv)
    except ChanError as e:
        return str(e)
    return "sent"


@pytest.mark.parametrize("style", ["plain", "select", "default", "big"])
def test_sending_on_a_closed_channel_fails_in_every_form(run: Run, style: str) -> None:
    """Go test/chan/select3.go and test/closedchan.go."""
    assert run(fails, style) == "send on closed channel"


Op = Callable[[Chan[int]], Awaitable[tuple[Any, bool, bool]]]  # value, ok, chosen


async def op_plain(c: Chan[int]) -> tuple[Any, bool, bool]:
    return (*await c.recv_ok(), True)


async def op_select(c: Chan[int]) -> tuple[Any, bool, bool]:
    _, (v, ok) = await select(c.recv_ok)
    return v, ok, True


async def op_default(c: Chan[int]) -> tuple[Any, bool, bool]:
    i, pair = await select(default, c.recv_ok)
    return (*pair, True) if i == 1 else (None, False, False)


async def op_big(c: Chan[int]) -> tuple[Any, bool, bool]:
    i, pair = await select(chan().recv, default, c.recv_ok)
    return (*pair, True) if i == 2 else (None, False, False)


async def drained(values: int, first: Op, then: Op) -> list[Any]:
    c = await closed(2, *range(1, values + 1))
    return [await first(c)] + [await then(c) for _ in range(3)]


@pytest.mark.parametrize("values", [0, 1])
@pytest.mark.parametrize("first", [op_plain, op_select, op_default, op_big])
def test_a_closed_channel_is_drained_alike_by_every_form_of_receive(
    run: Run, values: int, first: Op
) -> None:
    """Go test/closedchan.go, sync and buffered, all styles."""
    end = (None, False, True)
    start = (1, True, True) if values else end
    for then in (op_plain, op_select, op_default, op_big):
        assert run(drained, values, first, then) == [start, end, end, end]


async def close_under_selects(n: int) -> list[Any]:
    c, handles = chan(), []
    for k in range(n):
        cases = [c.recv_ok, chan().recv] if k % 2 else [chan().recv, c.recv]
        handles.append(spawn(select, *cases))
    await parked("select", *handles)
    c.close()
    return [await h for h in handles]


def test_close_wakes_every_select_that_receives(run: Run) -> None:
    assert run(close_under_selects, 40) == [(1, None), (0, (None, False))] * 20


async def close_under_sends(n: int) -> list[str]:
    c = chan()
    handles = [spawn(select, (c.send, k), chan().recv) for k in range(n)]
    await parked("select", *handles)
    c.close()
    texts = []
    for h in handles:
        try:
            await h
        except ChanError as e:
            texts.append(str(e))
    return texts


def test_close_fails_every_select_that_sends(run: Run) -> None:
    assert run(close_under_sends, 20) == ["send on closed channel"] * 20


# ---- what this select adds -------------------------------------------------------------------


async def cancelled_selects(n: int) -> tuple[int, int]:
    c, d = chan(), chan()
    handles = [spawn(select, c.recv, (d.send, [k] * 20)) for k in range(n)]
    await parked("select", *handles)
    ended = 0
    for h in handles[::2]:
        h.cancel()
    for h in handles[::2]:
        try:
            await h
        except mpgort.Cancelled:
            ended += 1
    values = [await d.recv() for _ in handles[1::2]]
    for h in handles[1::2]:
        await h
    return ended, sum(v[0] for v in values)


def test_a_cancelled_select_leaves_the_queues_of_all_its_channels(run: Run) -> None:
    assert run(cancelled_selects, 20) == (10, sum(range(1, 20, 2)))


async def max_cases(n: int) -> list[Any]:
    c = chan()
    c.close()
    first = await select(*[c.recv] * n)
    second = await select(*[c.recv_ok] * n, default)
    try:
        select(*[c.recv] * (n + 1))
    except ValueError as e:
        return [first[1], second[1], str(e)]
    return []


@pytest.mark.parametrize("procs", [0, 1])
def test_a_select_has_up_to_65536_cases(procs: int) -> None:
    """Go reflect/all_test.go TestSelectMaxCases."""
    *values, text = mpgort.run(max_cases, 65536, procs=procs)
    assert values == [None, (None, False)]
    assert "65537 cases, at most 65536" in text


async def sends(c: Chan[Any], v: Any) -> None:
    await c.send(v)


async def receives(c: Chan[Any]) -> Any:
    return await c.recv()


async def wide(n: int) -> tuple[bool, bool, int]:
    """One select over n channels, again and again: half of them receive, half send."""
    ins, outs = [chan() for _ in range(n)], [chan() for _ in range(n)]
    readers = [spawn(receives, c) for c in outs]
    await parked("chan receive", *readers)
    for i, c in enumerate(ins):
        go(sends, c, i)
    got, left = set(), set(range(n))
    for _ in range(2 * n):
        cases = [c.recv for c in ins] + [(outs[i].send, [i]) for i in sorted(left)]
        i, v = await select(*cases)
        if i < n:
            assert v == i
            got.add(v)
        else:
            left.discard(sorted(left)[i - n])
    read = [await h for h in readers]
    h = spawn(select, *(c.recv for c in ins), *((c.send, 1) for c in outs))
    await parked("select", h)
    await ins[n // 2].send("x")
    winner, _ = await h
    return got == set(range(n)), read == [[i] for i in range(n)], winner


def test_a_select_over_hundreds_of_channels_does_each_once(run: Run) -> None:
    n = 100
    assert run(wide, n) == (True, True, n // 2)


async def wide_cancelled(n: int) -> int:
    """Selects of many cases on the same channels, cancelled and closed while others wait."""
    chans = [chan() for _ in range(n)]
    hs = [spawn(select, *(c.recv for c in chans[k:] + chans[:k])) for k in range(8)]
    await parked("select", *hs)
    for h in hs[::2]:
        h.cancel()
    for c in chans:
        c.close()
    ended = 0
    for h in hs:
        try:
            await h
        except mpgort.Cancelled:
            ended += 1
    return ended


def test_selects_over_the_same_hundreds_of_channels_can_be_cancelled(run: Run) -> None:
    assert run(wide_cancelled, 200) == 4


async def kept(x: Any, c: Chan[Any]) -> tuple[bool, Any]:
    await gosched()
    return x is default, await select(x, c.recv)


async def default_crosses() -> Any:
    c = chan(1)
    await c.send([nilchan, default])
    value = await c.recv()
    await c.send(value)  # nobody receives it: it is freed with the channel
    return value[0] is nilchan, value[1] is default, await spawn(kept, default, chan())


def test_default_and_nilchan_are_the_same_objects_everywhere(run: Run) -> None:
    assert run(default_crosses) == (True, True, (True, (0, None)))


async def unsendable() -> str:
    try:
        await select(chan().recv, (chan(1).send, {"conn": open("/dev/null")}))
    except mpgort.SerializationError as e:
        return str(e)
    return "sent"


def test_a_value_that_cannot_cross_is_an_error_at_the_select(run: Run) -> None:
    assert "conn" in run(unsendable)


async def misuse(what: str) -> None:
    c = chan()
    cases: dict[str, list[Any]] = {
        "call": [c.recv, c.recv() if what == "call" else c],
        "channel": [c],
        "no value": [c.recv, c.send],
        "value": [(c.recv, 1)],
        "triple": [(c.send, 1, 2)],
        "other": [c.recv, c.recv, c.close],
        "number": [1],
        "defaults": [default, c.recv, default],
        "send-only": [c.send_only().recv],
        "recv-only": [c.recv, (c.recv_only().send, 1)],
    }
    select(*cases[what])


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("call", "case 1 is a call: pass the method itself"),
        ("channel", "case 0 is a channel"),
        ("no value", "case 1: a send needs its value"),
        ("value", "case 0: a pair is"),
        ("triple", "case 0: a pair is"),
        ("other", "case 2 is <built-in method close"),
        ("number", "case 0 is 1"),
        ("defaults", "case 2: there is a default already, case 0"),
        ("send-only", "case 0: receive on a send-only channel"),
        ("recv-only", "case 1: send on a receive-only channel"),
    ],
)
def test_what_is_no_case_is_a_type_error_that_names_it(what: str, text: str) -> None:
    with pytest.raises(TypeError, match=f"select: {text}"):
        mpgort.run(misuse, what, procs=0)


def test_outside_a_goroutine_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="outside a goroutine"):
        select(default).__await__().send(None)


def test_a_deadlock_shows_the_select(run: Run) -> None:
    with pytest.raises(mpgort.Deadlock, match=r"goroutine \d+ \[select \(no cases\)\]"):
        run(no_cases)
    with pytest.raises(mpgort.Deadlock, match=r"goroutine \d+ \[select\]"):
        run(unready_select)
