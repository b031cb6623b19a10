"""Go's package sync, on goroutines that may be in any process.

    m, ready = sync.Mutex(), sync.WaitGroup()
    ready.go(worker, m)
    async with m:
        ...
    await ready.wait()

Every object here is made by a goroutine, is shared by all processes of the program and can be sent,
stored and compared as a channel can. What waits is awaited; what does not is called. Misuse is a
`SyncError` with Go's text; a lock whose holder died with its worker raises `OwnerDied` until
`recover()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mpgort import _core
from mpgort._core import (
    AtomicInt,
    Cond,
    Map,
    Mutex,
    Once,
    RWMutex,
    RWMutexReader,
    RWMutexWriter,
    Semaphore,
    WaitGroup,
)

__all__ = [
    "AtomicInt",
    "Cond",
    "Map",
    "Mutex",
    "Once",
    "RWMutex",
    "RWMutexReader",
    "RWMutexWriter",
    "Semaphore",
    "SingleFlight",
    "WaitGroup",
]


async def _do(once: Once, fn: Callable[[], Any]) -> None:
    """Once.do: `_enter` is True for the one who is to run fn."""
    if not await once._enter():
        return
    try:
        value = fn()
        if isinstance(value, Awaitable):
            await value
    finally:
        once._leave()


async def _go(
    wg: WaitGroup, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> None:
    """What WaitGroup.go starts; the add(1) was its caller's."""
    try:
        value = fn(*args, **(kwargs or {}))
        if isinstance(value, Awaitable):
            await value
    finally:
        wg.done()


class SingleFlight(tuple[Map, Mutex]):
    """Calls for the same key that come while one is under way share its outcome.

    Source: golang.org/x/sync/singleflight. Pickles as its two handles; equal wherever it is."""

    __slots__ = ()

    def __new__(cls, *parts: Any) -> SingleFlight:
        return super().__new__(cls, parts or (Map(), Mutex()))

    def __getnewargs__(self) -> tuple[Map, Mutex]:
        return self[0], self[1]

    async def do(self, key: Any, fn: Callable[..., Any], *args: Any) -> tuple[Any, bool]:
        """(value, shared): of fn(*args), run as a goroutine, or of the call that is under way.

        An exception is raised to all. A caller that is cancelled leaves the call to the others."""
        calls, lock = self
        async with lock:
            call, shared = calls.load(key)
            if not shared:
                call = _core.spawn(_fly, self, key, fn, args)
                calls.store(key, call)
        return await call, shared

    def forget(self, key: Any) -> None:
        """The next call for key runs its own function, whatever is under way."""
        self[0].delete(key)


async def _fly(
    flight: SingleFlight, key: Any, fn: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    calls, lock = flight
    async with lock:
        pass  # do() has stored the call: a forget() from here on finds it
    try:
        value = fn(*args)
        return await value if isinstance(value, Awaitable) else value
    finally:
        async with lock:
            call, found = calls.load(key)
            if found and call.id == _core.goid():
                calls.delete(key)


_core._sync_hooks(_do, _go)
