"""mpgort.runtime.leaks(): who can never run again is reported, whoever still may is not.

Each case starts goroutines and returns how many of them are leaked; what it returns beside is held
by main while it asks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import mpgort
from mpgort import Chan, Timer, after, chan, context, go, nilchan, select, sleep, spawn
from mpgort.runtime import Leak, leaks
from mpgort.sync import AtomicInt, Cond, Map, Mutex, RWMutex, Semaphore, WaitGroup

pytestmark = pytest.mark.usefixtures("auto")  # what is at home is never reported

Case = tuple[int, Any]

# ---- leaks -----------------------------------------------------------------------------------


async def send_late(result: Chan[int]) -> None:
    await result.send(1)


async def give_up() -> str:
    result = chan()
    go(send_late, result)
    i, _ = await select(result.recv, mpgort.default)
    return "too late" if i else "in time"


async def a_sender_whose_receiver_has_returned() -> Case:
    while await spawn(give_up) != "too late":
        pass
    return 1, None


async def receive_then_send(a: Chan[int], b: Chan[int]) -> None:
    await a.recv()
    await b.send(1)


async def two_that_wait_for_each_other() -> Case:
    a, b = chan(), chan()
    go(receive_then_send, a, b)
    go(receive_then_send, b, a)
    return 2, None


async def wait_for(x: Any) -> None:
    await x


async def receive(c: Chan[Any]) -> None:
    await c.recv()


async def who_awaits_a_leaked_one() -> Case:
    go(wait_for, spawn(receive, chan()))
    return 2, None


async def lock_and_end(m: Any) -> None:
    await m.lock()


async def a_lock_whose_holder_has_ended() -> Case:
    m, rw = Mutex(), RWMutex()
    for x in (m, rw):
        await spawn(lock_and_end, x)
        go(lock_and_end, x)
    go(rw_read, rw)
    return 3, None


async def rw_read(rw: RWMutex) -> None:
    await rw.rlock()


async def wait_with(m: Mutex, c: Cond) -> None:
    async with m:
        await c.wait()


async def take_two(s: Semaphore) -> None:
    await s.acquire(2)


async def all_other_kinds_of_lock() -> Case:
    m = Mutex()
    wg = WaitGroup()
    wg.add(1)
    s = Semaphore(2)
    await s.acquire(1)
    go(wait_with, m, Cond(m))
    go(wg.wait)
    go(take_two, s)
    return 3, None


async def choose(*chans: Chan[int]) -> None:
    await select(*(c.recv for c in chans), (chans[0].send, 1))


async def selects_and_waits_for_ever() -> Case:
    go(choose, chan(), chan())
    go(nilchan.recv)
    return 2, None


async def receive_beside(c: Chan[Any], other: Chan[Any]) -> None:
    await other.recv()
    await c.recv()


async def a_handle_in_the_buffer_of_a_leaked_channel() -> Case:
    outer, inner = chan(1), chan()
    await outer.send([inner])
    go(receive, inner)
    go(receive_beside, outer, chan())
    return 2, None


async def a_handle_in_a_leaked_map() -> Case:
    inner, m = chan(), Map()
    m.store("key", inner)
    go(receive, inner)
    go(receive_beside, m, chan())
    return 2, None


async def a_context_nobody_can_cancel() -> Case:
    ctx, _ = context.with_cancel(context.background())
    child, _ = context.with_cancel(ctx)
    go(until_done, child)
    return 1, None


async def a_stopped_timer() -> Case:
    t = Timer(100.0)
    t.stop()
    go(receive, t.c)
    return 1, None


# ---- no leaks --------------------------------------------------------------------------------


async def main_holds_the_channel() -> Case:
    c = chan()
    go(receive, c)
    return 0, c


async def sleep_then_send(c: Chan[int]) -> None:
    await sleep(100)
    await c.send(1)


async def a_sleeper_holds_the_channel() -> Case:
    c = chan()
    go(sleep_then_send, c)
    go(receive, c)
    return 0, None


async def until_done(ctx: context.Context) -> None:
    await ctx.done().recv()


async def a_timer_will_fire() -> Case:
    ctx, _ = context.with_timeout(context.background(), 100)
    child, _ = context.with_cancel(ctx)
    go(receive, after(100))
    go(until_done, child)
    go(receive, child.done())
    mpgort.after_func(100, receive, c := chan())
    go(receive, c)
    return 0, None


async def it_will_be_killed_at_its_deadline() -> Case:
    spawn(receive, chan(), timeout=100)
    return 0, None


async def a_handle_in_the_buffer_of_a_channel_of_mains() -> Case:
    outer, inner = chan(1), chan()
    await outer.send({"inner": inner})
    go(receive, inner)
    return 0, outer


async def a_value_that_waits_to_be_sent_to_main() -> Case:
    outer, inner = chan(), chan()
    go(outer.send, inner)
    go(receive, inner)
    return 0, outer


async def main_can_cancel_it() -> Case:
    return 0, spawn(receive, chan())


async def who_awaits_one_that_main_can_cancel() -> Case:
    h = spawn(receive, chan())
    go(wait_for, h)
    return 0, h


async def spin(c: Chan[int], stop: Chan[int]) -> None:
    while not len(stop):
        await mpgort.gosched()


async def one_that_runs_holds_the_channel() -> Case:
    c, stop = chan(), chan(1)
    go(spin, c, stop)
    go(receive, c)
    return 0, stop


async def hold_a_file(c: Chan[int], mine: Chan[int]) -> None:
    with tempfile.TemporaryFile() as _:
        await mine.recv()
        await c.send(1)


async def one_at_home_holds_the_channel() -> Case:
    c = chan()
    go(hold_a_file, c, chan())
    go(receive, c)
    return 0, None


async def lock_and_sleep(m: Mutex) -> None:
    await m.lock()
    del m
    await sleep(100)


async def the_holder_of_a_lock_lives() -> Case:
    m = Mutex()
    go(lock_and_sleep, m)
    while m.try_lock():
        m.unlock()
        await mpgort.gosched()
    go(lock_and_end, m)
    return 0, None


async def children(started: Chan[bool], wait: Chan[int]) -> None:
    async with mpgort.Group() as g:
        g.spawn(receive, chan())
        g.spawn(receive, wait)
        await started.send(True)


async def the_end_of_a_sibling_may_cancel_it() -> Case:
    started, wait = chan(), chan()
    go(children, started, wait)
    await started.recv()
    return 0, wait


# ---- the tests -------------------------------------------------------------------------------

LEAKS = [
    a_sender_whose_receiver_has_returned,
    two_that_wait_for_each_other,
    who_awaits_a_leaked_one,
    a_lock_whose_holder_has_ended,
    all_other_kinds_of_lock,
    selects_and_waits_for_ever,
    a_handle_in_the_buffer_of_a_leaked_channel,
    a_handle_in_a_leaked_map,
    a_context_nobody_can_cancel,
    a_stopped_timer,
]
NONE = [
    main_holds_the_channel,
    a_sleeper_holds_the_channel,
    a_timer_will_fire,
    it_will_be_killed_at_its_deadline,
    a_handle_in_the_buffer_of_a_channel_of_mains,
    a_value_that_waits_to_be_sent_to_main,
    main_can_cancel_it,
    who_awaits_one_that_main_can_cancel,
    one_that_runs_holds_the_channel,
    one_at_home_holds_the_channel,
    the_holder_of_a_lock_lives,
    the_end_of_a_sibling_may_cancel_it,
]


async def ask(case: Callable[[], Awaitable[Case]]) -> tuple[int, list[Leak]]:
    n, held = await case()
    end = time.monotonic() + (10.0 if n else 0.1)
    while len(found := leaks()) < max(n, 1) and time.monotonic() < end:
        await sleep(0.005)
    for _ in range(3):
        again = leaks()
        assert [leak.goid for leak in again] == [leak.goid for leak in found]
    del held
    return n, found


@pytest.mark.parametrize("procs", [0, 2])
@pytest.mark.parametrize("case", LEAKS, ids=lambda f: f.__name__)
def test_a_leak(case: Callable[[], Awaitable[Case]], procs: int) -> None:
    n, found = mpgort.run(ask, case, procs=procs)
    assert len(found) == n, "\n".join(map(str, found))


@pytest.mark.parametrize("procs", [0, 2])
@pytest.mark.parametrize("case", NONE, ids=lambda f: f.__name__)
def test_no_leak(case: Callable[[], Awaitable[Case]], procs: int) -> None:
    n, found = mpgort.run(ask, case, procs=procs)
    assert n == 0 and found == [], "\n".join(map(str, found))


def test_a_leak_prints_as_a_goroutine_of_go_does() -> None:
    _, [leak] = mpgort.run(ask, a_sender_whose_receiver_has_returned, procs=1)
    [(name, file, line)] = leak.stack
    assert (leak.reason, leak.minutes, name, file) == ("chan send", 0, "send_late", __file__)
    assert leak.on.endswith(" with 0 of 0 values")
    assert leak.created is not None and leak.created[:2] == ("give_up", __file__)
    assert str(leak).splitlines() == [
        f"goroutine {leak.goid} [chan send (leaked)]:",
        "send_late(...)",
        f"\t{__file__}:{line}",
        f"created by give_up in goroutine {leak.creator}",
        f"\t{__file__}:{leak.created[2]}",
    ]


# ---- while everything moves ------------------------------------------------------------------


async def serve(requests: Chan[Any]) -> None:
    async for reply, more in requests:
        if more:
            await requests.send((reply, more - 1))  # its handle travels on
        else:
            await reply.send(1)


async def client(requests: Chan[Any], stop: Chan[bool], answered: AtomicInt) -> None:
    n = 0
    while not len(stop):
        reply = chan(n % 2)
        await requests.send((reply, n % 3))
        await reply.recv()  # the other handle is in a buffer, or in somebody's hands
        n = answered.add(1)


async def ask_while_they_talk(clients: int, rounds: int) -> tuple[list[Leak], int]:
    requests, stop, answered = chan(3 * clients), chan(1), AtomicInt()
    for _ in range(4):
        go(serve, requests)
    handles = [spawn(client, requests, stop, answered) for _ in range(clients)]
    found, asked = [], 0
    while answered.load() < rounds or asked < 20:
        found += leaks()
        asked += 1
    await stop.send(True)
    for h in handles:
        await h
    requests.close()
    return found, asked


@pytest.mark.parametrize("seed", [1, 2], indirect=True)
@pytest.mark.parametrize("migrate", ["auto", "always"])
def test_nobody_who_waits_for_an_answer_is_taken_for_a_leak(
    seed: int, migrate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", migrate)
    found, _ = mpgort.run(ask_while_they_talk, 8, 4000, procs=2)
    assert found == [], "\n".join(map(str, found))


# ---- from outside ----------------------------------------------------------------------------


async def give_up_and_wait(said: Chan[bool]) -> None:
    await a_sender_whose_receiver_has_returned()
    await said.send(True)
    await said.recv()


def test_outside_a_goroutine_it_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"leaks\(\) outside a goroutine"):
        leaks()


def test_mpgort_stack_shows_the_leaks_of_a_running_program(program: Any) -> None:
    running = program.start(
        """
        import mpgort
        from mpgort import chan, go

        async def send_late(c):
            await c.send(1)

        async def main():
            go(send_late, chan())
            mine = chan()
            go(mine.recv)
            print("started")
            await mpgort.sleep(30)

        if __name__ == "__main__":
            mpgort.run(main, procs=1)
        """
    )
    assert running.line() == "started"
    end = time.monotonic() + 10
    out = ""
    while "leaked" not in out and time.monotonic() < end:  # until the worker rests
        argv = [sys.executable, "-m", "mpgort", "stack", str(running.pid), "--leaks"]
        out = subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout
    assert out.startswith("goroutine 2 [chan send (leaked)]:\nsend_late(...)\n")
    assert out.count("leaked") == 1 and "\twaits on channel " in out
    running.end()
    running.popen.communicate()
