"""Go's tests of select: runtime/chan_test.go and test/chan.

Each runs with 0, 1, 2 and 4 processors, and where every park moves (MPGORT_MIGRATE=always). Where
the originals sleep so that another goroutine may come to its wait, these look at its status."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from goroutines import parked

import mpgort
from mpgort import (
    Chan,
    ChanError,
    _core,
    chan,
    default,
    go,
    gosched,
    nilchan,
    select,
    spawn,
)

Run = Callable[..., Any]


# ---- exactly one case, of one waiter ---------------------------------------------------------


async def send_on_one_of_four(n: int, chans: list[Chan[int]]) -> None:
    c1, c2, c3, c4 = chans
    for i in range(n):
        await select((c1.send, i), (c2.send, i), (c3.send, i), (c4.send, i))
    for c in chans:
        c.close()


async def mux(out: Chan[int], c: Chan[int], done: Chan[bool]) -> None:
    async for v in c:
        await out.send(v)
    await done.send(True)


async def close_when_done(cmux: Chan[int], done: Chan[bool]) -> None:
    for _ in range(4):
        await done.recv()
    cmux.close()


async def doubleselect(n: int) -> Counter[int]:
    chans, done, cmux = [chan() for _ in range(4)], chan(), chan()
    go(send_on_one_of_four, n, chans)
    for c in chans:
        go(mux, cmux, c, done)
    go(close_when_done, cmux, done)
    seen: Counter[int] = Counter()
    async for v in cmux:
        seen[v] += 1
    return seen


def test_a_value_sent_by_select_arrives_once(run: Run) -> None:
    """Go test/chan/doubleselect.go. Stricter: none may be lost either."""
    n = 100_000
    assert run(doubleselect, n) == Counter(range(n))


async def send_n(c: Chan[int], n: int) -> None:
    for _ in range(n):
        await c.send(0)


async def recv_n(c: Chan[int], n: int) -> None:
    for _ in range(n):
        await c.recv()


async def send_n_on_each(chans: list[Chan[int]], n: int) -> None:
    left, order = [n] * 4, [3, 2, 0, 1]
    c = list(chans)
    for _ in range(4 * n):
        i, _ = await select(*((c[k].send, 0) for k in order))
        k = order[i]
        left[k] -= 1
        if left[k] == 0:
            c[k] = nilchan


async def recv_n_from_each(chans: list[Chan[int]], n: int) -> None:
    left, c = [n] * 4, list(chans)
    for _ in range(4 * n):
        k, _ = await select(c[0].recv, c[1].recv, c[2].recv, c[3].recv)
        left[k] -= 1
        if left[k] == 0:
            c[k] = nilchan


async def stress(n: int) -> list[int]:
    c = [chan(), chan(), chan(2), chan(3)]
    handles = [spawn(send_n_on_each, c, n), spawn(recv_n_from_each, c, n)]
    for ch in c:
        handles += [spawn(send_n, ch, n), spawn(recv_n, ch, n)]
    for h in handles:
        await h
    return [len(ch) for ch in c]


def test_plain_and_selecting_senders_and_receivers_all_finish(run: Run) -> None:
    """Go TestSelectStress, with the number of its short mode."""
    assert run(stress, 10_000) == [0] * 4


async def recv_twice(c1: Chan[bool], c2: Chan[bool], c3: Chan[bool]) -> None:
    i, _ = await select(c1.recv, c2.recv)
    assert i == 1
    await c3.send(True)
    await c1.recv()


async def losers_leave() -> list[Any]:
    c1, c2, c3 = chan(), chan(), chan()
    first = spawn(c1.recv)
    await parked("chan receive", first)
    second = spawn(recv_twice, c1, c2, c3)
    await parked("select", second)
    go(c2.send, True)
    await c3.recv()
    await c1.send(1)
    await c1.send(2)
    return [await first, await second]


def test_a_losing_case_at_the_end_of_a_queue_does_not_corrupt_it(run: Run) -> None:
    """Go test/chan/select6.go (issue 2075). Here the order in the queue is made sure of."""
    assert run(losers_leave) == [1, None]


async def same_twice(c: Chan[int], d: Chan[int], e: Chan[int]) -> int:
    i, _ = await select(c.recv, c.recv, d.recv)
    await e.send(9)
    return i


async def duplicate_channel() -> tuple[int, int]:
    c, d, e = chan(), chan(), chan()
    a = spawn(same_twice, c, d, e)
    await parked("select", a)
    b = spawn(c.recv)
    await parked("chan receive", b)
    await d.send(7)
    await e.recv()
    await c.send(8)
    return await a, await b


def test_a_channel_named_twice_has_one_waiter_and_is_left_whole(run: Run) -> None:
    """Go TestSelectDuplicateChannel."""
    assert run(duplicate_channel) == (2, 8)


async def send_or_recv(c: Chan[int], me: int, unbuffered: bool, first: bool, n: int) -> int:
    for k in range(n):
        if first or k % 2 == 0:
            i, v = await select((c.send, me), c.recv)
            received = i == 1
        else:
            i, v = await select(c.recv, (c.send, me))
            received = i == 0
        assert not (unbuffered and received and v == me), "self receive"
    return n


async def self_select(cap: int, n: int) -> list[int]:
    c = chan(cap)
    handles = [spawn(send_or_recv, c, p, cap == 0, p == 0, n) for p in range(2)]
    return [await h for h in handles]


@pytest.mark.parametrize("cap", [0, 10])
def test_a_select_that_sends_and_receives_on_one_channel_never_meets_itself(
    run: Run, cap: int
) -> None:
    """Go TestSelfSelect."""
    assert run(self_select, cap, 1000) == [1000, 1000]


# ---- one snapshot ----------------------------------------------------------------------------


async def look(c1: Chan[int], c2: Chan[int], done: Chan[bool]) -> None:
    i, _ = await select(c1.recv, c2.recv, default)
    await done.send(i != 2)


async def one_is_always_ready(n: int, by_close: bool) -> int:
    done, found = chan(1), 0
    for _ in range(n):
        c1, c2 = chan(1), chan(0 if by_close else 1)
        await c1.send(1)
        go(look, c1, c2, done)
        if by_close:
            c2.close()
        else:
            await c2.send(1)
        await select(c1.recv, default)
        found += await done.recv()
    return found


@pytest.mark.parametrize("by_close", [False, True])
def test_default_is_never_chosen_while_one_of_two_channels_is_ready(
    run: Run, by_close: bool
) -> None:
    """Go TestNonblockSelectRace and TestNonblockSelectRace2, with the number of short mode."""
    assert run(one_is_always_ready, 1000, by_close) == 1000


async def recv_or_default(c: Chan[int], done: Chan[bool]) -> None:
    i, _ = await select(c.recv, default)
    await done.send(i == 0)


async def closed_with_a_value(n: int) -> int:
    done, ready = chan(1), 0
    for _ in range(n):
        c = chan(1)
        await c.send(1)
        go(recv_or_default, c, done)
        c.close()
        await c.recv()
        ready += await done.recv()
    return ready


def test_a_closed_channel_is_ready_whether_its_value_was_taken_or_not(run: Run) -> None:
    """Go TestNonblockRecvRace. Stricter: the goroutine is waited for."""
    assert run(closed_with_a_value, 10_000) == 10_000


# ---- the choice ------------------------------------------------------------------------------


async def pick(c: list[Chan[int]], out: Chan[int], done: Chan[int]) -> None:
    c1, c2, c3, c4 = c
    while True:
        _, b = await select(c3.recv, c4.recv, c1.recv, c2.recv)
        i, _ = await select((out.send, b), done.recv)
        if i == 1:
            return


async def fairness(trials: int) -> Counter[int]:
    c1, c2 = chan(trials + 1), chan(trials + 1)
    for _ in range(trials + 1):
        await c1.send(1)
        await c2.send(2)
    out, done = chan(), chan()
    h = spawn(pick, [c1, c2, chan(), chan()], out, done)
    seen = Counter([await out.recv() for _ in range(trials)])
    done.close()
    await h
    return seen


def test_two_ready_cases_are_chosen_equally_often(run: Run) -> None:
    """Go TestSelectFairness, with its bound of one false alarm in a million."""
    trials = 10_000
    seen = run(fairness, trials)
    assert set(seen) == {1, 2}
    assert abs(seen[1] / trials - 0.5) <= 4.891676 / (2 * math.sqrt(trials))


async def take(c: Chan[int], n: int) -> list[int]:
    got = []
    for _ in range(n):
        await gosched()
        got.append(await c.recv())
    return got


async def pseudo_random_send(cap: int, n: int) -> list[int]:
    c = chan(cap)
    h = spawn(take, c, n)
    for _ in range(n):
        await select((c.send, 1), (c.send, 0))
    taken: list[int] = await h
    return taken


@pytest.mark.parametrize("cap", [0, 100])
def test_two_sends_on_one_channel_are_chosen_at_random(run: Run, cap: int) -> None:
    """Go TestPseudoRandomSend."""
    values = run(pseudo_random_send, cap, 100)
    assert 10 < sum(values) < 90


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


# ---- evaluation ------------------------------------------------------------------------------


async def evaluation() -> tuple[int, int, int, int]:
    counter = shift = 0

    def value() -> int:
        nonlocal counter
        counter += 1
        return 1 << shift

    async def send(a: Chan[int], b: Chan[int]) -> int:
        nonlocal shift
        n = 0
        while True:
            i, _ = await select((a.send, value()), (b.send, value()), default)
            if i == 2:
                return n
            n += 1
            a, b = (nilchan, b) if i == 0 else (a, nilchan)
            shift += 1

    a, b = chan(1), chan(1)
    first = await send(a, b)
    bits = await a.recv() | await b.recv()
    return first, bits, await send(a, nilchan), counter


def test_every_value_is_evaluated_once_whatever_is_chosen(run: Run) -> None:
    """Go test/chan/select.go."""
    assert run(evaluation) == (2, 3, 1, 10)


async def recv1(c: Chan[int]) -> Any:
    return await c.recv()


async def recv2(c: Chan[int]) -> Any:
    return (await select(c.recv))[1]


async def recv3(c: Chan[int]) -> Any:
    return (await select(c.recv, chan().recv))[1]


async def send1(c: Chan[int]) -> None:
    await c.send(1)


async def send2(c: Chan[int]) -> None:
    await select((c.send, 1))


async def send3(c: Chan[int]) -> None:
    await select((c.send, 1), (chan().send, 1))


async def every_pair() -> list[Any]:
    got = []
    for recv in (recv1, recv2, recv3):
        for send in (send1, send2, send3):
            c = chan()
            h = spawn(recv, c)
            await gosched()
            await send(c)
            got.append(await h)
    return got


def test_each_form_of_send_meets_each_form_of_receive(run: Run) -> None:
    """Go test/chan/select7.go."""
    assert run(every_pair) == [1] * 9


async def send_from_one(c: Chan[int], d: Chan[int], n: int) -> None:
    for i in range(n):
        await select((c.send, i), (d.send, i))


async def live_after_selects(n: int) -> list[int]:
    prog = _core.current()
    assert prog is not None
    c, d, live = chan(), chan(), []
    for _ in range(2):
        h = spawn(send_from_one, c, d, n)
        for _ in range(n):
            await select(c.recv, d.recv)
        await h
        live.append(prog.stats()["live_blocks"])
    return live


def test_selects_leave_no_memory_behind(run: Run) -> None:
    """Go test/chan/select2.go, with 20,000 of its 100,000 rounds, twice: blocks, not bytes."""
    first, second = run(live_after_selects, 20_000)
    assert second <= first + 20


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
