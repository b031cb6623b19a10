"""Exceptions by value: what one that is raised on another M is like where it is awaited."""

from __future__ import annotations

import threading
from typing import Any

import continuation_harness as h
import pytest

from mpgort import _core, _exc


class Custom(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.detail = code, detail


def exc_trip(e: BaseException) -> BaseException:
    """What the one who awaits gets, without the note of where it comes from."""
    back = _core.exc_decode(_core.exc_encode(e))
    assert isinstance(back, BaseException)
    if e.__cause__ is None and (e.__context__ is None or e.__suppress_context__):
        assert type(back.__cause__) is _exc._RemoteTraceback
        back.__cause__ = None
        back.__suppress_context__ = e.__suppress_context__
    return back


def raised(fn: Any) -> BaseException:
    try:
        fn()
    except BaseException as e:
        return e
    raise AssertionError("did not raise")


@pytest.mark.parametrize(
    "made",
    [
        KeyError("k"), OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf8", b"x", 0, 1, "r"),
        StopIteration(5), SystemExit(3), KeyboardInterrupt(), Custom(7, detail="d"),
        ExceptionGroup("g", [ValueError(1), ExceptionGroup("h", [KeyError("k")])]),
        ImportError("m", name="n", path="p"), SyntaxError("bad", ("f", 1, 2, "text")), h.Boom(1),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_exception_crosses_with_type_args_and_attributes(made: BaseException) -> None:
    back = exc_trip(made)
    assert h.describe(back) == h.describe(made)
    assert str(back) == str(made)
    if isinstance(made, Custom):
        assert (back.code, back.detail) == (7, "d")  # type: ignore[attr-defined]


def test_cause_context_suppression_and_notes_cross() -> None:
    def fn() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904
        except ValueError as e:
            err = RuntimeError("third")
            err.add_note("a note")
            raise err from e

    made = raised(fn)
    assert h.describe(exc_trip(made)) == h.describe(made)


def test_traceback_of_the_other_side_is_in_the_text() -> None:
    import traceback

    def culprit_function() -> None:
        raise KeyError("deep")

    back = _core.exc_decode(_core.exc_encode(raised(culprit_function)))
    assert "culprit_function" in "".join(traceback.format_exception(back))


def test_what_of_an_exception_cannot_cross_is_left_out_and_noted() -> None:
    e = Custom(1, detail="d")
    e.args = (threading.Lock(), 5)
    e.detail = threading.Lock()  # type: ignore[assignment]
    back = exc_trip(e)
    assert type(back) is Custom and back.args[1] == 5 and "lock" in back.args[0]
    assert back.code == 1 and not hasattr(back, "detail")
    assert "args[0]" in back.__notes__[0] and "detail" in back.__notes__[1]
    assert all("a lock" in note for note in back.__notes__)


class Liar(Exception):
    """Says itself how it is pickled, and is wrong."""

    def __reduce__(self) -> Any:
        return (int, ("no number",))


class Slotted(Exception):
    __slots__ = ("extra",)

    def __reduce__(self) -> Any:
        return (slotted, (*self.args, self.extra))


def slotted(what: str, extra: int) -> Slotted:
    e = Slotted(what)
    e.extra = extra
    return e


def test_exception_that_says_how_it_is_pickled_is_asked_and_not_trusted() -> None:
    back = exc_trip(slotted("a", 7))
    assert type(back) is Slotted and back.extra == 7
    back = exc_trip(Liar("x"))
    assert type(back) is Liar and back.args == ("x",) and "no number" in back.__notes__[0]


def test_exception_of_a_class_that_is_not_there_arrives_as_its_builtin_base() -> None:
    class Gone(LookupError):
        def __reduce__(self) -> Any:
            raise TypeError("stays here")

    outer = ExceptionGroup("g", [Gone("x"), KeyError("k")])
    outer.__context__ = outer.exceptions[1]
    rows = _exc.exc_rows(outer, refuse_gone, _core.value_decode)
    back = _exc.exc_made(*rows, _core.value_decode, no_traceback)
    assert type(back) is ExceptionGroup and type(back.exceptions[0]) is LookupError
    assert back.exceptions[0].args == ("x",) and "stays away" in back.exceptions[0].__notes__[0]
    assert back.__context__ is back.exceptions[1]


def no_traceback(entries: list[Any]) -> None:
    pass


def refuse_gone(o: Any, keep: bool) -> bytes:
    what = o[0] if type(o) is tuple else o
    if "Gone" in getattr(what, "__qualname__", type(what).__qualname__):
        raise TypeError("stays away")
    return _core.value_encode(o)


def test_row_that_the_other_side_cannot_make_costs_only_itself() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise Custom(3, detail="d") from OSError(2, "two")
    except Custom as e:
        pid, rows = _exc.exc_rows(e, lambda o, keep: _core.value_encode(o), _core.value_decode)
    rows[0] = (b"nothing", *rows[0][1:])
    back = _exc.exc_made(pid, rows, _core.value_decode, no_traceback)
    assert type(back) is Exception and back.args == ("code 3",)
    assert "could not be made here" in back.__notes__[0]
    assert back.__cause__.errno == 2 and back.__context__.args == ("inner",)


def test_exception_chain_with_a_cycle_crosses() -> None:
    a, b = KeyError("a"), ValueError("b")
    a.__context__, b.__context__ = b, a
    back = exc_trip(a)
    assert type(back.__context__) is ValueError
