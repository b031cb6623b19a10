"""Interpreters that mpgort is not made for: refused, or taken with every goroutine at home."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import Programs

ROOT = Path(__file__).resolve().parents[2]


def test_a_free_threaded_build_is_refused_by_the_compiler_with_the_reason() -> None:
    done = subprocess.run(
        ["gcc", "-fsyntax-only", "-DPy_GIL_DISABLED", "-I", sysconfig.get_path("include")]
        + ["-I", str(ROOT / "shm"), str(ROOT / "mpgort/_core/codec.c")],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.search(r"error: #error .*a CPython with the GIL: python3\.13, not", done.stderr)


def test_a_free_threaded_interpreter_is_told_at_the_import(program: Programs) -> None:
    r = program("""
        import sys
        sys.abiflags = "t"  # as 3.13t has it, where there is no compiled part
        import mpgort
    """)
    assert r.status == 1
    assert "ImportError: mpgort needs a CPython with the GIL, and " in r.err
    assert "is a free-threaded build" in r.err


# A type is larger than the header says; or all sizes are right, and a frame comes out wrong.
OTHERS = {
    "coroutine": """
        import ctypes, types
        TYPE = types.CoroutineType
        """,
    "list_iterator": """
        import ctypes
        TYPE = type(iter([]))
        """,
    "self-test": """
        import sys, types
        import importlib.util
        spec = importlib.util.find_spec("mpgort")
        package = sys.modules["mpgort"] = types.ModuleType("mpgort")
        package.__path__ = spec.submodule_search_locations
        import mpgort._code
        async def self_test(park):
            return [await park(), await park()]
        mpgort._code.self_test = self_test
        del sys.modules["mpgort"]
        TYPE = None
        """,
}
REASONS = {
    "coroutine": "this interpreter's coroutine has another layout",
    "list_iterator": "this interpreter's list_iterator has another layout",
    "self-test": "the self-test came to another result",
}
PROGRAM = """
        if TYPE is not None:
            size = ctypes.c_ssize_t.from_address(id(TYPE) + 32)
            assert size.value == TYPE.__basicsize__
            size.value += 8
        import os, sys, warnings
        import mpgort
        from mpgort import _core, chan, go, spawn

        async def echo(a, b):
            pids = {os.getpid()}
            async for v in a:
                pids.add(os.getpid())
                await b.send(v)
            b.close()
            return len(pids)

        async def feed(a):
            for i in range(100):
                await a.send(i)
            a.close()

        async def waits():
            await chan().recv()

        async def main():
            a, b = chan(), chan()
            h = spawn(echo, a, b)
            go(feed, a)
            go(waits)
            got = [v async for v in b]
            dump = ""
            while "[chan receive, pinned: " not in dump:
                await mpgort.gosched()
                dump = mpgort._traceback.dump(_core.current())
            print(got == list(range(100)), await h)
            print(_core.frames_reason in dump)

        print(_core.frames_ok, _core.frames_reason)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mpgort.run(main, procs=int(sys.argv[1]))
        print([w.category.__name__ for w in caught], _core.frames_reason in str(caught[0].message))
        """


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("procs", ("0", "2"))
@pytest.mark.parametrize("what", OTHERS)
def test_where_frames_are_laid_out_otherwise_all_goroutines_stay_at_home(
    program: Programs, what: str, procs: str
) -> None:
    r = program(OTHERS[what] + PROGRAM, procs)
    lines = r.out.splitlines()
    assert r.status == 0, r.err
    assert lines[0].startswith("False ") and REASONS[what] in lines[0]
    assert lines[1:] == ["True 1", "True", "['RuntimeWarning'] True"]


def test_the_interpreters_that_it_is_made_for_pass(program: Programs) -> None:
    r = program("""
        import sys
        from mpgort import _core
        print(_core.frames_ok, repr(_core.frames_reason))
    """)
    assert (r.status, r.out) == (0, "True ''\n"), r.err
    assert (3, 11) <= sys.version_info < (3, 14)


def test_a_ctrl_c_in_the_self_test_of_the_import_is_a_ctrl_c(program: Programs) -> None:
    """It was taken for the self-test's answer: the program went on, all its goroutines at home."""
    r = program("""
        import sys

        def interrupt(frame, event, arg):
            if frame.f_code.co_name == "self_test":
                raise KeyboardInterrupt

        sys.settrace(interrupt)
        try:
            import mpgort
        except KeyboardInterrupt:
            sys.settrace(None)
            print("interrupted", "mpgort._core" in sys.modules)
    """)
    assert (r.status, r.out) == (0, "interrupted False\n"), r.err
