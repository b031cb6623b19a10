"""Damaged bytes are an exception or a value, never a crash or a hang.

A child process (this file run as a program) decodes mutated continuations and values, and resumes
what decoded, since a wrong offset or a wrong object on the stack strikes only then.

1. A child encodes the corpus and writes it to a file, with its code table: that of this process has
   all that other tests have run, and to cut it at each byte would take minutes.
2. The child takes mutation after mutation, each determined by its number; before each it stores the
   number in a shared file, so that its corpse can say what killed it.
3. On a crash or a hang the parent notes the mutation and starts a new child behind it; it gives up
   after a few and fails with a list, each row of which can be repeated by `mutations`.

MPGORT_FUZZ_EXAMPLES sets how many mutations of each kind a blob suffers."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import mmap
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import continuation_bodies as bodies
import continuation_bodies_hold as holding
import continuation_harness as h
import numpy as np
import pytest
from continuation_table import BODIES

from mpgort import _core
from mpgort._errors import SerializationError

h.require_frames()

EXAMPLES = int(os.environ.get("MPGORT_FUZZ_EXAMPLES", "150"))
ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")
DEBUG = hasattr(sys, "gettotalrefcount")
SEED = 20_250
CRASHES = 6

CHAINS = [
    ("one_park", 0), ("nested_three_deep", 2), ("for_over_list", 2), ("for_over_dict", 4),
    ("enumerate_zip_map_filter_reversed", 3), ("generator_that_receives", 1),
    ("nested_handlers_unwind", 2), ("finally_parks_while_an_exception_flies", 1),
    ("async_with_two_managers", 3), ("contextmanager_functions", 0),
    ("cell_shared_by_two_closures", 1),
    ("comprehensions_that_await", 2), ("async_for_over_async_generator", 3), ("cyclic_objects", 0),
    ("methods_of_an_instance", 1), ("call_arguments_on_the_stack", 3), ("match_statements", 1),
    ("function_attributes_and_defaults", 1), ("numbers_and_text_of_every_size", 0),
    ("many_locals", 0),
    ("coroutine_wrapper", 0), ("iterators_half_consumed_and_exhausted", 0), ("for_over_ranges", 2),
]  # fmt: skip

CYCLE: list[Any] = [1]
CYCLE.append((CYCLE, {"k": CYCLE}))
VALUES: list[Any] = [
    [1, 2.5, "text", b"bytes", None, True, (1, "two"), {"a": [1]}, {1, 2}, frozenset("ab")],
    [10**40, -(10**9), "x" * 300, b"y" * 300, range(5), {"k": {"l": {"m": ()}}}],
    CYCLE,
    [holding._Point(1, [holding._Color.RED]), holding._Point(2, {"a": holding._Pair(1, 2)})],
    [np.arange(6.0).reshape(2, 3), np.ones((2, 2), ">c8", "F"), np.int8(7)],
    [np.zeros(3, "M8[25s]"), np.array([b"a", b"bc"])],
]
DATES = f"value {len(VALUES) - 1}"


def mutations(blob: bytes, seed: int, examples: int) -> Iterator[tuple[str, bytes]]:
    """Every truncation, then seeded flips, overwritten bytes, swaps, insertions and deletions."""
    rng = random.Random(seed)
    n = len(blob)
    for i in range(n):
        yield f"cut at {i}", blob[:i]
    for _ in range(examples):
        i, bit = rng.randrange(n), rng.randrange(8)
        yield f"bit {bit} of byte {i}", blob[:i] + bytes([blob[i] ^ 1 << bit]) + blob[i + 1 :]
    for _ in range(examples):
        i, to = rng.randrange(n), rng.choice([*range(96), 127, 128, 255, *blob])
        yield f"byte {i} = {to}", blob[:i] + bytes([to]) + blob[i + 1 :]
    for _ in range(examples):
        i, j = rng.randrange(n), rng.randrange(n)
        swapped = bytearray(blob)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        yield f"bytes {i} and {j} swapped", bytes(swapped)
    for _ in range(examples // 2):
        i = rng.randrange(n)
        j, k = sorted((rng.randrange(n), rng.randrange(n)))
        yield f"{j}:{k} copied to {i}", blob[:i] + blob[j:k] + blob[i:]
        yield f"{j}:{k} removed", blob[:j] + blob[k:]
    for _ in range(examples // 2):
        torn = bytearray(blob)
        places = [rng.randrange(n) for _ in range(rng.randint(2, 6))]
        for i in places:
            torn[i] = rng.randrange(256)
        yield f"random bytes at {places}", bytes(torn)
    yield "garbage behind", blob + b"\xff" * 40
    yield "nothing but 255", b"\xff" * n
    yield "nothing but 0", b"\0" * n


Case = tuple[str, str, bytes]  # kind, name, bytes


def corpus() -> list[Case]:
    cases: list[Case] = []
    with h.native_park():
        for name, at in CHAINS:
            coro = h.start(BODIES[name]())
            for k in range(at):
                assert _core.chain_send(coro, k)[0] is False
            cases.append(("chain", name, _core.chain_encode(coro)))
            coro.close() if name != "async_with_two_managers" else _core.chain_drop(coro)
    for i, value in enumerate(VALUES):
        cases.append(("value", f"value {i}", _core.value_encode(value)))
    try:
        raise KeyError("k") from ValueError("cause")
    except KeyError as e:
        cases.append(("exc", "exception", _core.exc_encode(e)))
    cases.append(("codes", "code table", _core.codes_dump()))
    return cases


# ---- the children -------------------------------------------------------------------------------


def write_corpus(corpus_file: str) -> None:
    cases = corpus()
    Path(corpus_file).write_bytes(pickle.dumps((cases, _core.codes_dump())))


def _ring(signum: int, frame: Any) -> None:
    raise TimeoutError


def suffer(kind: str, damaged: bytes, number: int) -> None:
    """Decodes one damaged blob and uses what comes out. Any exception is right, bar SystemError."""
    if kind == "codes":
        with contextlib.suppress(Exception):
            _core.codes_load(damaged)
        return
    decode = {"chain": _core.chain_decode, "value": _core.value_decode, "exc": _core.exc_decode}
    try:
        signal.setitimer(signal.ITIMER_PROF, 5)  # its own time: the machine may be busy
        try:
            use(decode[kind](damaged), kind, number)
        finally:  # where it may still ring
            signal.setitimer(signal.ITIMER_PROF, 0)
    except SystemError:
        os.write(2, b"SystemError: an error without an exception, or a result with one\n")
        os.abort()
    except BaseException:
        pass


def use(back: Any, kind: str, number: int) -> None:
    if kind != "chain":
        h.canon(back)
        return
    if number % 3:
        for k in range(4):
            act = _core.chain_throw if (number + k) % 5 == 4 else _core.chain_send
            if act(back, h.Boom(k) if act is _core.chain_throw else k)[0]:
                return
    _core.chain_drop(back)


def attack(corpus_file: str, progress_file: str, first: int) -> None:
    """The child: takes the mutations from number `first` on."""
    faulthandler.enable()
    signal.signal(signal.SIGPROF, _ring)
    if not ASAN:  # whose shadow memory is larger than any limit
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.unraisablehook = lambda u: None
    sys.setrecursionlimit(400)
    cases, codes = pickle.loads(Path(corpus_file).read_bytes())
    _core.codes_load(codes)
    with open(progress_file, "r+b") as stream:
        progress = mmap.mmap(stream.fileno(), 8)
    number = 0
    with h.native_park():
        for index, (kind, _, blob) in enumerate(cases):
            for _, damaged in mutations(blob, SEED + index, EXAMPLES):
                if number >= first:
                    progress[:] = struct.pack("<q", number)
                    suffer(kind, damaged, number)
                    if number % 400 == 0:
                        gc.collect()
                number += 1
    gc.collect()
    progress[:] = struct.pack("<q", -1)


def starve(corpus_file: str, progress_file: str) -> None:
    """The child, without memory: every single allocation of every decode and encode fails once."""
    import _testcapi

    faulthandler.enable()
    cases, codes = pickle.loads(Path(corpus_file).read_bytes())
    _core.codes_load(codes)
    failed = 0
    with h.native_park():
        for kind, name, blob in cases:
            if kind == "codes" or name == DATES:
                continue  # np.dtype("M8[25s]") without memory gives up a reference that it has not
            for n in range(400):
                Path(progress_file).write_text(f"{kind} {name}, allocation {n}")
                before = failed
                failed += starve_once(_testcapi, kind, blob, n)
                if failed == before and n > 60:
                    break
    assert failed > 100, failed
    Path(progress_file).write_text("done")


def starve_once(capi: Any, kind: str, blob: bytes, n: int) -> bool:
    """Lets the n-th allocation of a decode, and of the encode that follows, fail. (Not of an
    exception's encode: the generators of traceback.py crash 3.12 and 3.13 where they get none.)"""
    decode = {"chain": _core.chain_decode, "value": _core.value_decode, "exc": _core.exc_decode}
    encode = {"chain": _core.chain_encode, "value": _core.value_encode, "exc": _core.exc_encode}
    starved = False
    back = None
    capi.set_nomemory(n, n + 1)
    try:
        back = decode[kind](blob)
    except MemoryError:
        starved = True
    finally:
        capi.remove_mem_hooks()
    back = decode[kind](blob) if back is None else back
    if kind == "exc":
        return starved
    capi.set_nomemory(n, n + 1)
    try:
        encode[kind](back)
    except MemoryError:
        starved = True
    except (_core.Pinned, SerializationError):
        pass
    finally:
        capi.remove_mem_hooks()
    if kind == "chain":
        assert len(encode[kind](back)) == len(blob)
        _core.chain_drop(back)
    return starved


# ---- the parent ---------------------------------------------------------------------------------


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    file = tmp_path / "corpus"
    subprocess.run([sys.executable, __file__, "corpus", str(file)], env=h.child_env(5), check=True)
    return file


def name_of(cases: list[Case], number: int) -> str:
    for index, (kind, name, blob) in enumerate(cases):
        for what, _ in mutations(blob, SEED + index, EXAMPLES):
            if number == 0:
                return f"{kind} {name} ({len(blob)} bytes): {what}"
            number -= 1
    return "after the last one"


@pytest.mark.timeout(600)
def test_damaged_bytes_never_crash_or_hang_the_interpreter(corpus_file: Path) -> None:
    cases, _ = pickle.loads(corpus_file.read_bytes())
    progress_file = corpus_file.with_name("progress")
    first, found = 0, []
    while first >= 0 and len(found) < CRASHES:
        progress_file.write_bytes(struct.pack("<q", first))
        command = [sys.executable, __file__, "attack", str(corpus_file), str(progress_file)]
        try:
            run = subprocess.run(
                [*command, str(first)],
                env=h.child_env(5),
                capture_output=True,
                text=True,
                timeout=(60 + EXAMPLES / 5) * (5 if ASAN or DEBUG else 1),
            )
            end, tail = f"exit status {run.returncode}", run.stderr[-1200:]
        except subprocess.TimeoutExpired as e:
            end, tail = f"a hang ({e.timeout} s)", ""
        at = struct.unpack("<q", progress_file.read_bytes())[0]
        if at == -1 and end == "exit status 0":
            break
        found.append(f"{end} at mutation {at}: {name_of(cases, at)}\n{tail}")
        first = at + 1 if at >= 0 else -1
    assert not found, "\n".join(found)


@pytest.mark.skipif(DEBUG, reason="CPython's own assertion fails: MAKE_CELL without memory")
def test_no_failing_allocation_crashes_or_loses_a_continuation(corpus_file: Path) -> None:
    pytest.importorskip("_testcapi", reason="CPYTHON'S _testcapi IS NOT INSTALLED: not run")
    progress_file = corpus_file.with_name("progress")
    run = subprocess.run(
        [sys.executable, __file__, "starve", str(corpus_file), str(progress_file)],
        env=h.child_env(6),
        capture_output=True,
        text=True,
        timeout=500 if ASAN else 100,
    )
    where = progress_file.read_text() if progress_file.exists() else "before the first"
    assert (run.returncode, where) == (0, "done"), f"{where}\n{run.stderr[-2000:]}"


def test_undamaged_corpus_decodes_and_resumes() -> None:
    """The control: the mutants descend from bytes that are right."""
    with h.native_park():
        for kind, name, blob in corpus():
            if kind == "chain":
                done, _ = _core.chain_send(_core.chain_decode(blob), 1)
                assert done in (True, False), name
            elif kind == "value":
                assert type(_core.value_decode(blob)) is list
            elif kind == "exc":
                assert isinstance(_core.exc_decode(blob), KeyError)


@pytest.mark.parametrize("junk", [b"", b"\0", b"\xff" * 3, b"hello world", bytes(range(256))])
@pytest.mark.parametrize("decode", ["chain_decode", "value_decode", "exc_decode"])
def test_what_never_was_a_blob_is_refused_with_an_exception(decode: str, junk: bytes) -> None:
    try:
        getattr(_core, decode)(junk)
    except Exception as e:
        assert not isinstance(e, SystemError)
    else:
        assert decode == "value_decode"


def test_chain_bytes_are_not_taken_for_a_value_that_runs() -> None:
    with h.native_park():
        blob = _core.chain_encode(h.start(bodies.one_park()))
    for decode in (_core.value_decode, _core.exc_decode):
        try:
            decode(blob)
        except Exception as e:
            assert not isinstance(e, SystemError)


if __name__ == "__main__":
    if sys.argv[1] == "corpus":
        write_corpus(sys.argv[2])
    elif sys.argv[1] == "attack":
        attack(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        starve(sys.argv[2], sys.argv[3])
