"""Go's tests of select: runtime/chan_test.go and test/chan (of the latter, what waits and what
fails is in test_select_cases.py).

Each runs with 0, 1, 2 and 4 processors, and where every park moves (MPGORT_MIGRATE=always). Where
the originals sleep so that another goroutine may come to its wait, these look at its status."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from goroutines import parked

from mpgort import (
    Chan,
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
