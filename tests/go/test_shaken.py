"""Ports under the schedule shaker (shm/shake.c), by some seeds; MPGORT_SHAKE=50 takes all by 50.

A sample: one program for each kind of wait, with numbers that keep this file at some seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from test_chan import multi_consumer
from test_chan_programs import chain, first_primes, skynet_sum
from test_mutex import mutex
from test_programs import ken, sieve2
from test_select import doubleselect, stress

import mpgort
from mpgort import _core, chan

PORTS: dict[str, tuple[Callable[..., Any], Any, Callable[[Any], bool]]] = {
    "doubleselect": (doubleselect, 2000, lambda v: v == Counter(range(2000))),
    "selectstress": (stress, 200, lambda v: v == [0] * 4),
    "ken": (ken, [0, 1], lambda v: v == (2 * 36 * 76,) * 2),
    "sieve1": (first_primes, 12, lambda v: v[-1] == 37),
    "sieve2": (sieve2, 12, lambda v: v[-1] == 37),
    "multiconsumer": (multi_consumer, 1000, lambda v: v[0] == 1000 and v[1] == v[2]),
    "goroutines": (chain, 500, lambda v: v == 1),
    "skynet": (skynet_sum, 1000, lambda v: v == 499500),
    "mutex": (mutex, 60, lambda v: all(39 <= n <= 60 for n in v)),
}


@pytest.mark.parametrize("seed", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("name", PORTS)
def test_a_shaken_port_ends_as_it_should(name: str, seed: int) -> None:
    main, arg, right = PORTS[name]
    assert right(mpgort.run(main, arg, procs=2))


async def to_and_fro() -> int:
    c = chan(1)
    for i in range(2000):
        await c.send(i)
        await c.recv()
    preempted: int = _core.current().stats()["preempted"]
    return preempted


@pytest.mark.parametrize("seed", [1], indirect=True)
@pytest.mark.parametrize("procs", [0, 2])
def test_a_shaken_goroutine_is_preempted_long_before_its_slice_is_over(
    seed: int, procs: int
) -> None:
    assert mpgort.run(runs_elsewhere, procs=procs) > 0


async def runs_elsewhere() -> int:
    return int(await mpgort.spawn(to_and_fro))
