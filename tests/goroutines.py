"""What goroutines of tests wait with: for a condition, never for a time.

A module of its own, so that every worker knows the functions by its name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from mpgort import Chan, Goroutine, default, gosched, select


async def until(true: Callable[[], object], limit: float = 20.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, f"the condition did not come true within {limit} s"
        await gosched()


async def parked(reason: str, *handles: Goroutine) -> None:
    """Until all these goroutines wait for that reason."""
    while any(h.status() != reason for h in handles):
        await gosched()


async def ready(c: Chan[Any]) -> bool:
    """Receives, if that needs no wait."""
    i, _ = await select(c.recv, default)
    return i == 0


def stands(told: str, limit: float = 20.0) -> bool:
    """Blocks its thread, without a runtime call, until a file is there; false if none comes."""
    deadline = time.monotonic() + limit
    while not os.path.exists(told):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
