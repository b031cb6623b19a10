"""What this machine allows mpgort, and what to change where it allows too little.

Each check looks at one thing, by reading it or by trying it, and says what it found."""

import importlib
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mpgort import _options

MIB = 1 << 20
# 1,000,000 parked goroutines at 256 bytes each; the same again for messages and results.
SHM_COMFORT = 512 * MIB
# Every M, the keeper and M0 are processes; each holds the segment, its pidfds and what it inherits.
PROCESSES_COMFORT = 4 * (os.cpu_count() or 1) + 64
FILES_COMFORT = 256


@dataclass(frozen=True)
class Finding:
    """One line of the report. `level` is "ok", "warn" (works, but poorly) or "fail"."""

    level: str
    what: str
    found: str
    change: str = ""


def size(n: int) -> str:
    return f"{n / (1 << 30):.1f} GiB" if n >= 1 << 30 else f"{n / MIB:.0f} MiB"


def check_platform() -> Finding:
    found = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if sys.platform != "linux":
        return Finding("fail", "system", found, "mpgort needs Linux (futexes, pidfds)")
    if platform.machine() not in ("x86_64", "aarch64"):
        return Finding("warn", "system", found, "tested on x86-64 and aarch64 only")
    return Finding("ok", "system", found)


def check_python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    if platform.python_implementation() != "CPython" or not (3, 11) <= sys.version_info < (3, 14):
        return Finding("fail", "python", found, "use CPython 3.11, 3.12 or 3.13")
    return Finding("ok", "python", found)


def check_core() -> Finding:
    """Imports the compiled part, which tests its own frame layout against this very interpreter."""
    try:
        core = importlib.import_module("mpgort._core")
    except ImportError as e:
        return Finding("fail", "mpgort._core", str(e), "build it: pip install -e . with gcc there")
    if not getattr(core, "frames_ok", True):
        return Finding(
            "warn",
            "mpgort._core",
            f"no goroutine moves between processes: {core.frames_reason}",
            "use a released CPython 3.11, 3.12 or 3.13",
        )
    return Finding("ok", "mpgort._core", "loaded; a parked frame survives the trip through bytes")


def check_pidfd() -> Finding:
    """Deaths are learnt from pidfds: without them nothing may be taken over from the dead."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as e:
        return Finding(
            "fail", "pidfd", str(e), "needs Linux 5.3, and a seccomp profile that lets it through"
        )
    return Finding("ok", "pidfd", "pidfd_open works")


def check_shm() -> Finding:
    folder = "/dev/shm"
    try:
        usage = shutil.disk_usage(folder)
    except OSError as e:
        return Finding("fail", folder, str(e), f"mount a tmpfs there: mount -t tmpfs shm {folder}")
    found = f"{size(usage.free)} free of {size(usage.total)}"
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return Finding("fail", folder, "read-only", f"mount -o remount,rw {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("fail", folder, found, f"this user cannot write there: chmod 1777 {folder}")
    if usage.free < SHM_COMFORT:
        return Finding(
            "warn",
            folder,
            found,
            f"docker run --shm-size=2g, or mount -o remount,size=2g {folder}; "
            "or keep the program small with heap_bytes",
        )
    return Finding("ok", folder, found)


def check_limit(what: str, which: int, comfort: int, flag: str) -> Finding:
    soft, hard = resource.getrlimit(which)
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft != resource.RLIM_INFINITY and soft < comfort:
        room = "" if hard in (soft, resource.RLIM_INFINITY) else f" (up to {hard:,})"
        return Finding("warn", what, found, f"ulimit {flag} {comfort}{room}")
    return Finding("ok", what, found)


def check_processes() -> Finding:
    return check_limit("processes", resource.RLIMIT_NPROC, PROCESSES_COMFORT, "-u")


def check_files() -> Finding:
    return check_limit("open files", resource.RLIMIT_NOFILE, FILES_COMFORT, "-n")


def check_address_space() -> Finding:
    """The segment reserves addresses for its ceiling and fills them as it grows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return Finding("ok", "address space", "unlimited")
    return Finding(
        "warn", "address space", size(soft), "ulimit -v unlimited, or a smaller heap_bytes"
    )


def check_cpus() -> Finding:
    """Affinity and quota: what `procs` defaults to."""
    allowed, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _options.cgroup_cpus()
    found = f"{allowed} of {present} by affinity"
    if quota is not None:
        found += f", {quota} by cgroup quota"
    if min(allowed, quota or allowed) < 2:
        return Finding(
            "warn", "processors", found, "goroutines run in turn: grant 2 or more to gain time"
        )
    return Finding("ok", "processors", found)


def check_compiler() -> Finding:
    """Only a source build needs one."""
    for name in ("gcc", "clang", "cc"):
        path = shutil.which(name)
        if path is None:
            continue
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        first = answer.stdout.splitlines()
        return Finding("ok", "C compiler", first[0] if first else path)
    return Finding("warn", "C compiler", "none", "to build from source: apt install gcc")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_platform,
    check_python,
    check_core,
    check_pidfd,
    check_shm,
    check_cpus,
    check_processes,
    check_files,
    check_address_space,
    check_compiler,
)


def findings() -> list[Finding]:
    """All checks, in the order in which they are read."""
    return [check() for check in CHECKS]
