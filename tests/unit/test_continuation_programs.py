"""Chains that a running program drops: long after they were encoded, or at its end.

A coroutine that is let go in the usual way closes itself, and its finally blocks run: a second time
if its bytes have gone on elsewhere, or after main's end, where Go runs nothing more."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import continuation_harness as h
import pytest

import mpgort

h.require_frames()


class Fickle:
    """Can be pickled once."""

    asked = False

    def __reduce__(self) -> Any:
        if self.asked:
            raise TypeError("not again")
        self.asked = True
        return (Fickle, ())


def note(path: str, text: str) -> None:
    with open(path, "a") as out:
        out.write(text)


async def waits(gate: Any, path: str, make: Any) -> int:
    thing = make()
    try:
        return int(await gate.recv())
    finally:
        note(path, ".")
        del thing


async def many_wait(n: int, path: str, make: Any) -> str:
    """More than an M keeps warm, so that chains are dropped long after they were encoded."""
    gate = mpgort.chan()
    handles = [mpgort.spawn(waits, gate, path, make) for _ in range(n)]
    for _ in range(20):
        await mpgort.gosched()
    early = Path(path).read_text()
    for i in range(n):
        await gate.send(i)
    results = [await h for h in handles]
    assert sorted(results) == list(range(n))
    return early


@pytest.mark.parametrize("make", [int, Fickle])
@pytest.mark.parametrize("procs", [0, 1, 2])
def test_finally_runs_once_though_chains_are_dropped_after_others_were_encoded(
    procs: int, make: Any, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.write_text("")
    assert mpgort.run(many_wait, 300, str(path), make, procs=procs) == ""
    assert path.read_text() == "." * 300


async def stays(path: str) -> None:
    async def below() -> None:
        try:
            await mpgort.chan().recv()
        finally:
            note(path, "below")

    def generator() -> Any:
        try:
            yield 1
        finally:
            note(path, "generator")

    held = threading.Lock()
    values = generator()
    next(values)
    try:
        await below()
    finally:
        note(path, "above")
    del held


async def leaves_it(path: str) -> None:
    mpgort.go(stays, path)
    for _ in range(5):
        await mpgort.gosched()


@pytest.mark.parametrize("procs", [0, 1])
def test_end_of_the_program_runs_no_finally_of_a_goroutine_at_home(
    procs: int, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.write_text("")
    mpgort.run(leaves_it, str(path), procs=procs)
    assert path.read_text() == ""
