"""The options of run and Runtime: both take the same, and name what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mpgort


def run(**options: Any) -> None:
    mpgort.run(int, **options)


def runtime(**options: Any) -> None:
    mpgort.Runtime(**options).shutdown()


@pytest.mark.parametrize("face", [run, runtime])
@pytest.mark.parametrize(
    ("option", "error", "text"),
    [
        ({"proc": 2}, TypeError, "unexpected keyword argument 'proc'"),
        ({"procs": -1}, ValueError, "procs=-1: give 0 to "),
        ({"procs": 1.5}, TypeError, "procs must be an integer, not 1.5"),
        ({"start_method": "vfork"}, ValueError, "start_method='vfork': give one of fork, "),
        ({"heap_bytes": 5}, ValueError, "heap_bytes=5: give 1048576 to "),
        ({"max_goroutines": 0}, ValueError, "max_goroutines=0: give 1 to "),
        ({"heavy_bytes": "1M"}, TypeError, "heavy_bytes must be an integer, not '1M'"),
        ({"initializer": 3}, TypeError, "initializer must be callable, not 3"),
        ({"blas_threads": 0}, ValueError, "blas_threads=0: give 1 or more"),
        ({"max_tasks_per_m": True}, TypeError, "max_tasks_per_m must be an integer, not True"),
    ],
)
def test_what_cannot_be_is_refused_at_the_call_naming_the_option(
    face: Callable[..., None], option: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as e:
        face(**option)
    assert text in str(e.value)


@pytest.mark.parametrize("face", [run, runtime])
def test_none_is_the_default_of_each_option_that_has_one(face: Callable[..., None]) -> None:
    names = ("start_method", "heap_bytes", "initializer", "blas_threads", "max_rss", "name")
    face(procs=0, max_tasks_per_m=None, **dict.fromkeys(names))
