"""What a goroutine keeps, where it stays, and how threads and plain functions meet it.

Context variables, cancel, blocking calls, home goroutines (pinned, heavy), questions (status,
goid)."""

from __future__ import annotations

import contextvars
import decimal
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import pytest
from goroutines import until

import mpgort
from mpgort import (
    Chan,
    Runtime,
    _code,
    chan,
    context,
    default,
    go,
    goid,
    gosched,
    num_goroutine,
    select,
    sleep,
    spawn,
    sync,
)

USER = contextvars.ContextVar("USER", default="nobody")
LIMIT = 20.0


@pytest.fixture(params=[0, 1, 2], ids=lambda n: f"procs={n}")
def procs(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.001)


# ---- context variables ---------------------------------------------------------------------------


async def who(parks: int) -> list[str]:
    seen = []
    for _ in range(parks):
        seen.append(USER.get())
        await gosched()
    return seen


async def context_main() -> list[Any]:
    USER.set("main's")
    first = spawn(who, 3)
    USER.set("later")
    second = spawn(who, 3)

    async def sets_its_own() -> tuple[str, str]:
        USER.set("own")
        await gosched()
        inner = await spawn(who, 1)
        return USER.get(), inner[0]

    own = await spawn(sets_its_own)
    return [await first, await second, own, USER.get()]


def test_a_goroutine_starts_with_its_creators_context_and_keeps_its_own(procs: int) -> None:
    assert mpgort.run(context_main, procs=procs) == [
        ["main's"] * 3,
        ["later"] * 3,
        ("own", "own"),
        "later",
    ]
    assert USER.get() == "nobody"


async def one_of_many(i: int) -> bool:
    USER.set(f"user {i}")
    for _ in range(20):
        await gosched()
        if USER.get() != f"user {i}":
            return False
    return True


async def many_contexts() -> bool:
    handles = [spawn(one_of_many, i) for i in range(50)]
    strangers = [spawn(who, 20) for _ in range(10)]
    alone = [set(await h) == {"nobody"} for h in strangers]
    return all([await h for h in handles]) and all(alone)


def test_contexts_of_interleaved_goroutines_do_not_mix(procs: int) -> None:
    assert mpgort.run(many_contexts, procs=procs)


class Request:
    VAR: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


async def keeps_across_parks(which: str, ch: Chan) -> Any:
    file: contextvars.ContextVar[Any] = USER  # type: ignore[assignment]
    if which == "request":
        Request.VAR.set("own")
    elif which == "USER":
        file.set(open(__file__))
    else:
        decimal.getcontext().prec = 7
    await ch.recv()
    for _ in range(3):
        await gosched()
    if which == "request":
        return Request.VAR.get()
    return file.get().name if which == "USER" else str(decimal.Decimal(1) / 3)


async def keeps_main() -> list[Any]:
    ch = chan()
    handles = [spawn(keeps_across_parks, w, ch) for w in ("request", "USER", "decimal") * 2]
    ch.close()
    return [await h for h in handles]


def test_no_park_takes_a_context_variable_away(procs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that no module's global leads to, nor one whose value cannot cross, nor C's."""
    monkeypatch.setenv("MPGORT_MIGRATE", "always")
    assert mpgort.run(keeps_main, procs=procs) == ["own", __file__, "0.3333333"] * 2


async def third() -> str:
    return str(decimal.Decimal(1) / 3)


async def precise() -> str:
    decimal.getcontext().prec = 5
    return await spawn(third)


def test_a_goroutine_computes_with_the_decimal_context_of_its_creator(procs: int) -> None:
    assert mpgort.run(precise, procs=procs) == "0.33333"


async def computes_between_parks() -> list[str]:
    got = []
    decimal.setcontext(decimal.Context())  # not the test's own
    for prec in (28, 28, 9, 9, 4):
        decimal.getcontext().prec = prec  # in place: the variable is the same
        await gosched()
        got.append(str(decimal.Decimal(2) / 3))
        await gosched()
    flags = decimal.getcontext().flags
    await gosched()
    assert flags[decimal.Inexact] and decimal.getcontext().flags[decimal.Inexact]
    return got


def test_what_changes_in_decimals_context_between_two_parks_is_kept(
    procs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", "always")
    full, nine, four = "0." + "6" * 27 + "7", "0.666666667", "0.6667"
    assert mpgort.run(computes_between_parks, procs=procs) == [full, full, nine, nine, four]


async def asks_for_items(monkeypatch: pytest.MonkeyPatch) -> int:
    calls, ask = [0], _code.context_items

    def counted(*args: Any) -> Any:
        calls[0] += 1
        return ask(*args)

    monkeypatch.setattr(_code, "context_items", counted)
    decimal.setcontext(decimal.Context())
    assert decimal.Decimal(1) / 3  # as any program may have done
    ch = chan()
    h = spawn(receives_all, ch)
    for _ in range(100):
        await ch.send(0)
    ch.close()
    await h
    return calls[0]


async def receives_all(ch: Chan) -> None:
    async for _ in ch:
        pass


def test_decimals_context_as_it_is_at_first_costs_no_park_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mpgort.run(asks_for_items, monkeypatch, procs=0) < 10


@pytest.mark.usefixtures("auto")
def test_a_dump_says_which_context_variable_keeps_a_goroutine_at_home(rt: mpgort.Runtime) -> None:
    ch = rt.chan()
    handles = [rt.spawn(keeps_across_parks, w, ch) for w in ("request", "USER", "decimal")]
    for h in handles:
        wait_until(lambda h=h: h.status() == "chan receive")  # type: ignore[misc]
    text = rt.stack()
    assert "pinned: context variable request: no module leads to it]" in text
    assert "pinned: context variable USER: " in text and "an open file" in text
    assert text.count("pinned") == 2
    ch.close()
    for h in handles:
        h.result(30)


# ---- cancel --------------------------------------------------------------------------------------


async def parked(ch: Chan, log: Chan) -> None:
    try:
        await ch.recv()
    except mpgort.Cancelled:
        await log.send("cancelled")
        raise
    finally:
        await log.send("finally")


async def cancel_parked() -> list[Any]:
    ch, log = chan(), chan(5)
    h = spawn(parked, ch, log)
    await until(lambda: h.status() == "chan receive")
    seen: list[Any] = [h.cancel()]
    try:
        await h
    except mpgort.Cancelled:
        seen.append("raised")
    seen += [await log.recv(), await log.recv(), h.status(), h.done(), h.cancel()]
    # The cancelled receiver is out of the queue: the next value is not lost in it.
    go(ch.send, "kept")
    seen.append(await ch.recv())
    return seen


def test_cancel_raises_where_the_goroutine_is_parked_and_loses_no_message(procs: int) -> None:
    assert mpgort.run(cancel_parked, procs=procs) == [
        True,
        "raised",
        "cancelled",
        "finally",
        "cancelled",
        True,
        False,
        "kept",
    ]


async def stubborn(ch: Chan) -> str:
    try:
        await ch.recv()
    except mpgort.Cancelled:
        return "caught, " + (await ch.recv())
    return "never cancelled"


async def cancel_is_once() -> str:
    ch = chan()
    h = spawn(stubborn, ch)
    await until(lambda: h.status() == "chan receive")
    h.cancel()
    await ch.send("then received")
    text: str = await h
    return text


def test_cancel_is_raised_once_and_may_be_caught(procs: int) -> None:
    assert mpgort.run(cancel_is_once, procs=procs) == "caught, then received"


async def spinner(n: int) -> int:
    for _ in range(n):
        await gosched()
    return n


def is_cancelled_and_waits(up: Chan) -> None:
    up.get().cancel()
    chan().get()


async def cancel_before_a_blocking_wait() -> str:
    up = chan(1)
    h = spawn(is_cancelled_and_waits, up)
    await up.send(h)
    try:
        return repr(await h)
    except mpgort.Cancelled:
        return h.status()


def test_a_cancel_of_a_plain_function_that_runs_is_raised_where_it_waits_next(procs: int) -> None:
    assert mpgort.run(cancel_before_a_blocking_wait, procs=procs) == "cancelled"


def gets_then_waits(up: Chan, ch: Chan) -> Any:
    up.put(None)
    v = ch.get()
    try:
        chan().get()
    except mpgort.Cancelled:
        return v


async def cancel_before_its_turn() -> tuple[Any, Any]:
    up, below, above = chan(), chan(), chan()
    h = spawn(gets_then_waits, up, below)
    await up.recv()
    on_top = spawn(gets_then_waits, up, above)
    await up.recv()
    await below.send("got")
    await sleep(0.02)
    h.cancel()
    await sleep(0.02)
    await above.send("above")
    on_top.cancel()
    return await h, await on_top


def test_a_cancel_takes_nothing_from_who_waits_for_his_turn_to_return(procs: int) -> None:
    """Their calls are on one stack with procs=0."""
    assert mpgort.run(cancel_before_its_turn, procs=procs) == ("got", "above")


async def cancel_storm(count: int) -> int:
    handles = [spawn(spinner, 1_000_000) for _ in range(count)]
    for h in handles:
        h.cancel()
    cancelled = 0
    for h in handles:
        try:
            await h
        except mpgort.Cancelled:
            cancelled += 1
    return cancelled


def test_a_cancel_is_never_lost_whatever_its_target_is_doing(procs: int) -> None:
    assert mpgort.run(cancel_storm, 200, procs=procs) == 200


# ---- threads and plain functions -----------------------------------------------------------------


async def echo(requests: Chan, replies: Chan) -> None:
    async for v in requests:
        await replies.send(v)
    replies.close()


def test_threads_put_and_get(procs: int) -> None:
    with Runtime(procs=procs) as rt:
        requests, replies = rt.chan(), rt.chan()
        rt.go(echo, requests, replies)
        got: list[int] = []

        def reader() -> None:
            try:
                while True:
                    got.append(replies.get(timeout=LIMIT))
            except mpgort.Closed:
                pass

        thread = threading.Thread(target=reader)
        thread.start()
        for i in range(200):
            requests.put(i, timeout=LIMIT)
        requests.close()
        thread.join(LIMIT)
        assert not thread.is_alive()
        assert got == list(range(200))


def test_get_put_and_result_time_out_and_leave_nothing_behind(procs: int) -> None:
    with Runtime(procs=procs) as rt:
        ch = rt.chan()
        for call in (lambda: ch.get(timeout=0.02), lambda: ch.put(1, timeout=0.02), ch_get_0(ch)):
            with pytest.raises(TimeoutError):
                call()
        rt.go(echo, rt.chan(), ch)  # never gets anything
        h = rt.spawn(echo, ch, rt.chan())
        with pytest.raises(TimeoutError):
            h.result(timeout=0.02)
        ch.put("only one", timeout=LIMIT)  # the receiver in echo is there, the timed-out one is not
        rt.shutdown(drain=False)


def ch_get_0(ch: Chan) -> Callable[[], Any]:
    return lambda: ch.get(timeout=0)


def plain_consumer(ch: Chan, n: int) -> int:
    return sum(ch.get() for _ in range(n))


async def producer(ch: Chan, n: int) -> None:
    for i in range(n):
        await ch.send(i)


async def plain_waits() -> list[int]:
    ch = chan()
    hs = [spawn(plain_consumer, ch, 50) for _ in range(3)]
    for _ in range(3):
        go(producer, ch, 50)
    return [await h for h in hs]


def test_plain_functions_that_wait_give_their_p_away(procs: int) -> None:
    """More of them than Ms: what they wait for must still run."""
    assert sum(mpgort.run(plain_waits, procs=procs)) == 3 * sum(range(50))


def puts(ch: Chan, n: int) -> None:
    for i in range(n):
        ch.put(i)
    ch.close()


async def at_home_beside_a_plain_function(held: str | TextIO) -> list[int]:
    """What it starts runs on its M, and waits there for what only this M can run."""
    if not held:
        held = open(os.devnull)
    ch = chan()
    go(puts, ch, 20)
    return [i async for i in ch if held]


@pytest.mark.parametrize("held", ["", "x" * 20_000], ids=["pinned", "heavy"])
def test_who_is_at_home_goes_on_while_a_plain_function_waits_there(procs: int, held: str) -> None:
    async def main() -> list[list[int]]:
        hs = [spawn(at_home_beside_a_plain_function, held) for _ in range(3)]
        return [await h for h in hs]

    assert mpgort.run(main, procs=procs) == [list(range(20))] * 3


def answers(ask: Chan, reply: Chan) -> None:
    reply.put(ask.get())


async def polls(held: str) -> tuple[Any, int]:
    ask, reply = chan(), chan(1)
    h = spawn(answers, ask, reply)
    await until(lambda: h.status() == "chan receive")
    await ask.send("answer")
    while True:
        i, v = await select(reply.recv, default)
        if i == 0:
            return v, len(held)


def test_who_polls_at_home_is_preempted_for_a_plain_function_that_waited_there(procs: int) -> None:
    assert mpgort.run(polls_at_home, procs=procs) == ("answer", 20_000)


async def polls_at_home() -> tuple[Any, int]:
    return await spawn(polls, "x" * 20_000)


class Asks:
    """Pickled, it asks somebody, who may take his time."""

    def __init__(self, ask: Chan, reply: Chan) -> None:
        self.chans = ask, reply

    def __getstate__(self) -> object:
        ask, reply = self.chans
        ask.put(None)
        reply.get()
        return self.__dict__


async def holds_who_asks(gate: Chan, ask: Chan, reply: Chan) -> int:
    asks = Asks(ask, reply)
    got = sum([await gate.recv() for _ in range(10)])
    return got if asks.chans == (ask, reply) else -1


async def yields(held: str) -> int:
    d = {i: str(i) for i in range(50)}
    for _ in range(30):
        await gosched()
        assert d == {i: str(i) for i in range(50)}
    return len(held)


async def serve(ask: Chan, reply: Chan) -> None:
    async for _ in ask:
        await gosched()
        await reply.send(None)


async def blocks_in_a_park() -> list[int]:
    gate, ask, reply = chan(), chan(), chan()
    others = [spawn(yields, "x" * 20_000) for _ in range(4)]
    go(serve, ask, reply)
    h = spawn(holds_who_asks, gate, ask, reply)
    others += [spawn(yields, "x" * 20_000) for _ in range(4)]
    for i in range(10):
        await gate.send(i)
    return [await h, *[await x for x in others]]


def test_what_pickles_a_local_cannot_block_in_the_midst_of_its_park(procs: int) -> None:
    """It is refused, the goroutine stays at home; others are not run within its encoding."""
    assert mpgort.run(blocks_in_a_park, procs=procs) == [45, *[20_000] * 8]


class AsksBack(Asks):
    def __getstate__(self) -> object:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Asks.__getstate__(self)


async def recv_of(ch: Chan) -> None:
    await ch.recv()


async def receive_some(ask: Chan, reply: Chan) -> int:
    for _ in range(20):
        ch = chan()
        h = spawn(recv_of, ch)
        await until(lambda h=h: h.status() == "chan receive")
        await ch.send(AsksBack(ask, reply))
        await h
    del ch, h
    await sleep(0.01)
    blocks: int = mpgort._core.current().stats()["live_blocks"]
    return blocks


async def wait_within_a_wait() -> int:
    ask, reply = chan(), chan()
    go(serve, ask, reply)
    before = await receive_some(ask, reply)
    return await receive_some(ask, reply) - before


def test_a_wait_of_what_is_unpickled_lets_the_wait_that_brought_it_end(procs: int) -> None:
    """A channel stayed for ever, by the reference of its receiver's wait."""
    assert mpgort.run(wait_within_a_wait, procs=procs) < 10


def in_vain_and_for_good(up: Chan, ch: Chan, timeout: float | None) -> Any:
    up.put(None)
    try:
        return ch.get(timeout)
    except TimeoutError:
        return "late"


async def one_timeout_of_two_waits() -> list[Any]:
    up, never, ch = chan(), chan(), chan()
    hs = []
    for c, timeout in ((never, 0.02), (ch, None)):  # with procs=0 the second is on top
        hs.append(spawn(in_vain_and_for_good, up, c, timeout))
        await up.recv()
    await sleep(0.04)
    await ch.send("value")
    return [await h for h in hs]


def test_a_timeout_ends_no_other_wait_than_its_own(procs: int) -> None:
    assert mpgort.run(one_timeout_of_two_waits, procs=procs) == ["late", "value"]


def times_out(ch: Chan, n: int) -> None:
    for _ in range(n):
        with pytest.raises(TimeoutError):
            ch.get(timeout=0.001)


def test_a_timeout_takes_no_longer_where_the_loop_runs_below_it() -> None:
    """Not until the loop next looks up, every 0.1 s."""
    began = time.monotonic()
    mpgort.run(lambda: times_out(chan(), 300), procs=0)
    assert time.monotonic() - began < 300 * 0.1  # not the least bit of it, on any machine


def plain_main(n: int) -> int:
    ch = chan()
    go(producer, ch, n)
    total = sum(ch.get() for _ in range(n))
    return total + spawn(plain_consumer_of_nothing).result(timeout=LIMIT)


def plain_consumer_of_nothing() -> int:
    return 1


def test_main_may_be_a_plain_function(procs: int) -> None:
    assert mpgort.run(plain_main, 20, procs=procs) == sum(range(20)) + 1


def waits_in_vain(ch: Chan) -> list[str]:
    h = spawn(ch.recv)
    told = []
    for call in (ch.get, h.result, ch.recv_only().get):
        try:
            call(timeout=0.02)
        except TimeoutError as e:
            told.append(type(e).__name__)
    go(ch.send, 1)
    go(ch.send, 2)
    return [*told, ch.get(timeout=LIMIT), h.result(timeout=LIMIT)]


async def spawns_who_waits_in_vain() -> Any:
    return await spawn(waits_in_vain, chan())


def test_who_waits_with_a_timeout_is_no_deadlock_however_asleep_the_others_are(procs: int) -> None:
    in_vain = ["TimeoutError"] * 3
    told = mpgort.run(lambda: waits_in_vain(chan()), procs=procs)
    assert (told[:3], sorted(told[3:])) == (in_vain, [1, 2])
    told = mpgort.run(spawns_who_waits_in_vain, procs=procs)
    assert (told[:3], sorted(told[3:])) == (in_vain, [1, 2])


def waits_once_and_for_ever(ch: Chan) -> None:
    try:
        ch.get(timeout=0.02)
    except TimeoutError:
        ch.get()


def test_after_its_timeout_it_is_one_again(procs: int) -> None:
    with pytest.raises(mpgort.Deadlock, match=r"goroutine 1 \[chan receive"):
        mpgort.run(lambda: waits_once_and_for_ever(chan()), procs=procs)


def test_who_had_not_ended_when_the_program_did_has_ended_with_it(procs: int) -> None:
    rt = Runtime(procs)
    h = rt.spawn(sleep, 1000)
    assert not h.done()
    assert not rt.shutdown(timeout=0)
    assert (h.done(), h.status()) == (True, "killed")
    assert isinstance(h.exception(), mpgort.Killed)
    with pytest.raises(mpgort.Killed, match="the runtime was shut down"):
        h.result()
    with pytest.raises(TypeError, match="a timeout must be a number of seconds, not str"):
        h.result("1")  # type: ignore[arg-type]


def plain_deadlock() -> None:
    chan().get()


def test_a_plain_main_that_nobody_can_wake_is_a_deadlock(procs: int) -> None:
    with pytest.raises(mpgort.Deadlock, match="all goroutines are asleep"):
        mpgort.run(plain_deadlock, procs=procs)


async def waits_for_plain_deadlock() -> None:
    await spawn(plain_deadlock)


def test_a_plain_function_on_a_worker_that_nobody_can_wake_is_a_deadlock(procs: int) -> None:
    with pytest.raises(mpgort.Deadlock, match=r"\[chan receive"):
        mpgort.run(waits_for_plain_deadlock, procs=procs)


# ---- home ----------------------------------------------------------------------------------------


async def holds_a_file(path: str, gate: Chan) -> list[Any]:
    seen: list[Any] = []
    with open(path, "w") as f:
        pid = os.getpid()
        for i in range(20):
            await gosched()
            f.write(f"{i}\n")
            seen.append(os.getpid() == pid)
        await gate.recv()
    return seen


async def pinned_main(path: str) -> tuple[list[Any], str]:
    gate = chan()
    h = spawn(holds_a_file, path, gate)
    await until(lambda: h.status() == "chan receive")
    dump = ""

    def answered() -> bool:  # a dump waits 0.1 s for its home
        nonlocal dump
        dump = mpgort._traceback.dump(mpgort._core.current())
        return "holds_a_file(...)" in dump

    await until(answered)
    await gate.send(None)
    return await h, dump


def test_a_goroutine_with_an_open_file_stays_and_the_dump_says_why(
    procs: int, tmp_path: Any
) -> None:
    path = str(tmp_path / "out")
    seen, dump = mpgort.run(pinned_main, path, procs=procs)
    assert all(seen) and len(seen) == 20
    with open(path) as f:
        assert f.read().split() == [str(i) for i in range(20)]
    assert "pinned" in dump
    assert "local 'f' of holds_a_file" in dump or os.environ.get("MPGORT_MIGRATE") == "never"
    assert "holds_a_file(...)\n\t" + __file__ in dump


async def big_reducer(ch: Chan, n: int) -> int:
    table = {}
    async for k in ch:
        table[k] = k
        if len(table) == n:
            break
    return sum(table.values())


async def feeder(ch: Chan, n: int) -> None:
    for i in range(n):
        await ch.send(i)


async def heavy_main(n: int) -> int:
    ch = chan(16)
    go(feeder, ch, n)
    total: int = await spawn(big_reducer, ch, n)
    return total


@pytest.mark.usefixtures("auto")
def test_a_heavy_goroutine_is_not_copied_at_each_park(procs: int) -> None:
    n = 20_000
    with Runtime(procs=procs) as rt:
        assert rt.spawn(heavy_main, n).result(timeout=60) == sum(range(n))
        stats = rt.stats()
    # All of it encoded at every park would be ~ n * n * 4 bytes; tries at a 16 KiB budget are few.
    assert stats["alloc_bytes"] < 100 * 1024 * n / 10


async def cpu_turns(size: int, first: sync.AtomicInt, enough: sync.AtomicInt) -> set[int]:
    """Computes until one of them has run on another process than the first."""
    ballast = list(range(size))
    pids = set()
    limit = time.monotonic() + LIMIT
    while not enough.load() and time.monotonic() < limit:
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            ballast[0] += 1
        pids.add(os.getpid())
        if not first.cas(0, os.getpid()) and first.load() != os.getpid():
            enough.store(1)
        await gosched()
    return pids


async def made_on_one_m() -> list[set[int]]:
    first, enough = sync.AtomicInt(), sync.AtomicInt()
    handles = [spawn(cpu_turns, 20_000, first, enough) for _ in range(6)]
    return [await h for h in handles]


async def offload_main() -> list[set[int]]:
    sets: list[set[int]] = await spawn(made_on_one_m)
    return sets


@pytest.mark.usefixtures("auto")
def test_heavy_goroutines_leave_a_busy_m_for_an_idle_one() -> None:
    sets = mpgort.run(offload_main, procs=2)
    assert len(set().union(*sets)) == 2


# ---- questions -----------------------------------------------------------------------------------


async def questions() -> list[Any]:
    gate = chan()

    async def waits() -> int:
        await gate.recv()
        return goid()

    handles = [spawn(waits) for _ in range(5)]
    await until(lambda: all(h.status() == "chan receive" for h in handles))
    seen: list[Any] = [goid(), num_goroutine()]
    gate.close()
    ids = [await h for h in handles]
    seen += [ids == [h.id for h in handles], len(set(ids)), handles[0].status()]
    await until(lambda: num_goroutine() == 1)
    return seen


def test_goid_num_goroutine_and_status(procs: int) -> None:
    assert mpgort.run(questions, procs=procs) == [1, 6, True, 5, "done"]


def test_calls_outside_a_goroutine_say_how_to_get_into_one() -> None:
    for call in (goid, chan, num_goroutine, lambda: go(print), lambda: spawn(print)):
        with pytest.raises(RuntimeError, match="outside a goroutine.*mpgort.run"):
            call()


async def awaits_foreign() -> str:
    class Foreign:
        def __await__(self) -> Any:
            yield "something of another loop"

    try:
        await Foreign()
    except RuntimeError as e:
        return str(e)
    return "no error"


def test_awaiting_another_loops_object_is_an_error_that_names_it(procs: int) -> None:
    assert "something of another loop" in mpgort.run(awaits_foreign, procs=procs)


async def hog(enough: sync.AtomicInt) -> bool:
    """Computes until it is told; false if nobody does."""
    ch = chan(1)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        await ch.send(1)  # never parks
        await ch.recv()
        if enough.load():
            return True
    return False


async def fair() -> list[bool]:
    enough = sync.AtomicInt()
    hogs = [spawn(hog, enough) for _ in range(2)]
    for _ in range(5):
        await spawn(goid)
    enough.store(1)
    return [await h for h in hogs]


def test_goroutines_that_never_park_are_preempted_at_their_calls() -> None:
    assert mpgort.run(fair, procs=1) == [True, True]


async def sleeper(s: float) -> float:
    t = time.monotonic()
    await sleep(s)
    return time.monotonic() - t


async def sleepers() -> list[float]:
    handles = [spawn(sleeper, 0.02) for _ in range(20)]
    return [await h for h in handles] + [await sleeper(0.01)]


def test_sleep_is_never_shorter_than_asked(procs: int) -> None:
    *many, mine = mpgort.run(sleepers, procs=procs)
    assert all(s >= 0.02 for s in many) and mine >= 0.01


# ---- code ------------------------------------------------------------------------------------


async def run_rewritten(n: int) -> int:
    async def checked() -> int:
        assert n == 1, "an assert that pytest's loader has rewritten"
        await gosched()
        return n

    return await spawn(checked)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_code_that_a_loader_of_its_own_has_rewritten_is_sent_along(method: str) -> None:
    """A fresh interpreter imports this module without pytest's assertions; what they call when they
    fail is there all the same, under the name that pytest gave it."""
    assert mpgort.run(run_rewritten, 1, procs=1, start_method=method) == 1
    with pytest.raises(AssertionError, match="(?s)pytest's loader.*assert 2 == 1"):
        mpgort.run(run_rewritten, 2, procs=1, start_method=method)


# ---- what is not awaited -------------------------------------------------------------------------


async def forgets_to_await() -> None:
    ch, m = chan(1), sync.Mutex()
    ch.send(1)
    sleep(1)
    mpgort.select(ch.recv)
    m.lock()


def test_what_was_to_be_awaited_and_was_not_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="was never awaited: it has done nothing") as told:
        mpgort.run(forgets_to_await, procs=0)
    named = [str(w.message).split(" ")[0] for w in told]
    assert named == ["Chan.send()", "sleep()", "select()", "Mutex.lock()"]
    assert {w.filename for w in told} == {__file__}


async def awaits_or_need_not() -> None:
    ch, m = chan(1), sync.Mutex()
    ch.put(1)
    ch.get()
    for wait in (ch.get, spawn(sleep, 60).result):
        with pytest.raises(TimeoutError):
            wait(timeout=0.001)
    go(ch.send, 1)
    await ch.recv()
    async with m:
        await mpgort.select(ch.recv, (ch.send, 1))
    cancelled, killed = spawn(mpgort.nilchan.recv), spawn(mpgort.nilchan.recv)
    cancelled.cancel()
    await gosched()
    killed.kill()
    await mpgort.to_thread(int)


def test_what_a_thread_or_a_goroutine_of_its_own_waits_for_is_not() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mpgort.run(awaits_or_need_not, procs=0)
    assert [str(w.message) for w in told] == []


# ---- what is no number ---------------------------------------------------------------------------

NO_NUMBER: list[tuple[str, Callable[[Any], Any]]] = [
    ("chan: an integer", chan),
    ("gomaxprocs", mpgort.gomaxprocs),
    ("sleep: a number of seconds", sleep),
    ("after: a number of seconds", mpgort.after),
    ("Timer: a number of seconds", mpgort.Timer),
    ("Ticker: a number of seconds", mpgort.Ticker),
    ("after_func: a number of seconds", lambda v: mpgort.after_func(v, gosched)),
    ("with_timeout: a number", lambda v: context.with_timeout(context.background(), v)),
    ("with_deadline: a time", lambda v: context.with_deadline(context.background(), v)),
    ("Group", mpgort.Group),
    ("Semaphore: an integer", sync.Semaphore),
    ("acquire: an integer", lambda v: sync.Semaphore(1).acquire(v)),
    ("try_acquire: an integer", lambda v: sync.Semaphore(1).try_acquire(v)),
    ("release: an integer", lambda v: sync.Semaphore(1).release(v)),
    ("WaitGroup.add: an integer", lambda v: sync.WaitGroup().add(v)),
    ("AtomicInt: an integer", sync.AtomicInt),
    ("AtomicInt.add: an integer", lambda v: sync.AtomicInt().add(v)),
    ("AtomicInt.store: an integer", lambda v: sync.AtomicInt().store(v)),
    ("AtomicInt.swap: an integer", lambda v: sync.AtomicInt().swap(v)),
    ("AtomicInt.cas: an integer", lambda v: sync.AtomicInt().cas(0, v)),
]


def test_what_is_no_number_is_a_type_error_that_names_the_call() -> None:
    def main() -> None:
        for what, call in NO_NUMBER:
            with pytest.raises(TypeError, match=rf"^{what}"):
                call("1")
        for number in (1 << 63, -(1 << 63) - 1):
            with pytest.raises(OverflowError, match=r"^AtomicInt.add: a number too large"):
                sync.AtomicInt().add(number)
        with pytest.raises(OverflowError, match=r"^chan: a number too large"):
            chan(1 << 70)

    mpgort.run(main, procs=0)
