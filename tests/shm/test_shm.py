"""The C tests of shm/: each tests/shm/test_*.c is compiled, linked with shm/*.c and run.

Three builds of all: plain, asan (AddressSanitizer and UBSan; Ms are forked processes) and tsan
(ThreadSanitizer; Ms are threads of one process, the only thing it sees). All have failpoints.
What is built is kept in .build/ under the hash of everything that went into it. MPGORT_STORM=1 runs
long loops. The programs are free of Python: that shm/ compiles here without Python.h is a test too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SHM = HERE.parent.parent / "shm"
BUILD = HERE / ".build"
CC = os.environ.get("CC", "gcc")
COMMON = [
    "-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-DSHM_FAILPOINTS",
    "-I", str(SHM), "-I", str(HERE),
]  # fmt: skip
VARIANTS = {
    "plain": ["-O2"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
             "-fno-omit-frame-pointer"],
    "tsan": ["-O1", "-fsanitize=thread"],
}  # fmt: skip
STORM = os.environ.get("MPGORT_STORM", "0") not in ("", "0")
LIMIT = 1800 if STORM else 300


@functools.cache
def sources_digest() -> bytes:
    """A hash of all of shm/ and of the headers that the tests share."""
    h = hashlib.sha256()
    for p in [*sorted(SHM.glob("*.[ch]")), *sorted(HERE.glob("*.h"))]:
        h.update(p.name.encode() + b"\0" + p.read_bytes())
    return h.digest()


def compile_(flags: list[str], what: list[str], out: Path) -> None:
    """Makes `out`, at once or not at all: another process may build the same."""
    part = out.with_suffix(f".{os.getpid()}{out.suffix}")
    cmd = [CC, *flags, *what, "-o", str(part)]
    done = subprocess.run(cmd, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(cmd)}\n{done.stderr}", pytrace=False)
    part.rename(out)


@functools.cache
def objects(variant: str) -> list[str]:
    """shm/*.c compiled in `variant`, once for all tests."""
    flags = [*COMMON, *VARIANTS[variant]]
    h = hashlib.sha256(sources_digest() + "\0".join([CC, *flags]).encode())
    folder = BUILD / f"shm-{variant}-{h.hexdigest()[:16]}"
    for old in BUILD.glob(f"shm-{variant}-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    made = [(str(c), folder / f"{c.stem}.o") for c in sorted(SHM.glob("*.c"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(
            pool.map(
                lambda pair: pair[1].exists() or compile_([*flags, "-c"], [pair[0]], pair[1]), made
            )
        )
    return [str(o) for _, o in made]


def build(test: Path, variant: str) -> Path:
    """The program of `test` in `variant`, compiled if there is none of these sources yet."""
    flags = [*COMMON, *VARIANTS[variant]]
    h = hashlib.sha256(sources_digest() + test.read_bytes() + "\0".join([CC, *flags]).encode())
    BUILD.mkdir(exist_ok=True)
    exe = BUILD / f"{test.stem}-{variant}-{h.hexdigest()[:16]}"
    if not exe.exists():
        for old in BUILD.glob(f"{test.stem}-{variant}-*"):
            old.unlink(missing_ok=True)
        compile_(flags, [str(test), *objects(variant)], exe)
    return exe


@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("test", sorted(HERE.glob("test_*.c")), ids=lambda p: p.stem)
def test_c_program_passes(test: Path, variant: str) -> None:
    exe = build(test, variant)
    env = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    }
    try:
        done = subprocess.run([exe], capture_output=True, text=True, timeout=LIMIT, env=env)
    except subprocess.TimeoutExpired as e:
        out = b"".join(x for x in (e.stdout, e.stderr) if isinstance(x, bytes)).decode()
        pytest.fail(f"{exe.name} did not end within {LIMIT} s\n{out}", pytrace=False)
    if done.returncode != 0:
        text = f"{exe.name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        pytest.fail(text, pytrace=False)


@pytest.mark.timeout(120)
def test_every_atomic_access_says_its_order() -> None:
    """A bare one is a silent seq_cst (shm/atomic.h): clang sees them. MPGORT_STORM=1: those of the
    binding too, some seconds."""
    if shutil.which("clang") is None:
        warnings.warn("NOT CHECKED: bare atomic accesses, for want of clang", stacklevel=1)
        pytest.skip("clang is not installed (apt install clang)")
    core = (SHM.parent / "mpgort" / "_core").glob("*.c") if STORM else []
    include = sysconfig.get_paths()["include"]
    cmd = ["clang", "-std=gnu11", "-fsyntax-only", "-Wno-everything",
           "-Werror=atomic-implicit-seq-cst", "-I", str(SHM), "-I", include]  # fmt: skip
    done = subprocess.run(
        [*cmd, *map(str, sorted([*SHM.glob("*.c"), *core]))],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(done.stderr, pytrace=False)
