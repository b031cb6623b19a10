"""CPython's own tests of ProcessPoolExecutor, as installed with this interpreter, with Executor.

All test classes there, in 3.13 (the installations of 3.11 and 3.12 here come without them): how
many tests one has, how many are run. Each is run with the fork method, the executor's own once more
with forkserver and spawn; all pass, but for one that skips itself with fork.

| class                   | has | run | not applicable, and why                                   |
| ----------------------- | --- | --- | --------------------------------------------------------- |
| ProcessPoolExecutorTest | 21  | 13  | killed_child: a dead worker breaks that pool, not ours    |
|                         |     |     | idle_process_reuse_one, idle_process_reuse_multiple,      |
|                         |     |     | saturation, max_tasks_per_child, max_tasks_per_child_     |
|                         |     |     | defaults_to_spawn_context: look into _processes; what     |
|                         |     |     | they hold is held by test_executor.py                     |
|                         |     |     | python_finalization_error: mocks a thread that is not     |
|                         |     |     | started. max_workers_too_large: Windows                   |
| ProcessPoolShutdownTest | 11  | 6   | processes_terminate, context_manager_shutdown,            |
|                         |     |     | del_shutdown, shutdown_no_wait: look into _processes;     |
|                         |     |     | what they hold is held by test_executor.py                |
|                         |     |     | cancel_futures: wants some to have begun, which           |
|                         |     |     | cancelling is too quick for                               |
| InitializerMixin        | 1   | 1   |                                                           |
| FailingInitializerMixin | 1   | 0   | reads the log that a child of theirs writes; here the     |
|                         |     |     | exception itself is the cause (test_executor.py)          |
| FailingInitializerResourcesTest | 2 | 0 | runs the one above, for the resource tracker    |
|                         |     |     | that has nothing of ours                                  |
| AsCompletedTests        | 5   | 5   |                                                           |
| WaitTests               | 8   | 8   |                                                           |
| ExecutorDeadlockTest    | 16  | 10  | shutdown_deadlock_pickle, gh105829_should_not_deadlock_   |
|                         |     |     | if_wakeup_pipe_full: mock a thread and a pipe that are    |
|                         |     |     | not there. error_at_task_unpickle, exit_at_task_unpickle, |
|                         |     |     | error_during_result_unpickle_in_result_handler, exit_     |
|                         |     |     | during_..: want a broken pool; here the error is that     |
|                         |     |     | future's own (test_executor.py). In those that are run a  |
|                         |     |     | dead worker is MDied, not BrokenProcessPool               |
| FutureTests             | 20  | 0   | make futures themselves; ours come from submit() alone    |

test_shutdown starts programs that import the executor from concurrent.futures; they are told where
ours is."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest

import mpgort

if importlib.util.find_spec("test.test_concurrent_futures") is None:
    pytest.skip("this CPython comes without test_concurrent_futures", allow_module_level=True)

from test.support import script_helper
from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
    test_future,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
)
from test.test_concurrent_futures.util import BaseTestCase, ExecutorMixin


def with_ours(flag: str, source: str) -> Any:
    theirs = "from concurrent.futures import Executor"
    assert theirs in source
    ours = "import multiprocessing; from mpgort import Executor"
    return script_helper.assert_python_ok(flag, source.replace(theirs, ours))


test_shutdown.assert_python_ok = with_ours
test_deadlock.BrokenProcessPool = mpgort.MDied


class Fork(ExecutorMixin):
    executor_type = mpgort.Executor
    ctx = "fork"


class Forkserver(Fork):
    ctx = "forkserver"


class Spawn(Fork):
    ctx = "spawn"


MODULES = test_process_pool, test_shutdown, test_init, test_as_completed, test_wait, test_deadlock


def test_the_table_has_every_class_and_the_number_of_its_tests() -> None:
    rows = re.findall(r"^\| (\w+) +\| (\d+) ", __doc__ or "", re.M)
    classes = {
        c
        for module in (*MODULES, test_future)
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__ and how_many(c)
    }
    # But for those of threads, and those made of a class in the table for each start method.
    made = ("ThreadPool", "ProcessPoolFork", "ProcessPoolSpawn", "ExecutorShutdownTest")
    found = {c.__name__: how_many(c) for c in classes if not c.__name__.startswith(made)}
    assert {name: int(n) for name, n in rows} == found


def how_many(case: type) -> int:
    return sum(name.startswith("test_") for name in dir(case))


def case(mixin: type, method: type = Fork, *, without: str = "") -> type:
    """A TestCase of the mixin; `without`: names of tests that do not apply."""
    body: dict[str, Any] = {"__module__": __name__}
    for name in without.split():
        assert hasattr(mixin, f"test_{name}"), f"{mixin.__name__} has no test_{name} any more"
        body[f"test_{name}"] = None
    return type(f"Test{mixin.__name__}{method.__name__}", (mixin, method, BaseTestCase), body)


INTERNALS = (
    "killed_child idle_process_reuse_one idle_process_reuse_multiple saturation "
    "max_tasks_per_child max_tasks_per_child_defaults_to_spawn_context python_finalization_error "
    "max_workers_too_large"
)
TestExecutorFork = case(test_process_pool.ProcessPoolExecutorTest, without=INTERNALS)
TestExecutorForkserver = case(
    test_process_pool.ProcessPoolExecutorTest, Forkserver, without=INTERNALS
)
TestExecutorSpawn = case(test_process_pool.ProcessPoolExecutorTest, Spawn, without=INTERNALS)
TestShutdown = case(
    test_shutdown.ProcessPoolShutdownTest,
    without="processes_terminate context_manager_shutdown del_shutdown shutdown_no_wait "
    "cancel_futures",
)
TestInit = case(test_init.InitializerMixin)
TestAsCompleted = case(test_as_completed.AsCompletedTests)
TestWait = case(test_wait.WaitTests)
TestDeadlock = case(
    test_deadlock.ExecutorDeadlockTest,
    without="shutdown_deadlock_pickle gh105829_should_not_deadlock_if_wakeup_pipe_full "
    "error_at_task_unpickle exit_at_task_unpickle "
    "error_during_result_unpickle_in_result_handler exit_during_result_unpickle_in_result_handler",
)
