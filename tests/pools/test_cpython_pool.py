"""CPython's own tests of multiprocessing.Pool, as installed with this interpreter.

All classes that test it, the same in 3.11, 3.12 and 3.13. What is run passes.

| class                    | tests | run | not applicable, and why                               |
| ------------------------ | ----- | --- | ----------------------------------------------------- |
| _TestPool                | 25    | 24  | map_unplicklable: SerializationError, theirs as cause |
| _TestPoolWorkerErrors    | 2     | 1   | unpickleable_result: its lambda arrives               |
| _TestPoolWorkerLifetime  | 4     | 3   | pool_worker_lifetime: calls _repopulate_pool(); what  |
|                          |       |     | it holds is held by test_pool.py                      |
| TestPoolNotLeakOnFailure | 1     | 0   | release_unused_processes: mocks the class of process  |
|                          |       |     | that a pool is made of; ours are the keeper's, and    |
|                          |       |     | end with it (tests/kill/test_processes_die.py)        |

Each class is made three times there, with processes, threads and managers; here is the first."""

from __future__ import annotations

import multiprocessing
import re
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


def test_the_table_has_every_class_and_the_number_of_its_tests() -> None:
    rows = re.findall(r"^\| (_?Test\w+) +\| (\d+)", __doc__ or "", re.M)
    found = {name: how_many(getattr(theirs, name)) for name in dir(theirs) if "TestPool" in name}
    assert {name: int(n) for name, n in rows} == found


def how_many(case: type) -> int:
    return sum(name.startswith("test_") for name in dir(case))


TestPool = case(theirs._TestPool, "map_unplicklable")
TestPoolWorkerErrors = case(theirs._TestPoolWorkerErrors, "unpickleable_result")
TestPoolWorkerLifetime = case(theirs._TestPoolWorkerLifetime, "pool_worker_lifetime")
