"""mpgort.runtime: the contracts of gopark, goready, mcall and neighbours, one test a sentence.

Each would fail if the order it names changed. All run in one process (procs=0) and with two
workers.
"""

from __future__ import annotations

from typing import Any

import pytest

import mpgort
from mpgort import chan, go, gosched, runtime, sleep, spawn
from mpgort.runtime import (
    Grunnable,
    Grunning,
    Gwaiting,
    WaitReason,
    acquirem,
    casgstatus,
    dropg,
    execute,
    getg,
    globrunqput,
    gopark,
    goready,
    mcall,
    park_m,
    releasem,
    schedule,
)

THING = WaitReason.register("waiting for my thing")


@pytest.fixture(params=[0, 2], ids=["procs=0", "procs=2"])
def run(request: pytest.FixtureRequest) -> Any:
    return lambda main, *args: mpgort.run(main, *args, procs=request.param)


async def in_worker(fn: Any, *args: Any) -> Any:
    return await spawn(fn, *args)


# ---- gopark --------------------------------------------------------------------------------------


async def statuses_in_unlockf() -> list[Any]:
    seen: list[Any] = []
    lock = object()

    def unlockf(g: runtime.G, given: object) -> bool:
        seen.extend([g.status, given is lock, getg()])
        return False

    await gopark(unlockf, lock, THING)
    seen.append(getg().status)
    return seen


def test_unlockf_runs_after_the_goroutine_is_waiting_with_that_very_lock_on_the_scheduler_stack(
    run: Any,
) -> None:
    assert run(statuses_in_unlockf) == [Gwaiting, True, None, Grunning]


def test_unlockf_sees_the_same_in_a_goroutine_on_a_worker(run: Any) -> None:
    assert run(in_worker, statuses_in_unlockf) == [Gwaiting, True, None, Grunning]


async def false_resumes_before_others() -> list[str]:
    log: list[str] = []
    order = chan(10)

    async def other() -> None:
        await order.send("other")

    go(other)
    await gopark(lambda g, lock: False, None, THING)
    await order.send("self")
    log.append(await order.recv())
    log.append(await order.recv())
    return log


def test_a_false_unlockf_resumes_the_goroutine_at_once_on_its_own_time_slice() -> None:
    assert mpgort.run(false_resumes_before_others, procs=0) == ["self", "other"]


async def readied_from_unlockf() -> Any:
    def unlockf(g: runtime.G, lock: object) -> bool:
        goready(g, ("from", "unlockf"))
        return True

    return await gopark(unlockf, None, THING)


def test_goready_inside_unlockf_is_legal_and_its_value_is_what_gopark_returns(run: Any) -> None:
    assert run(readied_from_unlockf) == ("from", "unlockf")
    assert run(in_worker, readied_from_unlockf) == ("from", "unlockf")


async def unlockf_raises() -> str:
    def unlockf(g: runtime.G, lock: object) -> bool:
        raise ZeroDivisionError("in unlockf")

    try:
        await gopark(unlockf, None, THING)
    except ZeroDivisionError as e:
        return str(e)
    return "nothing raised"


def test_an_exception_in_unlockf_is_raised_in_the_goroutine(run: Any) -> None:
    assert run(unlockf_raises) == "in unlockf"
    assert run(in_worker, unlockf_raises) == "in unlockf"


async def parker(out: mpgort.Chan) -> Any:
    await out.send(getg())
    return await gopark(None, None, THING)


async def ready_other() -> Any:
    out = chan(1)
    h = spawn(parker, out)
    g = await out.recv()
    while h.status() != "waiting for my thing":
        await gosched()
    goready(g, {"n": 1})
    return await h


def test_goready_from_another_goroutine_passes_a_value_by_value(run: Any) -> None:
    assert run(ready_other) == {"n": 1}


async def ready_wrong() -> list[str]:
    errors = []
    out = chan(1)
    blocked = chan()

    async def in_chan() -> None:
        await out.send(getg())
        await blocked.recv()

    h = spawn(in_chan)
    g = await out.recv()
    while h.status() != "chan receive":
        await gosched()
    try:
        goready(g)
    except RuntimeError as e:
        errors.append(str(e))
    blocked.close()
    await h
    for victim in (g, getg()):
        try:
            goready(victim)
        except RuntimeError as e:
            errors.append(str(e))
    return errors


def test_goready_of_a_goroutine_that_is_not_in_gopark_is_an_error(run: Any) -> None:
    assert run(ready_wrong) == ["bad g->status in ready"] * 3


async def park_when_not_running() -> str:
    said: list[str] = []

    def unlockf(g: runtime.G, lock: object) -> bool:
        try:
            gopark(None, None, THING).__await__().__next__()
        except RuntimeError as e:
            said.append(str(e))
        return False

    await gopark(unlockf, None, THING)
    return said[0]


def test_gopark_by_a_goroutine_that_is_not_running_is_an_error(run: Any) -> None:
    assert run(park_when_not_running) == "gopark: bad g status"


def test_timers_expire_while_two_goroutines_keep_the_scheduler_busy() -> None:
    async def pinger(a: mpgort.Chan, b: mpgort.Chan) -> None:
        async for v in a:
            await b.send(v)

    async def main() -> bool:
        a, b, stop = chan(), chan(), chan(1)

        async def timer() -> None:
            await sleep(0.02)
            await stop.send(True)

        go(pinger, a, b)
        go(timer)
        while len(stop) == 0:
            await a.send(1)
            await b.recv()
        return True

    assert mpgort.run(main, procs=0)


async def schedules_in_unlockf() -> list[Any]:
    seen: list[Any] = []
    out = chan(1)

    def schedules(g: runtime.G, lock: object) -> bool:
        schedule()
        seen.append("schedule returned")
        return False

    def executes(g: runtime.G, other: runtime.G) -> bool:
        casgstatus(other, Gwaiting, Grunnable)
        execute(other)
        seen.append("execute returned")
        return False

    async def wakes(g: runtime.G, value: object) -> None:
        while g.status != Gwaiting:
            await gosched()
        goready(g, value)

    go(wakes, getg(), 1)
    seen.append(await gopark(schedules, None, THING))
    h = spawn(parker, out)
    other = await out.recv()
    while h.status() != "waiting for my thing":
        await gosched()
    go(wakes, getg(), 2)
    seen.append(await gopark(executes, other, THING))
    await h
    return seen


def test_schedule_and_execute_in_unlockf_do_not_return_and_the_goroutine_stays_parked() -> None:
    assert mpgort.run(schedules_in_unlockf, procs=0) == [1, 2]


async def execute_is_swallowed() -> str:
    def fn(g: runtime.G) -> None:
        casgstatus(g, Grunning, Grunnable)
        try:
            execute(g)
        except BaseException:
            pass

    try:
        await mcall(fn)
    except RuntimeError as e:
        return str(e)
    return "no error"


def test_a_goroutine_that_execute_was_to_run_is_not_lost_when_fn_returns_all_the_same(
    run: Any,
) -> None:
    assert run(execute_is_swallowed) == "runtime: mcall function returned"
    assert run(in_worker, execute_is_swallowed) == "runtime: mcall function returned"


# ---- mcall ---------------------------------------------------------------------------------------


async def yield_by_hand() -> list[str]:
    log = chan(10)

    def fn(g: runtime.G) -> None:
        casgstatus(g, Grunning, Grunnable)
        dropg()
        globrunqput(g)
        schedule()
        log.close()  # must not run

    async def other() -> None:
        await log.send("other")

    go(other)
    await mcall(fn)
    await log.send("self")
    return [await log.recv(), await log.recv()]


@pytest.mark.usefixtures("auto")  # main, at home, has a queue apart from what is light
def test_a_yield_can_be_written_with_mcall() -> None:
    assert mpgort.run(yield_by_hand, procs=0) == ["other", "self"]


def test_a_yield_by_mcall_works_on_workers() -> None:
    assert sorted(mpgort.run(in_worker, yield_by_hand, procs=2)) == ["other", "self"]


async def mcall_returns() -> str:
    try:
        await mcall(lambda g: None)
    except RuntimeError as e:
        return str(e)
    return "no error"


def test_an_mcall_function_that_returns_is_an_error(run: Any) -> None:
    assert run(mcall_returns) == "runtime: mcall function returned"
    assert run(in_worker, mcall_returns) == "runtime: mcall function returned"


async def mcall_on_g0() -> str:
    said = []

    def fn(g: runtime.G) -> None:
        try:
            mcall(lambda g: None)
        except RuntimeError as e:
            said.append(str(e))
        execute_after_ready(g)

    def execute_after_ready(g: runtime.G) -> None:
        casgstatus(g, Grunning, Grunnable)
        execute(g, True)

    await mcall(fn)
    return said[0]


def test_mcall_on_the_scheduler_stack_is_an_error_and_execute_runs_that_goroutine_next() -> None:
    assert mpgort.run(mcall_on_g0, procs=0) == "runtime: mcall called on m->g0 stack"


async def park_m_by_hand(out: mpgort.Chan) -> Any:
    await out.send(getg())
    return await mcall(park_m)


async def ready_park_m() -> Any:
    out = chan(1)
    h = spawn(park_m_by_hand, out)
    g = await out.recv()
    while g.status != Gwaiting:
        await gosched()
    goready(g, 7)
    return await h


def test_park_m_parks_a_goroutine_that_goready_wakes(run: Any) -> None:
    assert run(ready_park_m) == 7


async def scheduler_calls_on_a_goroutine() -> list[str]:
    said = []
    for call in (schedule, lambda: execute(getg()), lambda: park_m(getg()), dropg):
        try:
            call()
        except RuntimeError as e:
            said.append(str(e).split(":")[0])
    return said


def test_schedule_execute_park_m_and_dropg_are_refused_on_a_goroutines_stack(run: Any) -> None:
    assert run(scheduler_calls_on_a_goroutine) == ["schedule", "execute", "park_m", "dropg"]


# ---- statuses, locks, preemption -----------------------------------------------------------------


async def bad_cas() -> list[str]:
    said = []
    for old, new in ((Gwaiting, Grunnable), (Grunning, runtime.Gdead), (Grunning, Grunning)):
        try:
            casgstatus(getg(), old, new)
        except RuntimeError as e:
            said.append(str(e))
    return said


def test_casgstatus_names_both_statuses_of_a_bad_move(run: Any) -> None:
    first, dead, same = run(bad_cas)
    assert first.startswith("casgstatus: Gwaiting -> Grunnable: bad old status")
    assert first.endswith("is in Grunning")
    assert "Grunning -> Gdead: illegal move" in dead
    assert "Grunning -> Grunning: illegal move" in same


async def park_under_lock() -> list[Any]:
    ch = chan(1)
    m = acquirem()
    m2 = acquirem()
    assert m == m2 and len({m, m2}) == 1
    seen: list[Any] = [m.locks]
    await ch.send(1)  # does not park: allowed
    seen.append(await ch.recv())
    releasem(m2)
    for awaitable in (ch.recv(), gosched(), sleep(0.001), gopark(None, None, THING)):
        try:
            await awaitable
        except RuntimeError as e:
            seen.append(str(e))
    releasem(m)
    seen.append(m.locks)
    await gosched()
    return seen


def test_nothing_parks_under_acquirem_and_what_does_not_park_is_allowed(run: Any) -> None:
    expect = [2, 1, *["schedule: holding locks"] * 4, 0]
    assert run(park_under_lock) == expect
    assert run(in_worker, park_under_lock) == expect


async def leaves_locked(fails: bool) -> None:
    acquirem()
    if fails:
        raise KeyError("of its own")


async def others_after_one_that_ended_locked() -> list[Any]:
    said = []
    for fails in (False, True):
        try:
            await spawn(leaves_locked, fails)
        except (RuntimeError, KeyError) as e:
            said.append(str(e))
    for _ in range(10):  # on whichever M: each may park
        await spawn(gosched)
    return said


def test_a_goroutine_that_ends_under_acquirem_fails_and_leaves_no_lock_behind(run: Any) -> None:
    """Go proc.go schedule: "schedule: holding locks". Milder: it was that goroutine's mistake."""
    assert run(others_after_one_that_ended_locked) == [
        "schedule: holding locks: the goroutine has ended between acquirem() and releasem()",
        "'of its own'",
    ]


async def scheduler_stack_under_lock() -> list[str]:
    said = []

    def locks(g: runtime.G, lock: object = None) -> bool:
        acquirem()
        return False

    def locks_and_schedules(g: runtime.G) -> None:
        casgstatus(g, Grunning, Grunnable)
        dropg()
        globrunqput(g)
        acquirem()
        schedule()

    for awaitable in (gopark(locks, None, THING), mcall(locks), mcall(locks_and_schedules)):
        try:
            await awaitable
        except RuntimeError as e:
            said.append(str(e))
    await gosched()
    return said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_runs_on_the_scheduler_stack_may_leave_no_lock_behind_either() -> None:
    assert mpgort.run(scheduler_stack_under_lock, procs=0)[:2] == ["schedule: holding locks"] * 2


async def preempt_survives_acquirem() -> list[str]:
    order = chan(10)

    async def other() -> None:
        await order.send("other")

    go(other)
    m = acquirem()
    runtime._core._request_preempt()
    await order.send("under lock")
    releasem(m)
    await order.send("at the preemption")
    await order.send("after it")
    return [await order.recv() for _ in range(4)]


@pytest.mark.usefixtures("auto")  # main, at home, has a queue apart from what is light
def test_a_preempt_request_under_acquirem_takes_effect_when_locks_reach_zero() -> None:
    assert mpgort.run(preempt_survives_acquirem, procs=0) == [
        "under lock",
        "at the preemption",
        "other",
        "after it",
    ]


# ---- wait reasons --------------------------------------------------------------------------------


def test_registering_a_reason_twice_is_an_error_and_built_in_texts_are_taken() -> None:
    with pytest.raises(ValueError, match="registered already"):
        WaitReason.register("waiting for my thing")
    with pytest.raises(ValueError, match="registered already"):
        WaitReason.register("chan receive")


def test_built_in_reasons_have_texts_of_their_own() -> None:
    texts = [t for t in runtime._core.wait_reasons if t]
    assert len(texts) == len(set(texts))
    assert "chan receive (nil chan)" in texts


async def park_for_ever() -> None:
    await gopark(None, None, THING)


@pytest.mark.usefixtures("auto")
def test_a_reason_shows_in_the_deadlock_text_with_function_and_line(run: Any) -> None:
    with pytest.raises(mpgort.Deadlock) as e:
        run(in_worker, park_for_ever)
    text = str(e.value)
    assert text.startswith("all goroutines are asleep - deadlock!")
    assert "goroutine 1 [join]:" in text
    assert "[waiting for my thing]:" in text
    assert "park_for_ever(...)\n\t" + __file__ in text


# ---- trace -----------------------------------------------------------------------------------


async def traced_park(unlocks: bool) -> list[runtime.TraceEvent]:
    runtime.trace_start()
    await runtime.gopark(
        lambda g, lock: lock and runtime.goready(g) is None,
        unlocks,
        runtime.WaitReason.CHAN_RECEIVE,
        trace_ev="mine",
    )
    return runtime.trace_stop()


@pytest.mark.parametrize("unlocks", [True, False])
def test_a_trace_has_the_park_before_the_unpark_and_its_stack(run: Any, unlocks: bool) -> None:
    """Go proc.go park_m: traceGoPark before the status changes; a park undone by unlockf records
    the unpark."""
    events = run(traced_park, unlocks)
    mine = [e for e in events if e.goid == 1]
    assert [e.event for e in mine] == ["GoPark", "GoUnpark", "GoStart"]
    park = mine[0]
    assert (park.reason, park.name) == ("chan receive", "mine")
    assert [frame[0] for frame in park.stack] == ["traced_park"]
    assert [e.time for e in events] == sorted(e.time for e in events)


async def skip(n: int) -> tuple[str, ...]:
    async def inner() -> None:
        await runtime.gopark(
            lambda g, lock: False, None, runtime.WaitReason.CHAN_RECEIVE, traceskip=n
        )

    runtime.trace_start()
    await inner()
    park = next(e for e in runtime.trace_stop() if e.event == "GoPark")
    return tuple(frame[0].split(".")[-1] for frame in park.stack)


@pytest.mark.parametrize(("n", "names"), [(0, ("inner", "skip")), (1, ("skip",)), (2, ()), (9, ())])
def test_traceskip_leaves_out_the_innermost_frames(n: int, names: tuple[str, ...]) -> None:
    assert mpgort.run(skip, n, procs=0) == names


async def trace_across(n: int) -> list[runtime.TraceEvent]:
    there, back = mpgort.chan(), mpgort.chan()

    async def echo() -> None:
        async for ball in there:
            await back.send(ball)

    runtime.trace_start()
    mpgort.go(echo)
    for i in range(n):
        await there.send(i)
        await back.recv()
    there.close()
    return runtime.trace_stop()


def test_a_trace_of_two_ms_is_one_story_per_goroutine(run: Any) -> None:
    """Go trace_test.go: whatever the interleaving, each goroutine's events follow its life."""
    follows = {
        "GoCreate": {"GoStart"},
        "GoStart": {"GoPark", "GoSched", "GoPreempt", "GoEnd"},
        "GoPark": {"GoUnpark"},
        "GoUnpark": {"GoStart"},
        "GoSched": {"GoStart"},
        "GoPreempt": {"GoStart"},
        "GoEnd": set(),
    }
    events = run(trace_across, 200)
    for goid in {e.goid for e in events}:
        story = [e.event for e in events if e.goid == goid]
        for event, after in zip(story, story[1:], strict=False):
            assert after in follows[event], (goid, event, after)
