"""The options of run and Runtime: what may be given, and what it is when nothing is.

Checked in one function (`check_options`), whose errors name the option; MPGORT_PROCS,
MPGORT_MIGRATE and MPGORT_DEBUG are options of the environment, and checked with them."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

from mpgort import _core, _segment, _service
from mpgort._errors import UnsupportedPlatform
from mpgort._m import Plan

METHODS = ("fork", "forkserver", "spawn")


class Given(TypedDict, total=False):
    """What run and Runtime take beside procs, in a user's words. None: the default."""

    start_method: str | None  # "fork", "forkserver", "spawn"
    heap_bytes: int | None  # ceiling of the shared heap
    max_goroutines: int
    heavy_bytes: int  # a goroutine with larger locals is not copied at every park
    initializer: Callable[..., object] | None  # run once in each worker
    initargs: Sequence[Any]
    blas_threads: int | None
    max_rss: int | None  # a worker over it, or over so many goroutines, is replaced
    max_tasks_per_m: int | None
    name: str | None
    scrub: bool  # what is freed is overwritten


class Options(NamedTuple):
    procs: int
    method: str
    heap_bytes: int
    max_goroutines: int
    heavy_bytes: int
    migrate: int
    scrub: bool
    shake: int  # seed of the schedule shaker, 0: off
    plan: Plan
    name: str


def cpu_count() -> int:
    """The CPUs this process may use: affinity and cgroup quota (v2 and v1) counted, at least 1."""
    n = len(os.sched_getaffinity(0))
    quota = cgroup_cpus()
    return max(1, min(n, quota)) if quota else n


def cgroup_cpus() -> int | None:
    """The CPU quota of this process's cgroup and those above, rounded up; None: no limit."""
    best: float | None = None
    try:
        with open("/proc/self/cgroup") as f:
            own = [line.rstrip("\n").split(":", 2) for line in f]
    except OSError:
        return None
    for _, controllers, path in own:
        v2 = controllers == ""
        if not v2 and "cpu" not in controllers.split(","):
            continue
        root = "/sys/fs/cgroup" if v2 else "/sys/fs/cgroup/cpu"
        at = path.strip("/")
        while True:
            try:
                if v2:
                    with open(f"{root}/{at}/cpu.max") as f:
                        quota, period = f.read().split()
                else:
                    with open(f"{root}/{at}/cpu.cfs_quota_us") as f:
                        quota = f.read().strip()
                    with open(f"{root}/{at}/cpu.cfs_period_us") as f:
                        period = f.read().strip()
                if quota not in ("max", "-1"):
                    cpus = int(quota) / int(period)
                    best = cpus if best is None else min(best, cpus)
            except (OSError, ValueError):
                pass  # the root has no such file; in a container the path may lead nowhere
            if not at:
                break
            at = os.path.dirname(at)
    return None if best is None else max(1, int(best + 0.999))


def integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return int(value.__index__())


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    n = integer(name, value)
    if n < least or (most is not None and n > most):
        upto = f" to {most}" if most is not None else " or more"
        raise ValueError(f"{name}={n}: give {least}{upto}")
    return n


def deadline_in(timeout: float | None) -> float | None:
    """The time.monotonic() that is so many seconds from now; None: never."""
    if timeout is None:
        return None
    if not hasattr(timeout, "__float__") and not hasattr(timeout, "__index__"):
        raise TypeError(f"a timeout must be a number of seconds, not {type(timeout).__name__}")
    if timeout != timeout:
        raise ValueError("a timeout must be a number of seconds, not nan")
    return None if timeout > 9e9 else time.monotonic() + timeout


def program_name(name: str | None) -> str:
    """As `mpgort ps` shows it. What of a file's name is no text (see os.fsdecode) is left out."""
    if name is None:
        name = os.path.basename(sys.argv[0] if sys.argv else "")
    elif not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    return name.encode(errors="replace").decode()


def arguments(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a tuple, not {value!r}")
    return tuple(value)


def check_method(name: str, method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"{name}={method!r}: give one of {', '.join(METHODS)}")
    return method


def check_bound(max_pending: int | None, when_full: str) -> int | None:
    if when_full not in _service.WHEN_FULL:
        raise ValueError(f"when_full={when_full!r}: give one of {', '.join(_service.WHEN_FULL)}")
    return None if max_pending is None else whole("max_pending", max_pending, 1)


def debug_flags() -> dict[str, str]:
    """MPGORT_DEBUG, as Go's GODEBUG: name=value,name=value."""
    text = os.environ.get("MPGORT_DEBUG", "")
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name.strip(): value.strip() for name, _, value in pairs}


def default_procs() -> int:
    """How many workers a program has that nobody told. Raises ValueError for MPGORT_PROCS."""
    env = os.environ.get("MPGORT_PROCS")
    if env is None:
        return min(cpu_count(), _core.MAX_PROCS)
    if not env.strip().isdecimal():
        raise ValueError(f"MPGORT_PROCS={env}: give a number of worker processes")
    return whole("MPGORT_PROCS", int(env), 0, _core.MAX_PROCS)


def check_options(who: str, procs: int | None, given: Given) -> Options:
    """All options of run and Runtime (`who`), with their defaults filled in.

    Raises TypeError or ValueError naming the option (or environment variable),
    UnsupportedPlatform."""
    for unknown in given.keys() - Given.__annotations__.keys():
        raise TypeError(
            f"{who}() got an unexpected keyword argument {unknown!r}: help({who}) has the options"
        )
    start_method = given.get("start_method")
    heap_bytes = given.get("heap_bytes")
    initializer = given.get("initializer")
    blas_threads = given.get("blas_threads")
    max_rss = given.get("max_rss")
    max_tasks = given.get("max_tasks_per_m")
    if sys.platform != "linux":
        raise UnsupportedPlatform(f"mpgort needs Linux (futexes, pidfds), this is {sys.platform}")
    if procs is None:
        procs = default_procs()
    procs = whole("procs", procs, 0, _core.MAX_PROCS)
    if start_method is not None:
        check_method("start_method", start_method)
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be callable, not {initializer!r}")
    if blas_threads is not None:
        blas_threads = whole("blas_threads", blas_threads, 1)
    ways = {"auto": 0, "always": 1, "never": 2}
    migrate = os.environ.get("MPGORT_MIGRATE", "auto")
    if migrate not in ways:
        raise ValueError(f"MPGORT_MIGRATE={migrate}: give one of {', '.join(ways)}")
    debug = debug_flags()
    trace = debug.get("schedtrace", "0")
    if not trace.isdecimal():
        raise ValueError(f"MPGORT_DEBUG: schedtrace={trace}: give milliseconds")
    shake = debug.get("shake", "0")
    if not shake.isdecimal() or int(shake) >= 1 << 32:
        raise ValueError(f"MPGORT_DEBUG: shake={shake}: give a seed, a number below 2**32")
    if heap_bytes is not None:
        heap_bytes = whole("heap_bytes", heap_bytes, 1 << 20, 1 << 46)
    _segment.warn_if_small(heap_bytes)
    if not _core.frames_ok:
        warnings.warn(
            f"no goroutine moves between processes here, each stays where it started: "
            f"{_core.frames_reason}. Use a released CPython 3.11, 3.12 or 3.13",
            RuntimeWarning,
            stacklevel=3,
        )
    method = start_method or default_method()
    plan = Plan(
        method=method,
        initializer=initializer,
        initargs=arguments("initargs", given.get("initargs", ())),
        blas_threads=blas_threads,
        max_rss=0 if max_rss is None else whole("max_rss", max_rss, 1),
        max_tasks=0 if max_tasks is None else whole("max_tasks_per_m", max_tasks, 1),
        schedtrace_ms=int(trace),
    )
    return Options(
        procs=procs,
        method=method,
        heap_bytes=heap_bytes or _segment.default_heap_bytes(),
        max_goroutines=whole("max_goroutines", given.get("max_goroutines", 1 << 22), 1, 1 << 30),
        heavy_bytes=whole("heavy_bytes", given.get("heavy_bytes", 16384), 0, 1 << 30),
        migrate=ways[migrate],
        scrub=bool(given.get("scrub")) or debug.get("scrub", "0") == "1",
        shake=int(shake),
        plan=plan,
        name=program_name(given.get("name")),
    )


# Threads of ours that hold no lock while Host.fork_keeper() has them stand still (_engine.py).
collectors: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def default_method() -> str:
    """fork where this is the one Python thread of the process, but for collectors: no other can
    hold a lock at that moment."""
    me = threading.get_ident()
    ours = {t.ident for t in list(collectors) if t.is_alive()}
    alone = me not in ours and sys._current_frames().keys() - ours == {me}
    return "fork" if alone else "forkserver"
