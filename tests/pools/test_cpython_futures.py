"""CPython's own tests of ProcessPoolExecutor, as installed with this interpreter, with Executor.

All mixins of test_concurrent_futures that take an executor of processes; with the fork method, and
the executor's own tests once more with forkserver and spawn. 3.13 ships them; the installations of
3.11 and 3.12 here do not.

| mixin                   | run | not applicable, and why                                       |
| ----------------------- | --- | ------------------------------------------------------------- |
| ProcessPoolExecutorTest | all but 8 | killed_child: a dead worker breaks that pool, not ours  |
|                         |     | idle_process_reuse_one, _multiple, saturation, max_tasks_per_ |
|                         |     | child, .._defaults_to_spawn_context: look into _processes     |
|                         |     | python_finalization_error: mocks a thread that is not started |
|                         |     | max_workers_too_large: Windows                                |
| ProcessPoolShutdownTest | all but 5 | processes_terminate, context_manager_shutdown,          |
|                         |     | del_shutdown, shutdown_no_wait: look into _processes; what    |
|                         |     | they hold is held by test_executor.py. cancel_futures: wants  |
|                         |     | some to have begun, which cancelling is too quick for         |
| InitializerMixin        | all |                                                               |
| FailingInitializerMixin | 0   | reads the log that a child of theirs writes; test_executor.py |
| AsCompletedTests        | all |                                                               |
| WaitTests               | all |                                                               |
| ExecutorDeadlockTest    | all but 6 | a dead worker is MDied, not BrokenProcessPool (replaced |
|                         |     | in the module). shutdown_deadlock_pickle, gh105829: mock a    |
|                         |     | thread and a pipe that are not there. (error|exit)_at_task_   |
|                         |     | unpickle, .._during_result_unpickle_..: they want a broken    |
|                         |     | pool; here the error is that future's own (test_executor.py)  |

test_shutdown starts programs that import the executor from concurrent.futures; they are told where
ours is."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

import mpgort

if importlib.util.find_spec("test.test_concurrent_futures") is None:
    pytest.skip("this CPython comes without test_concurrent_futures", allow_module_level=True)

from test.support import script_helper
from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
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
