"""joblib's own tests of backends, as installed with it, with backend "mpgort" (joblib 1.6.0).

All tests of joblib.test.test_parallel that are written for any backend (37); the others are
joblib's own affair or name one of its backends. Of each but the six slowest, the first
parameters, with two jobs; MPGORT_STORM=1: all.

| test                                          | not applicable, and why                          |
| --------------------------------------------- | ------------------------------------------------ |
| auto_memmap_on_arrays_from_generator          | want memory maps in a folder; here large arrays  |
| memmapping_leaks                              | are in shared memory (test_joblib.py)            |

Those that start a program of their own have `import mpgort.joblib` done for it (sitecustomize).

The rest are run and pass, but for those that joblib itself skips here or expects to fail."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest

import mpgort.joblib  # noqa: F401

theirs: Any = pytest.importorskip("joblib.test.test_parallel")

NOT_APPLICABLE = {
    "test_auto_memmap_on_arrays_from_generator",
    "test_memmapping_leaks",
}
SLOW = {
    "test_error_capture",
    "test_dispatch_multiprocessing",
    "test_njobs_converted_to_int",
    "test_nested_backend_context_manager",
    "test_error_in_task_iterator",
    "test_thread_bomb_mitigation",
}
ALL = os.environ.get("MPGORT_STORM", "0") not in ("", "0")


def with_ours(fn: Any) -> Any:
    """A copy of a test that has our backend only."""
    copy = types.FunctionType(
        fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__
    )
    copy.__module__ = __name__
    copy.pytestmark = [narrowed(mark) for mark in fn.pytestmark]  # type: ignore[attr-defined]
    return copy


def narrowed(mark: Any) -> Any:
    if mark.name != "parametrize":
        return mark
    name, values = mark.args[0], list(mark.args[1])
    if name == "backend":
        values = ["mpgort"]
    elif name == "n_jobs" and not ALL:
        values = [n for n in values if n in (2, "2")][:1] or values[:1]
    elif not ALL:
        values = values[:1]
    return pytest.mark.parametrize(name, values).mark


def takes_backend(fn: Any) -> bool:
    marks = getattr(fn, "pytestmark", [])
    return any(m.name == "parametrize" and m.args[0] == "backend" for m in marks)


pytestmark = pytest.mark.usefixtures("joblib_ends", "programs_import_ours")


@pytest.fixture
def programs_import_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import mpgort.joblib")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


found = {n: f for n, f in vars(theirs).items() if n.startswith("test_") and takes_backend(f)}
left_out = NOT_APPLICABLE if ALL else NOT_APPLICABLE | SLOW
globals().update({n: with_ours(f) for n, f in found.items() if n not in left_out})


def test_what_does_not_apply_is_there() -> None:
    assert NOT_APPLICABLE | SLOW <= set(found)
