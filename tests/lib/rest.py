"""A program that has come to rest: for tests, and for the programs that they run."""

from __future__ import annotations

import time
from typing import Any


def breaches(prog: Any, seconds: float = 20.0) -> list[str]:
    """What the checker finds wrong in the segment: [] as soon as it finds nothing. While Ms run,
    what they are in the middle of looks wrong, and a worker is not at rest at once when the last
    result is here: so it is asked again until then."""
    deadline = time.monotonic() + seconds
    found: list[str]
    while (found := prog.check(False)) and time.monotonic() < deadline:
        time.sleep(0.002)
    return found


def comes_to_rest(prog: Any) -> None:
    found = breaches(prog)
    assert not found, found
