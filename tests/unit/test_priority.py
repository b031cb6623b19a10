"""spawn(priority=): batch work waits until there is no other, and never for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mpgort
from mpgort import Chan, chan, go, gosched, spawn

Run = Callable[..., Any]


async def tell(out: Chan[str], name: str) -> None:
    await out.send(name)


async def fill(out: Chan[str]) -> None:
    for _ in range(10):
        spawn(tell, out, "batch", priority="batch")
    for _ in range(10):
        spawn(tell, out, "normal")


@pytest.mark.parametrize("procs", [0, 1])
def test_batch_runs_after_all_that_is_normal_though_it_came_first(procs: int) -> None:
    async def main() -> list[str]:
        out: Chan[str] = chan(20)
        await spawn(fill, out)
        return [await out.recv() for _ in range(20)]

    assert mpgort.run(main, procs=procs) == ["normal"] * 10 + ["batch"] * 10


async def spin(stop: Chan[None]) -> None:
    while not len(stop):
        await gosched()


async def chain(stop: Chan[None]) -> None:
    """Each is the next one's creator: rings and runnext are never empty."""
    if not len(stop):
        go(chain, stop)


async def work(n: int) -> int:
    for _ in range(n):
        await gosched()
    return n


@pytest.mark.parametrize("busy", [spin, chain])
def test_batch_goes_on_beside_normal_work_that_never_ends(run: Run, busy: Any) -> None:
    async def main() -> list[int]:
        stop: Chan[None] = chan(1)
        for _ in range(4):
            go(busy, stop)
        hs = [spawn(work, 5, priority="batch") for _ in range(5)]
        got = [await h for h in hs]
        await stop.send(None)
        return got

    assert run(main) == [5] * 5


def test_normal_goes_on_beside_batch_work_that_never_ends(run: Run) -> None:
    async def main() -> int:
        stop: Chan[None] = chan(1)
        for _ in range(4):
            spawn(spin, stop, priority="batch")
        n = await spawn(work, 50)
        await stop.send(None)
        return n

    assert run(main) == 50


def test_every_batch_goroutine_runs_once(run: Run) -> None:
    async def main() -> list[int]:
        hs = [spawn(work, i, priority="batch") for i in range(300)]
        return [await h for h in hs]

    assert run(main) == list(range(300))


@pytest.mark.parametrize("how", [{}, {"priority": "normal"}])
def test_what_batch_work_starts_is_batch_unless_told(how: Any) -> None:
    async def batch(out: Chan[str]) -> None:
        go(tell, out, "last")
        spawn(tell, out, "its own", **how)
        await spawn(normal, out, priority="normal")

    async def normal(out: Chan[str]) -> None:
        await out.send("normal")

    async def main() -> list[str]:
        out: Chan[str] = chan(3)
        await spawn(batch, out, priority="batch")
        return [await out.recv() for _ in range(3)]

    order = mpgort.run(main, procs=1)
    normals = {"normal", "its own"} if how else {"normal"}
    assert set(order[: len(normals)]) == normals and set(order) == {"normal", "its own", "last"}


def test_a_runtime_takes_it_too() -> None:
    with mpgort.Runtime(procs=1) as rt:
        assert rt.spawn(work, 3, priority="batch").result(timeout=30) == 3


@pytest.mark.parametrize(
    "value, error, text",
    [("high", ValueError, '"normal" or "batch"'), (1, TypeError, "functools.partial")],
)
def test_another_class_is_refused_by_name(value: Any, error: type, text: str) -> None:
    async def main() -> None:
        with pytest.raises(error, match=text):
            spawn(work, 1, priority=value)

    mpgort.run(main, procs=0)
