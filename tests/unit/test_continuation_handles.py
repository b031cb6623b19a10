"""The references that bytes hold on channels are right on every path: encoded and read, encoded
again after a first try, refused, thrown away unread, read half way.

Each path runs many times in a program; in the end the heap must hold as many blocks as before. A
reference given back twice ends the program at once (shm_obj_unref)."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import wait_until

from mpgort import Chan, Runtime, SerializationError, chan, gosched, nilchan, spawn

RECENT = 64  # handles that an M keeps for a while (CORE_RECENT)


@dataclass(slots=True)
class Slotted:
    """Falls to the pickle."""

    ch: Chan[Any]
    more: Any = None


@dataclass
class Plain:
    ch: Chan[Any]
    more: Any = None


class Bomb:
    """Is made by a call that fails."""

    def __init__(self, ch: Chan[Any]) -> None:
        self.ch = ch

    def __reduce__(self) -> Any:
        return explode, (self.ch,)


def explode(ch: Chan[Any]) -> None:
    raise ValueError("in the middle of it")


class Refuses:
    def __reduce__(self) -> Any:
        raise TypeError("not me")


async def message(make: Callable[[Chan[Any]], Any]) -> None:
    box, ch = chan(1), chan()
    await box.send(make(ch))
    back = await box.recv()
    assert type(back) is type(make(ch))


async def unread(make: Callable[[Chan[Any]], Any]) -> None:
    box = chan(3)
    for _ in range(3):
        await box.send(make(chan()))


async def refused(make: Callable[[Chan[Any]], Any]) -> None:
    box, ch = chan(1), chan()
    for culprit in (threading.Lock(), Refuses(), Slotted(ch, Refuses())):
        try:
            await box.send([make(ch), ch, culprit])
        except SerializationError:
            continue
        raise AssertionError("it crossed")


async def read_half_way(make: Callable[[Chan[Any]], Any]) -> None:
    box, ch = chan(1), chan()
    for how in range(3):
        bomb = Bomb(ch)
        if how == 0:
            send = box.send([make(ch), bomb, ch])
        elif how == 1:
            send = box.send(Slotted(ch, bomb))
        else:
            send = box.send([make(chan()), Bomb(chan())])
        del bomb  # a local that cannot be made again would end this goroutine at its next move
        await send
        try:
            await box.recv()
        except ValueError as e:
            assert "in the middle" in str(e)
        else:
            raise AssertionError("it was made")


async def local(make: Callable[[Chan[Any]], Any]) -> None:
    held, again = make(chan()), chan()
    pair = [again, make(again)]
    for _ in range(3):
        await gosched()
    assert type(held) is type(make(again)) and pair[0] is again


async def pinned(make: Callable[[Chan[Any]], Any]) -> None:
    """Its locals are encoded up to the lock, or to what the pickle refuses, at each try."""
    held, lock = make(chan()), threading.Lock()
    other, culprit = make(chan()), Refuses()
    for _ in range(5):
        await gosched()
    del lock, culprit
    for _ in range(5):
        await gosched()
    del held, other


async def fails(ch: Any) -> None:
    try:
        e = LookupError("with", ch)
        e.ch = ch  # type: ignore[attr-defined]
        raise e
    finally:
        del e  # else a cycle: exception, traceback, frame


async def panics(make: Callable[[Chan[Any]], Any]) -> None:
    ch = chan()
    try:
        await spawn(fails, make(ch))
    except LookupError as e:
        assert type(e.args[1]) is type(make(ch))
    else:
        raise AssertionError("it did not fail")


async def arguments(make: Callable[[Chan[Any]], Any]) -> None:
    ch = chan()
    assert type(await spawn(returned, make(ch), [ch])) is type(make(ch))


async def returned(x: Any, more: list[Any]) -> Any:
    return x


PATHS: list[Callable[[Callable[[Chan[Any]], Any]], Awaitable[None]]] = [
    message, unread, refused, read_half_way, local, pinned, panics, arguments,
]  # fmt: skip
CARRIERS: dict[str, Callable[[Chan[Any]], Any]] = {
    "bare": lambda ch: ch,
    "plain": Plain,
    "slots": Slotted,
    "slots twice": lambda ch: Slotted(ch, [ch, Slotted(ch)]),
    "both": lambda ch: (ch, Slotted(ch, ch)),
    "nil": lambda ch: [nilchan, Slotted(nilchan)],
    "many": lambda ch: [ch, [chan() for _ in range(40)], Slotted(ch, [chan() for _ in range(9)])],
}


async def shared_between_tag_and_pickle() -> None:
    """The list is met by the tags first: a further try gives it to the pickle."""
    box, ch = chan(1), chan()
    both = [ch]
    await box.send((both, Slotted(ch, both)))
    first, second = await box.recv()
    assert first is second.more and first[0] is second.ch


async def rounds(n: int, path: Any, *args: Any) -> None:
    for _ in range(n):
        await path(*args)


def live(rt: Runtime) -> int:
    gc.collect()
    return int(rt.stats()["live_blocks"])


def same_blocks_after(rt: Runtime, procs: int, each: int, path: Any, *args: Any) -> None:
    """`each`: how many channels a round makes at least: so many would be lost in each round."""
    slack = max(1, procs) * RECENT + 8
    n = (slack + slack // 4) // each
    rt.spawn(rounds, n, path, *args).result(timeout=60)  # what is made once: codes, tables
    before = live(rt)
    rt.spawn(rounds, n, path, *args).result(timeout=60)
    wait_until(f"{live(rt)} blocks, {before} before", lambda: live(rt) <= before + slack)


@pytest.mark.parametrize("procs, migrate", [(0, "auto"), (2, "always")])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.__name__)
def test_references_of_handles_come_out_even(
    path: Any, procs: int, migrate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", migrate)
    with Runtime(procs=procs) as rt:
        for name, make in CARRIERS.items():
            print(name)
            same_blocks_after(rt, procs, 40 if name == "many" else 1, path, make)


@pytest.mark.parametrize("procs", [0, 2])
def test_references_come_out_even_where_the_encoder_tries_twice(procs: int) -> None:
    with Runtime(procs=procs) as rt:
        same_blocks_after(rt, procs, 1, shared_between_tag_and_pickle)
