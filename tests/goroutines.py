"""What goroutines of tests wait with: for a condition, never for a time.

A module of its own, so that every worker knows the functions by its name."""

from __future__ import annotations

import time
from collections.abc import Callable

from mpgort import Goroutine, gosched


async def until(true: Callable[[], object], limit: float = 20.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, f"the condition did not come true within {limit} s"
        await gosched()


async def parked(reason: str, *handles: Goroutine) -> None:
    """Until all these goroutines wait for that reason."""
    while any(h.status() != reason for h in handles):
        await gosched()
