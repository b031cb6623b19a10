"""Pieces of Go's runtime/chan_test.go: what a channel does, for every size of its buffer.

The originals sleep a millisecond to see that a goroutine is still blocked. Here the blocked side
would have left a trace by an operation that comes after it in the order of channels."""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import NamedTuple

import pytest

import mpgort
from mpgort import Chan, ChanError, chan, go, gosched, nilchan, spawn

SIZES = [0, 1, 2, 3, 17]


@pytest.fixture(params=[1, 3], ids=["procs=1", "procs=3"])
def procs(request: pytest.FixtureRequest) -> int:
    return request.param


# ---- close -----------------------------------------------------------------------------------


async def drain_closed(size: int) -> list[object]:
    ch = chan(size)
    for i in range(size):
        await ch.send(i)
    ch.close()
    seen: list[object] = [await ch.recv() for _ in range(size)]
    return seen + [await ch.recv(), await ch.recv_ok()]


@pytest.mark.parametrize("size", SIZES)
def test_a_closed_channel_yields_its_buffer_and_then_none_for_ever(size: int, procs: int) -> None:
    """Go TestChan, "receive 0 from closed chan": the zero value is None here."""
    assert mpgort.run(drain_closed, size, procs=procs) == [*range(size), None, (None, False)]


async def receive_one(ch: Chan) -> tuple[object, bool]:
    pair: tuple[object, bool] = await ch.recv_ok()
    return pair


async def close_under_receivers(size: int, receivers: int) -> list[tuple[object, bool]]:
    ch = chan(size)
    handles = [spawn(receive_one, ch) for _ in range(receivers)]
    await wait_until_parked(receivers, handles, "chan receive")
    ch.close()
    return [await h for h in handles]


async def wait_until_parked(n: int, handles: list[mpgort.Goroutine], reason: str) -> None:
    while sum(reason in h.status() for h in handles) < n:
        await gosched()


@pytest.mark.parametrize("size", SIZES)
def test_close_wakes_every_parked_receiver_with_none_and_false(size: int, procs: int) -> None:
    """Go TestChan, "close unblocks receive", with many receivers."""
    assert mpgort.run(close_under_receivers, size, 40, procs=procs) == [(None, False)] * 40


async def send_to(ch: Chan, value: object) -> None:
    await ch.send(value)


async def close_under_senders(size: int, senders: int) -> tuple[list[str], int]:
    ch = chan(size)
    for i in range(size):
        await ch.send(i)
    handles = [spawn(send_to, ch, i) for i in range(senders)]
    await wait_until_parked(senders, handles, "chan send")
    ch.close()
    texts = []
    for h in handles:
        try:
            await h
        except ChanError as e:
            texts.append(str(e))
    left = 0
    async for _ in ch:
        left += 1
    return texts, left


@pytest.mark.parametrize("size", SIZES)
def test_close_fails_every_parked_sender_and_keeps_the_buffer(size: int, procs: int) -> None:
    """Go test/closedchan.go and chan.go closechan: senders panic, what was buffered stays."""
    texts, left = mpgort.run(close_under_senders, size, 20, procs=procs)
    assert texts == ["send on closed channel"] * 20
    assert left == size


async def misuse(what: str) -> None:
    ch = chan(1)
    if what == "nil":
        nilchan.close()
    ch.close()
    if what == "send":
        await ch.send(1)
    ch.close()


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("send", "send on closed channel"),
        ("close", "close of closed channel"),
        ("nil", "close of nil channel"),
    ],
)
def test_misuse_of_close_has_gos_text(what: str, text: str, procs: int) -> None:
    """Go test/closedchan.go, runtime/chan.go."""
    with pytest.raises(ChanError, match=f"^{text}$"):
        mpgort.run(misuse, what, procs=procs)


# ---- order, length, conservation -------------------------------------------------------------


async def count_up(ch: Chan, n: int) -> None:
    for i in range(n):
        await ch.send(i)


async def hundred(size: int) -> tuple[list[int], list[tuple[int, bool]]]:
    ch = chan(size)
    go(count_up, ch, 100)
    plain = [await ch.recv() for _ in range(100)]
    go(count_up, ch, 100)
    return plain, [await ch.recv_ok() for _ in range(100)]


@pytest.mark.parametrize("size", SIZES)
def test_a_hundred_values_arrive_in_order(size: int, procs: int) -> None:
    """Go TestChan, "100 integers ... in FIFO order", by both forms of receive."""
    plain, with_ok = mpgort.run(hundred, size, procs=procs)
    assert plain == list(range(100))
    assert with_ok == [(i, True) for i in range(100)]


async def take(ch: Chan, n: int) -> Counter[int]:
    seen: Counter[int] = Counter()
    for _ in range(n):
        seen[await ch.recv()] += 1
    return seen


async def producers_and_consumers(size: int, pairs: int, n: int) -> Counter[int]:
    ch = chan(size)
    for _ in range(pairs):
        go(count_up, ch, n)
    takers = [spawn(take, ch, n) for _ in range(pairs)]
    total: Counter[int] = Counter()
    for h in takers:
        total += await h
    return total


@pytest.mark.parametrize("size", SIZES)
def test_four_producers_and_four_consumers_lose_nothing(size: int, procs: int) -> None:
    """Go TestChan, "1000 integers in 4 goroutines": each value exactly four times."""
    seen = mpgort.run(producers_and_consumers, size, 4, 1000, procs=procs)
    assert seen == Counter({i: 4 for i in range(1000)})


async def lengths(size: int) -> tuple[int, int, list[int], int]:
    ch = chan(size)
    before, growing = len(ch), []
    for i in range(size):
        await ch.send(i)
        growing.append(len(ch))
    for _ in range(size):
        await ch.recv()
    return before, ch.cap, growing, len(ch)


@pytest.mark.parametrize("size", SIZES)
def test_len_counts_what_is_buffered_and_cap_what_fits(size: int, procs: int) -> None:
    """Go TestChan, "len/cap"; test/chancap.go."""
    expected = (0, size, list(range(1, size + 1)), 0)
    assert mpgort.run(lengths, size, procs=procs) == expected


async def block_on_full(size: int) -> list[str]:
    ch, log = chan(size), chan(10)
    h = spawn(overfill, ch, size, log)
    await wait_until_parked(1, [h], "chan send")
    await log.send("the sender is parked")
    await ch.recv()
    await h
    return [await log.recv(), await log.recv()]


async def overfill(ch: Chan, size: int, log: Chan) -> None:
    for i in range(size + 1):
        await ch.send(i)
    await log.send("the send has returned")


@pytest.mark.parametrize("size", SIZES)
def test_a_send_to_a_full_channel_waits_for_a_receive(size: int, procs: int) -> None:
    """Go TestChan, "send to full chan blocks"."""
    assert mpgort.run(block_on_full, size, procs=procs) == [
        "the sender is parked",
        "the send has returned",
    ]


# ---- many consumers --------------------------------------------------------------------------

PRIMES = [2, 3, 7, 11, 13, 17, 19, 23, 27, 31]  # as in the original, 27 too
WORKERS = 23


async def consumer(number: int, q: Chan, r: Chan, ended: Chan) -> None:
    async for v in q:
        if PRIMES[number % len(PRIMES)] == v:
            await gosched()
        await r.send(v)
    await ended.send(number)


async def feed(q: Chan, r: Chan, ended: Chan, n: int) -> int:
    expected = 0
    for i in range(n):
        v = PRIMES[i % len(PRIMES)]
        expected += v
        await q.send(v)
    q.close()
    for _ in range(WORKERS):
        await ended.recv()
    r.close()
    return expected


async def multi_consumer(n: int) -> tuple[int, int, int]:
    q, r, ended = chan(WORKERS * 3), chan(WORKERS * 3), chan()
    for number in range(WORKERS):
        go(consumer, number, q, r, ended)
    feeder = spawn(feed, q, r, ended, n)
    count = total = 0
    async for v in r:
        count += 1
        total += v
    return count, total, await feeder


def test_23_consumers_that_yield_now_and_then_lose_nothing(procs: int) -> None:
    """Go TestMultiConsumer, 27,182 items of the original's 271,828."""
    count, total, expected = mpgort.run(multi_consumer, 27_182, procs=procs)
    assert (count, total) == (27_182, expected)


# ---- handles ---------------------------------------------------------------------------------


async def handles_over_handles() -> tuple[bool, bool, str, int]:
    carrier, inner = chan(1), chan(1)
    await carrier.send(inner)
    other = await carrier.recv()
    await other.send("by the copy")
    text = await inner.recv()
    return other == inner, hash(other) == hash(inner), text, len({other, inner})


def test_a_channel_sent_over_a_channel_is_the_same_channel(procs: int) -> None:
    """Go sends channels over channels; here the handle that arrives may be another object."""
    equal, same_hash, text, distinct = mpgort.run(handles_over_handles, procs=procs)
    assert (equal, same_hash, text, distinct) == (True, True, "by the copy", 1)


@dataclass(slots=True)
class Slotted:
    ch: Chan


@dataclass
class Plain:
    ch: Chan


class Named(NamedTuple):
    ch: Chan


CARRIERS = {
    "list": (lambda ch: [ch], lambda o: o[0]),
    "dict": (lambda ch: {"ch": ch}, lambda o: o["ch"]),
    "set": (lambda ch: {ch}, lambda o: next(iter(o))),
    "dataclass": (Plain, lambda o: o.ch),
    "bound method": (lambda ch: ch.send, lambda o: o.__self__),
    "slots": (Slotted, lambda o: o.ch),
    "named tuple": (Named, lambda o: o.ch),
    "deque": (lambda ch: deque([ch]), lambda o: o[0]),
    "defaultdict": (lambda ch: defaultdict(int, {"ch": ch}), lambda o: o["ch"]),
}


async def reply(carrier: str, o: object) -> None:
    await CARRIERS[carrier][1](o).send(carrier)


async def carried(carrier: str) -> str:
    ch = chan()
    go(reply, carrier, CARRIERS[carrier][0](ch))
    text: str = await ch.recv()
    return text


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_channel_crosses_in_whatever_carries_it(carrier: str, procs: int) -> None:
    assert mpgort.run(carried, carrier, procs=procs) == carrier


async def wrong_direction(view: str) -> None:
    ch = chan(1)
    if view == "send_only":
        await ch.send_only().recv()
    else:
        await ch.recv_only().send(1)


@pytest.mark.parametrize("view", ["send_only", "recv_only"])
def test_a_view_refuses_the_other_direction(view: str, procs: int) -> None:
    """Go test/chan/perm.go, where the compiler refuses it."""
    with pytest.raises(TypeError):
        mpgort.run(wrong_direction, view, procs=procs)
