"""An exception of another process is what a local one is: its file, line and source in its
traceback, its cause, context, notes and group, whatever its class."""

from __future__ import annotations

import asyncio
import linecache
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mpgort
from mpgort import gosched, spawn


@pytest.fixture(scope="module")
def rt() -> Iterator[mpgort.Runtime]:
    with mpgort.Runtime(2) as runtime:
        yield runtime


def fails() -> None:
    raise ValueError("here")  # its line


def handles() -> None:
    try:
        fails()
    except ValueError:
        {}["key"]  # type: ignore[index]  # noqa: B018


def because() -> None:
    try:
        fails()
    except ValueError as e:
        raise LookupError("above") from e


def hushed() -> None:
    try:
        fails()
    except ValueError:
        raise LookupError("above") from None


def noted() -> None:
    e = ValueError("noted")
    e.add_note("first")
    e.add_note("second")
    raise e


def grouped() -> None:
    found: list[Exception] = []
    for f in (fails, because, noted):
        try:
            f()
        except Exception as e:
            found.append(e)
    raise ExceptionGroup("all", [found[0], ExceptionGroup("inner", found[1:])])


def shown(e: BaseException) -> list[tuple[str, str | None]]:
    """(function, source) of each entry."""
    return [(f.name, f.line) for f in traceback.extract_tb(e.__traceback__)]


def caught(rt: mpgort.Runtime, fn: Callable[..., Any], *args: Any) -> BaseException:
    try:
        rt.spawn(fn, *args).result()
    except BaseException as e:
        return e
    raise AssertionError(f"{fn} did not raise")


HERE = ("fails", 'raise ValueError("here")  # its line')


def test_the_traceback_goes_on_where_it_was_raised(rt: mpgort.Runtime) -> None:
    e = caught(rt, fails)
    last = traceback.extract_tb(e.__traceback__)[-1]
    assert last.filename == __file__ and "# its line" in linecache.getline(__file__, last.lineno)
    assert [name for name, _ in shown(e)] == ["caught", "fails"]
    assert shown(e)[-1] == HERE
    text = "".join(traceback.format_exception(e))
    assert text.count('raise ValueError("here")  # its line') == 2  # and in the note of where
    assert "in process" in text


async def outer() -> None:
    await gosched()
    await spawn(middle)


async def middle() -> None:
    await gosched()
    fails()


def test_each_process_on_its_way_is_in_it(rt: mpgort.Runtime) -> None:
    assert [name for name, _ in shown(caught(rt, outer))] == ["caught", "outer", "middle", "fails"]


def test_cause_context_and_notes_are_the_exceptions_own(rt: mpgort.Runtime) -> None:
    e = caught(rt, because)
    assert type(e.__cause__) is ValueError and shown(e.__cause__) == [
        ("because", "fails()"),
        HERE,
    ]
    e = caught(rt, handles)
    assert type(e) is KeyError and e.__cause__ is None and not e.__suppress_context__
    assert e.__context__ is not None and shown(e.__context__)[-1] == HERE
    e = caught(rt, hushed)
    assert e.__suppress_context__ and type(e.__context__) is ValueError
    assert "here" not in "".join(traceback.format_exception(e)).replace("# its line", "")
    assert caught(rt, noted).__notes__ == ["first", "second"]


def test_a_group_keeps_its_members_with_their_tracebacks(rt: mpgort.Runtime) -> None:
    e = caught(rt, grouped)
    assert type(e) is ExceptionGroup and e.message == "all"
    first, inner = e.exceptions
    assert shown(first) == [("grouped", "f()"), HERE]
    assert isinstance(inner, ExceptionGroup)
    assert type(inner.exceptions[0].__cause__) is ValueError
    assert inner.exceptions[1].__notes__ == ["first", "second"]
    hit = []
    try:
        rt.spawn(grouped).result()
    except* LookupError as group:
        hit.append(len(group.exceptions))
    except* ValueError as group:
        hit.append(len(group.exceptions))
    assert hit == [1, 2]


def sink(n: int) -> None:
    sink(n - 1) if n else fails()


def test_of_a_deep_recursion_the_end_is_shown(rt: mpgort.Runtime) -> None:
    entries = shown(caught(rt, sink, 500))
    assert len(entries) == 101 and entries[-1] == HERE


# ---- classes that pickle would stumble over ----------------------------------------------------


class TwoArguments(LookupError):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


class KeywordOnly(ValueError):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class HoldsALock(OSError):
    def __init__(self) -> None:
        super().__init__(5, "io", "file")
        self.lock = threading.Lock()
        self.kept = 3


class Undecided(RuntimeError):
    """It pickles, and cannot be made again."""

    def __reduce__(self) -> Any:
        return Undecided.fail, ("text",)

    @staticmethod
    def fail(text: str) -> None:
        raise ZeroDivisionError("not here")


def raises(kind: str) -> None:
    class Local(KeyError):
        pass

    class LocalWithALock(TimeoutError):
        lock = threading.Lock()

    if kind == "two":
        raise TwoArguments(1, 2)
    if kind == "keyword":
        raise KeywordOnly(code=7)
    if kind == "lock":
        raise HoldsALock
    if kind == "undecided":
        raise Undecided("text")
    raise (Local if kind == "local" else LocalWithALock)("text")


def test_required_arguments_are_no_obstacle(rt: mpgort.Runtime) -> None:
    e: Any = caught(rt, raises, "two")
    assert (type(e), str(e), e.a, e.b) == (TwoArguments, "1 and 2", 1, 2)
    e = caught(rt, raises, "keyword")
    assert (type(e), e.code) == (KeywordOnly, 7)


def test_what_of_it_cannot_cross_is_left_out_and_said(rt: mpgort.Runtime) -> None:
    e: Any = caught(rt, raises, "lock")
    assert (type(e), e.errno, e.filename, e.kept) == (HoldsALock, 5, "file", 3)
    assert not hasattr(e, "lock") and "without its lock" in e.__notes__[0]


def test_a_class_that_cannot_cross_arrives_as_its_nearest_base_with_the_text(
    rt: mpgort.Runtime,
) -> None:
    e = caught(rt, raises, "local")
    assert isinstance(e, KeyError) and type(e).__name__ == "Local" and e.args == ("text",)
    e = caught(rt, raises, "with a lock")
    assert type(e) is TimeoutError and str(e) == "text"
    assert "LocalWithALock arrives as TimeoutError" in e.__notes__[0]
    e = caught(rt, raises, "undecided")
    assert isinstance(e, RuntimeError) and str(e) == "text"


# ---- by way of the faces -----------------------------------------------------------------------


def test_executor_pool_and_asyncio_show_the_same(rt: mpgort.Runtime) -> None:
    def by_executor() -> Any:
        with mpgort.Executor(1) as ex:
            ex.submit(because).result()

    def by_map() -> Any:
        with mpgort.Executor(1) as ex:
            list(ex.map(lambda x: because(), range(3)))

    def by_pool() -> Any:
        with mpgort.Pool(1) as p:
            p.apply(because)

    def by_asyncio() -> Any:
        async def main() -> None:
            await rt.call(because)

        asyncio.run(main())

    for way in (by_executor, by_map, by_pool, by_asyncio):
        with pytest.raises(LookupError, match="above") as info:
            way()
        last = shown(info.value)[-1]
        assert last == ("because", 'raise LookupError("above") from e'), way
        assert isinstance(info.value.__cause__, ValueError), way
        assert shown(info.value.__cause__)[-1] == HERE, way


async def main_panics() -> None:
    mpgort.go(because)
    await mpgort.chan().recv()


def test_a_panic_has_the_traceback_in_its_text_once() -> None:
    with pytest.raises(mpgort.GoroutinePanic) as info:
        mpgort.run(main_panics, procs=1)
    text = str(info.value)
    assert text.count("in fails") == 1 and text.count("in because") == 2
    assert isinstance(info.value.__cause__, LookupError)
    assert isinstance(info.value.__cause__.__cause__, ValueError)
