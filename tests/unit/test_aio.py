"""asyncio as a guest: rt.call, rt.stream and `await handle` in a running loop."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import mpgort
from mpgort import Chan, Killed, Runtime, sleep, spawn

LIMIT = 20.0


@pytest.fixture(params=[0, 2], ids=lambda n: f"procs={n}")
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(procs=request.param) as runtime:
        yield runtime


def aio(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, LIMIT))


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.001)


def waiting_in(rt: Runtime, reason: str) -> int:
    """Goroutines, not the thread that a stream receives in."""
    return len(re.findall(rf"^goroutine \d+ \[{reason}", rt.stack(), re.M))


async def double(x: int, plus: int = 0) -> int:
    await sleep(0.001)
    return 2 * x + plus


def fails(text: str) -> None:
    raise ValueError(text)


def stops() -> None:
    raise StopIteration("no iterator")


# ---- call ------------------------------------------------------------------------------------


def test_call_gives_the_value_of_a_coroutine_function_and_of_a_plain_one(rt: Runtime) -> None:
    async def main() -> list[Any]:
        return [
            await rt.call(double, 4, plus=1),
            await rt.call(pow, 2, 10),
            await rt.call(lambda: "x"),
        ]

    assert aio(main()) == [9, 1024, "x"]


def test_call_raises_the_exception_of_its_goroutine_with_the_remote_traceback(rt: Runtime) -> None:
    async def main() -> None:
        await rt.call(fails, "here")

    with pytest.raises(ValueError, match="here") as e:
        aio(main())
    assert "in fails" in str(e.value.__cause__)


def test_a_stop_iteration_does_not_get_stuck_in_a_future(rt: Runtime) -> None:
    async def main() -> None:
        await rt.call(stops)

    with pytest.raises(RuntimeError, match="StopIteration"):
        aio(main())


def test_what_is_no_function_is_refused_at_the_call(rt: Runtime) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="call: a function is needed, not 3"):
            await rt.call(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"call\(f, x\), not call\(f\(x\)\)"):
            await rt.call(double(3))  # type: ignore[arg-type]
        with pytest.raises(mpgort.SerializationError):
            await rt.call(double, threading.Lock())  # type: ignore[arg-type]

    aio(main())


def compute(x: int) -> int:
    end = time.perf_counter() + 0.005
    while time.perf_counter() < end:
        pass
    return x


def test_a_ticker_ticks_while_a_hundred_calls_run() -> None:
    async def main(rt: Runtime) -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        values = await asyncio.gather(*(rt.call(compute, i) for i in range(100)))
        ticker.cancel()
        return values, ticks

    for procs in 0, 2:
        with Runtime(procs=procs) as rt:
            values, ticks = aio(main(rt))
        assert values == list(range(100))
        assert ticks >= 10  # a loop that is blocked has ticked once


async def noticed(begun: Chan[int], out: Chan[str]) -> None:
    try:
        await begun.send(1)
        await sleep(1000)
    except mpgort.Cancelled:
        out.close()
        raise


def test_cancelling_the_task_cancels_the_goroutine(rt: Runtime) -> None:
    async def main() -> None:
        begun, out = rt.chan(), rt.chan()
        task = asyncio.create_task(rt.call(noticed, begun, out))
        assert await anext(aiter(rt.stream(begun))) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [v async for v in rt.stream(out)] == []  # closed by its except block

    aio(main())


def test_a_call_that_has_not_begun_never_does_once_its_task_is_cancelled() -> None:
    async def main(rt: Runtime, path: str) -> None:
        gate, begun = rt.chan(), rt.chan(1)
        first = asyncio.create_task(rt.call(stand, begun, gate))
        assert await anext(aiter(rt.stream(begun))) == 1  # the only worker is taken
        second = asyncio.create_task(rt.call(os.mkdir, path))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.close()
        await first

    path = f"/tmp/mpgort-test-aio-{os.getpid()}"
    with Runtime(procs=1) as rt:
        aio(main(rt, path))
    assert not os.path.exists(path)


def stand(begun: Chan[int], gate: Chan[int]) -> None:
    begun.put(1)
    while True:
        try:
            gate.get(0)
        except TimeoutError:
            continue  # never parks, so it holds its P
        except mpgort.Closed:
            return


def test_a_timeout_of_asyncio_ends_a_call(rt: Runtime) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rt.call(sleep, 1000), 0.02)

    aio(main())
    # The block's end drains: it would wait for the sleeper if that were not cancelled.


def test_calls_that_wait_at_the_end_of_the_runtime_raise_killed() -> None:
    async def main(procs: int) -> None:
        rt = Runtime(procs=procs)
        ch = rt.chan()
        calls = [asyncio.create_task(rt.call(ch.recv)) for _ in range(3)]
        stream: Any = rt.stream(rt.chan())
        calls.append(asyncio.create_task(anext_of(stream)))
        await until(lambda: waiting_in(rt, "chan receive") == 3 and stream._fetch)
        await asyncio.to_thread(rt.shutdown, False)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(e) for e in ends] == [Killed] * 4
        with pytest.raises(Killed):
            await rt.call(double, 1)

    for procs in 0, 2:
        aio(main(procs))


def test_a_panic_ends_what_waits_and_what_comes_later() -> None:
    async def main(rt: Runtime) -> None:
        ch = rt.chan()
        calls = [rt.call(ch.recv), rt.call(ch.recv), anext_of(rt.stream(rt.chan()))]
        tasks = [asyncio.create_task(c) for c in calls]
        await until(lambda: waiting_in(rt, "chan receive") == 2)
        rt.go(fails, "a panic")
        ends = await asyncio.gather(*tasks, rt.call(ch.recv), return_exceptions=True)
        assert [type(e) for e in ends] == [mpgort.GoroutinePanic] * 4

    rt = Runtime(procs=2)
    try:
        aio(main(rt))
    finally:
        rt.shutdown(drain=False)


async def anext_of(stream: Any) -> Any:
    return await anext(stream)


async def die() -> None:
    os._exit(3)


def test_a_dead_worker_fails_its_own_call_only() -> None:
    async def main(rt: Runtime) -> list[Any]:
        return await asyncio.gather(
            rt.call(double, 1), rt.call(die), rt.call(double, 2), return_exceptions=True
        )

    with Runtime(procs=2) as rt:
        one, dead, two = aio(main(rt))
    assert (one, two) == (2, 4)
    assert isinstance(dead, mpgort.MDied) and dead.exitcode == 3


def test_one_runtime_serves_loops_in_several_threads(rt: Runtime) -> None:
    async def main(n: int) -> list[int]:
        return await asyncio.gather(*(rt.call(double, n + i) for i in range(20)))

    results: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: aio(main(n))})) for n in (0, 100)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(LIMIT)
    assert results == {n: [2 * (n + i) for i in range(20)] for n in (0, 100)}


# ---- await handle ----------------------------------------------------------------------------


def test_a_handle_can_be_awaited_in_a_loop_by_several(rt: Runtime) -> None:
    async def wait(h: Any) -> Any:
        return await h

    async def main() -> list[Any]:
        h = rt.spawn(double, 21)
        return [*await asyncio.gather(h, wait(h), wait(h)), await h]

    assert aio(main()) == [42] * 4


def test_awaiting_a_handle_raises_its_exception_however_late(rt: Runtime) -> None:
    async def main() -> None:
        h = rt.spawn(fails, "late")
        for _ in range(2):
            with pytest.raises(ValueError, match="late"):
                await h
        h = rt.spawn(sleep, 1000)
        task = asyncio.ensure_future(h)
        await asyncio.sleep(0.01)
        h.cancel()
        with pytest.raises(mpgort.Cancelled):
            await task

    aio(main())


def test_cancelling_who_awaits_a_handle_leaves_its_goroutine_alone(rt: Runtime) -> None:
    async def main() -> None:
        ch = rt.chan()
        h = rt.spawn(ch.recv)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(h, 0.02)
        await rt.call(ch.send, "still there")
        assert await h == "still there"

    aio(main())


def test_a_result_can_be_awaited_after_the_end_of_its_runtime(rt: Runtime) -> None:
    async def main() -> None:
        done, pending = rt.spawn(double, 4), rt.spawn(sleep, 1000)
        assert await done == 8
        rt.shutdown(drain=False)
        assert await done == 8
        with pytest.raises(Killed):
            await pending

    aio(main())


async def awaits_a_child() -> int:
    return int(await spawn(double, 3))


def test_a_goroutine_awaits_as_ever_beside_a_loop(rt: Runtime) -> None:
    async def main() -> Any:
        return await rt.call(awaits_a_child)

    assert aio(main()) == 6


def test_awaiting_a_handle_without_a_loop_says_what_is_missing(rt: Runtime) -> None:
    async def waits(h: Any) -> None:
        await h

    with pytest.raises(RuntimeError, match="outside a goroutine"):
        waits(rt.spawn(double, 1)).send(None)


# ---- stream ----------------------------------------------------------------------------------


async def feed(ch: Chan[int], upto: int) -> None:
    for i in range(upto):
        await ch.send(i)
        if i % 50 == 0:
            await sleep(0.001)
    ch.close()


@pytest.mark.parametrize("size", [0, 7])
def test_a_stream_gives_every_message_in_order_and_ends_with_the_channel(
    rt: Runtime, size: int
) -> None:
    async def main() -> list[int]:
        ch = rt.chan(size)
        rt.go(feed, ch, 500)
        return [v async for v in rt.stream(ch)]

    assert aio(main()) == list(range(500))


def test_a_stream_that_never_runs_dry_leaves_the_loop_to_others(rt: Runtime) -> None:
    async def main() -> None:
        ch = rt.chan(1000)
        for i in range(1000):
            ch.put(i)
        turns = []

        async def other() -> None:
            for _ in range(5):
                turns.append(len(ch))
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        stream = rt.stream(ch)
        for i in range(1000):
            assert await anext(stream) == i
        assert task.done() and turns[-1] > 0

    aio(main())


def test_a_waiter_that_is_cancelled_again_and_again_loses_no_message(rt: Runtime) -> None:
    async def main() -> None:
        ch = rt.chan()
        rt.go(feed, ch, 300)
        stream, got = rt.stream(ch), []
        cancelled = 0
        while True:
            task = asyncio.create_task(anext_of(stream))
            for _ in range(len(got) % 4):
                await asyncio.sleep(0)
            task.cancel()
            try:
                got.append(await task)
            except asyncio.CancelledError:
                cancelled += 1
                if cancelled % 3 == 0:
                    try:
                        got.append(await anext(stream))
                    except StopAsyncIteration:
                        break
            except StopAsyncIteration:
                break
        assert got == list(range(300))
        assert cancelled

    aio(main())


def test_several_tasks_share_a_stream_and_each_message_goes_to_one(rt: Runtime) -> None:
    async def take(stream: Any) -> list[int]:
        return [v async for v in stream]

    async def main() -> list[list[int]]:
        ch = rt.chan()
        stream = rt.stream(ch)
        tasks = [asyncio.create_task(take(stream)) for _ in range(3)]
        rt.go(feed, ch, 200)
        return await asyncio.gather(*tasks)

    parts = aio(main())
    assert sorted(v for part in parts for v in part) == list(range(200))


def test_an_abandoned_stream_lets_go_of_its_channel(rt: Runtime) -> None:
    async def main() -> None:
        ch = rt.chan()
        stream: Any = rt.stream(ch)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.02)
        await until(lambda: not stream._fetch)
        rt.go(feed, ch, 3)
        assert await rt.call(collect, ch) == [0, 1, 2]

    aio(main())


async def collect(ch: Chan[int]) -> list[int]:
    return [v async for v in ch]


def test_a_stream_of_what_cannot_be_received_from_is_refused(rt: Runtime) -> None:
    with pytest.raises(TypeError, match="receive on a send-only channel"):
        rt.stream(rt.chan().send_only())

    async def main() -> None:
        with pytest.raises(mpgort.ChanError, match="nil channel"):
            await anext(rt.stream(mpgort.nilchan))

    aio(main())


# ---- the end ---------------------------------------------------------------------------------


def threads() -> int:
    return sum(t.name == "mpgort-asyncio" for t in threading.enumerate())


def test_the_waiting_thread_ends_when_there_is_nothing_to_wait_for(rt: Runtime) -> None:
    async def main() -> None:
        await until(lambda: not threads())  # those of other tests
        for _ in range(2):
            assert await rt.call(double, 1) == 2
            assert threads() == 1
            await until(lambda: not threads())

    aio(main())


SERVER = """
    import asyncio, sys
    import mpgort

    async def feed(ch):
        for i in range(100):
            await ch.send(i)
        ch.close()

    async def main(rt):
        calls = [asyncio.create_task(rt.call(pow, i, 2)) for i in range(50)]
        ch = rt.chan()
        rt.go(feed, ch)
        print(sum([v async for v in rt.stream(ch)]), sum(await asyncio.gather(*calls)))
        if sys.argv[2] == "leave":
            asyncio.create_task(rt.call(mpgort.sleep, 1000))
            asyncio.create_task(anext(rt.stream(rt.chan())))
            await asyncio.sleep(0.05)

    if __name__ == "__main__":
        rt = mpgort.Runtime(procs=int(sys.argv[1]))
        asyncio.run(main(rt))
        if sys.argv[2] == "end":
            rt.shutdown()
"""


@pytest.mark.parametrize("procs", ["0", "2"])
@pytest.mark.parametrize("how", ["end", "leave"])
def test_a_program_with_a_loop_leaves_nothing_behind(program: Any, procs: str, how: str) -> None:
    r = program(SERVER, procs, how)
    assert (r.status, r.out, r.err) == (0, "4950 40425\n", "")
