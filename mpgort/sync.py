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
    "Mutex",
    "Once",
    "RWMutex",
    "RWMutexReader",
    "RWMutexWriter",
    "Semaphore",
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


_core._sync_hooks(_do, _go)
