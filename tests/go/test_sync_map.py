"""sync.Map and sync.SingleFlight: Go's sync/map_test.go and x/sync/singleflight, and what is added.

Each runs with 0, 1, 2 and 4 processors, and where every park moves (MPGORT_MIGRATE=always)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

import mpgort
from mpgort import Chan, chan, go, gosched, spawn, sync

Run = Callable[..., Any]


# ---- Map -------------------------------------------------------------------------------------


async def like_a_dict(seed: int, steps: int) -> int:
    rng, m, d = random.Random(seed), sync.Map(), dict[Any, Any]()
    keys: list[Any] = [*range(60), *(str(i) for i in range(60)), b"", None, (1, "a"), (1, ("a",))]
    for step in range(steps):
        k, v = rng.choice(keys), rng.choice([step, "x" * rng.randrange(100), [step, {"k": step}]])
        match rng.randrange(5):
            case 0:
                m.store(k, v)
                d[k] = v
            case 1:
                assert m.load(k) == (d.get(k), k in d)
            case 2:
                was = (d[k], True) if k in d else (v, False)
                assert m.load_or_store(k, v) == was
                d.setdefault(k, v)
            case 3:
                was = (d[k], True) if k in d else (None, False)
                assert m.load_and_delete(k) == was
                d.pop(k, None)
            case 4:
                m.delete(k)
                d.pop(k, None)
        assert len(m) == len(d)
    assert sorted(m.items(), key=repr) == sorted(d.items(), key=repr)
    return len(d)


def test_a_map_does_what_a_dict_does(run: Run) -> None:
    """Go TestMapMatchesRWMutex, TestMapMatchesDeepCopy: random operations against a known one."""
    assert run(like_a_dict, 1, 3000) > 0


async def count_up(m: sync.Map, key: str, n: int, gate: sync.Mutex) -> None:
    for _ in range(n):
        async with gate:
            v, _ = m.load(key)
            m.store(key, v + 1)


async def own_keys(m: sync.Map, me: int, n: int) -> None:
    for i in range(n):
        m.store((me, i), [me, i])
        assert m.load((me, i)) == ([me, i], True)
        if i % 3 == 0:
            assert m.load_and_delete((me, i)) == ([me, i], True)
        if i % 50 == 0:
            await gosched()


async def many_writers(goroutines: int, n: int) -> tuple[int, int]:
    m, wg, gate = sync.Map(), sync.WaitGroup(), sync.Mutex()
    m.store("total", 0)
    for g in range(goroutines):
        wg.go(own_keys, m, g, n)
        wg.go(count_up, m, "total", n, gate)
    await wg.wait()
    return m.load("total")[0], len(m)


def test_a_map_that_grows_under_many_writers_loses_nothing(run: Run) -> None:
    total, entries = run(many_writers, 6, 300)
    assert (total, entries) == (6 * 300, 6 * 200 + 1)


async def who_is_first(m: sync.Map, key: int, me: int) -> bool:
    actual, loaded = m.load_or_store(key, me)
    return not loaded and actual == me


async def first_wins(n: int) -> list[int]:
    m, firsts = sync.Map(), []
    for key in range(n):
        handles = [spawn(who_is_first, m, key, g) for g in range(8)]
        firsts.append(sum([await h for h in handles]))
    return firsts


def test_of_all_who_store_at_once_one_is_first(run: Run) -> None:
    assert run(first_wins, 50) == [1] * 50


async def range_while_writing(size: int, rounds: int) -> bool:
    """Go TestConcurrentRange: each key once, with a value that is a multiple of it."""
    m = sync.Map()
    for n in range(1, size):
        m.store(n, n)
    stop = sync.AtomicInt()

    async def write(g: int) -> None:
        k = 0
        while not stop.load():
            k += 1
            for n in range(1, size, 7):
                if m.load(n)[1]:
                    m.store(n, n * k * g)
            await gosched()

    handles = [spawn(write, g) for g in (1, 2)]
    for _ in range(rounds):
        pairs = m.items()
        assert sorted(k for k, _ in pairs) == list(range(1, size))
        assert all(v % k == 0 for k, v in pairs)
        await gosched()
    stop.store(1)
    for h in handles:
        await h
    return True


def test_items_has_each_key_once_whatever_is_stored_meanwhile(run: Run) -> None:
    assert run(range_while_writing, 200, 30)


async def handles_inside() -> list[Any]:
    m, c = sync.Map(), chan(1)
    m.store("c", {"chan": c})
    await m.load("c")[0]["chan"].send("through")
    got = [await c.recv(), m.load("c")[0]["chan"] is c]
    m.store("c", 1)  # the former value is freed, and what it held
    m.store(True, "one")
    return [*got, m.load(1), m.load(1.0), m.load((1.0, 2))[1], m.load(1.5)[1]]


def test_values_hold_handles_and_equal_keys_are_one(run: Run) -> None:
    assert run(handles_inside) == ["through", True, ("one", True), ("one", True), False, False]


async def bad_keys(what: str) -> None:
    m = sync.Map()
    keys: dict[str, Any] = {"list": [1], "set": {1}, "object": object(), "deep": (1, ([],))}
    if what in keys:
        m.load(keys[what])
    elif what == "value":
        m.store(1, open("/dev/null"))
    else:
        m.store(1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("list", TypeError, "a key is .*not list"),
        ("set", TypeError, "a key is .*not set"),
        ("object", TypeError, "a key is .*not object"),
        ("deep", TypeError, "a key is .*not list"),
        ("value", mpgort.SerializationError, "never crosses"),
        ("arguments", TypeError, "a key and a value"),
    ],
)
def test_what_is_no_key_or_cannot_cross_is_named(
    what: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        mpgort.run(bad_keys, what, procs=0)


# ---- SingleFlight ----------------------------------------------------------------------------


async def slow(calls: sync.AtomicInt, started: Chan[bool], go_on: Chan[str]) -> str:
    calls.add(1)
    await started.send(True)
    return str(await go_on.recv())


async def duplicates(n: int) -> tuple[int, list[str], int]:
    """Go TestDoDupSuppress: while the first is under way, the others join it."""
    f, calls, started, go_on = sync.SingleFlight(), sync.AtomicInt(), chan(n), chan()
    handles = [spawn(f.do, "key", slow, calls, started, go_on) for _ in range(n)]
    await started.recv()
    while sum(h.status() == "join" for h in handles) < n:
        await gosched()
    await go_on.send("value")
    results = [await h for h in handles]
    again = spawn(f.do, "key", slow, calls, started, go_on)
    await started.recv()
    await go_on.send("again")
    assert await again == ("again", False)
    return calls.load(), [v for v, _ in results], sum(shared for _, shared in results)


def test_calls_for_a_key_that_is_under_way_share_its_outcome(run: Run) -> None:
    assert run(duplicates, 10) == (2, ["value"] * 10, 9)


async def fails(started: Chan[bool], go_on: Chan[bool]) -> None:
    await started.send(True)
    await go_on.recv()
    raise KeyError("broken")


async def shared_failure(n: int) -> list[str]:
    """Go TestPanicDo: the error is everybody's."""
    f, started, go_on, texts = sync.SingleFlight(), chan(n), chan(), []
    handles = [spawn(f.do, 1, fails, started, go_on) for _ in range(n)]
    await started.recv()
    while sum(h.status() == "join" for h in handles) < n:
        await gosched()
    await go_on.send(True)
    for h in handles:
        try:
            await h
        except KeyError as e:
            texts.append(str(e))
    return texts


def test_a_failure_is_raised_to_all_who_share_it(run: Run) -> None:
    assert run(shared_failure, 5) == ["'broken'"] * 5


async def forgotten() -> list[Any]:
    """Go TestForget: a call after forget is its own, the forgotten one removes nothing."""
    f, calls, started = sync.SingleFlight(), sync.AtomicInt(), chan(4)
    gates = [chan(), chan()]
    first = spawn(f.do, "k", slow, calls, started, gates[0])
    await started.recv()
    f.forget("k")
    second = spawn(f.do, "k", slow, calls, started, gates[1])
    await started.recv()
    await gates[0].send("first")
    got = [await first]
    third = spawn(f.do, "k", slow, calls, started, gates[0])
    while third.status() != "join":
        await gosched()
    await gates[1].send("second")
    return [*got, await second, await third, calls.load()]


def test_after_forget_a_call_is_a_new_one(run: Run) -> None:
    assert run(forgotten) == [("first", False), ("second", False), ("second", True), 2]


def plain(x: int) -> int:
    return x + 1


async def plain_function() -> Any:
    f, c = sync.SingleFlight(), chan(1)
    go(c.send, f)
    return await f.do("p", plain, 41), await c.recv() == f


def test_a_plain_function_flies_too_and_the_flight_can_be_sent(run: Run) -> None:
    assert run(plain_function) == ((42, False), True)
