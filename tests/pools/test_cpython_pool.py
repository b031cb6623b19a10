"""CPython's own tests of multiprocessing.Pool, as installed with this interpreter.

| class                   | run       | not applicable, and why                               |
| ----------------------- | --------- | ----------------------------------------------------- |
| _TestPool               | all but 1 | map_unplicklable: SerializationError, theirs as cause |
| _TestPoolWorkerErrors   | all but 1 | unpickleable_result: its lambda arrives               |
| _TestPoolWorkerLifetime | all but 1 | pool_worker_lifetime: calls _repopulate_pool(); what  |
|                         |           | it holds is held by test_pool.py                      |
"""

from __future__ import annotations

import multiprocessing
import unittest
from typing import Any

from test import _test_multiprocessing as theirs

import mpgort


class Processes:
    TYPE = "processes"
    Pool = mpgort.Pool

    def setUp(self) -> None:
        """Some tests call multiprocessing.Pool by that name."""
        self.was = multiprocessing.Pool
        multiprocessing.Pool = mpgort.Pool  # type: ignore[assignment]

    def tearDown(self) -> None:
        multiprocessing.Pool = self.was  # type: ignore[method-assign]


def case(base: type, without: str) -> type:
    body: dict[str, Any] = {"__module__": __name__}
    for name in without.split():
        assert hasattr(base, f"test_{name}"), f"{base.__name__} has no test_{name} any more"
        body[f"test_{name}"] = None
    return type(f"Test{base.__name__[5:]}", (Processes, base, unittest.TestCase), body)


TestPool = case(theirs._TestPool, "map_unplicklable")
TestPoolWorkerErrors = case(theirs._TestPoolWorkerErrors, "unpickleable_result")
TestPoolWorkerLifetime = case(theirs._TestPoolWorkerLifetime, "pool_worker_lifetime")
