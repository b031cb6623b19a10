"""What never moves: a frame that holds an open file, a lock, a weak reference stays at home.

The refusal must name the local and what it is, leave the coroutine exactly as it was, so that it
can go on live, and be over as soon as the local is."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import continuation_harness as h
import pytest

from mpgort import _core

h.require_frames()


@pytest.fixture(autouse=True)
def parks() -> Iterator[None]:
    with h.native_park():
        yield


class _Thing:
    def __init__(self) -> None:
        self.items: list[Any] = []


async def _holds(thing: Any) -> Any:
    await h.park()
    return thing


async def _open_file() -> Any:
    stream = open(__file__)  # noqa: ASYNC230, SIM115
    await h.park()
    with stream:
        return stream.read(3)


async def _lock() -> Any:
    guard = threading.Lock()
    await h.park()
    return guard.acquire(blocking=False)


async def _inside_a_lock() -> Any:
    with threading.Lock():
        await h.park()
    return True


async def _socket() -> Any:
    conn = socket.socket()
    await h.park()
    conn.close()
    return conn.fileno()


async def _weakref() -> Any:
    ref = weakref.ref(_Thing)
    await h.park()
    return ref() is _Thing


async def _weakly_referenced() -> Any:
    target = _Thing()
    WEAK.append(weakref.ref(target))
    await h.park()
    return WEAK.pop()() is target


WEAK: list[Any] = []


class _Sup(_Thing):
    async def go(self) -> Any:
        above = super()
        await h.park()
        return above.__init__.__func__ is _Thing.__init__  # type: ignore[misc]


async def _super_object() -> Any:
    return await _Sup().go()


def _lines() -> Iterator[str]:
    with open(__file__) as stream:
        yield from stream


async def _generator_with_a_file() -> Any:
    lines = _lines()
    first = next(lines)
    await h.park()
    lines.close()
    return first


async def _iterator_of_a_file() -> Any:
    with open(__file__) as stream:  # noqa: ASYNC230
        for line in stream:
            await h.park()
            return line


async def _thread() -> Any:
    worker = threading.Thread(target=int)
    await h.park()
    worker.start()
    worker.join()
    return worker.is_alive()


async def _frame_object() -> Any:
    frame = sys._getframe()
    await h.park()
    return frame.f_code.co_name


async def _memoryview() -> Any:
    view = memoryview(bytearray(b"abc"))
    await h.park()
    view[0] = 120
    return bytes(view)


async def _temporary_file() -> Any:
    with tempfile.TemporaryFile() as tmp:
        await h.park()
        return tmp.write(b"abc")


class _Finalized:
    def __del__(self) -> None:
        h.log("deleted")


async def _finalizer() -> Any:
    thing = _Finalized()
    await h.park()
    return type(thing).__name__


async def _regex_match() -> Any:
    found = re.match("(a)(b)", "ab")
    await h.park()
    return found and found.groups()


NEVER: list[tuple[Any, str, str, Any]] = [
    (_open_file, "stream", "TextIOWrapper", '"""'),
    (_lock, "guard", "lock", True),
    (_inside_a_lock, "", "lock", True),
    (_socket, "conn", "socket", -1),
    (_weakref, "ref", weakref.ref.__name__, True),
    (_weakly_referenced, "target", "_Thing", True),
    (_super_object, "above", "super", True),
    (_generator_with_a_file, "stream", "TextIOWrapper", None),
    (_iterator_of_a_file, "", "TextIOWrapper", None),
    (_thread, "worker", "", False),
    (_frame_object, "frame", "frame", "_frame_object"),
    (_memoryview, "view", "memoryview", b"xbc"),
    (_temporary_file, "tmp", "", 3),
    (_finalizer, "thing", "_Finalized", "_Finalized"),
]


@pytest.mark.parametrize(
    "body, local, kind, result", NEVER, ids=[row[0].__name__[1:] for row in NEVER]
)
def test_what_cannot_move_keeps_the_goroutine_home_and_is_named(
    body: Any, local: str, kind: str, result: Any
) -> None:
    function = {_super_object: "go", _generator_with_a_file: "_lines"}.get(body, body.__name__)
    coro = h.refused(body(), local, kind, function, h.here(body))
    got = h.finish(coro)
    assert result is None or got == result


def test_regex_match_is_moved_whole_or_refused() -> None:
    coro = h.start(_regex_match())
    with contextlib.suppress(_core.Pinned):
        coro = h.move(coro)
    assert h.finish(coro) == ("a", "b")


async def _closes_its_file() -> Any:
    with open(__file__) as stream:  # noqa: ASYNC230
        await h.park()
    del stream
    await h.park()
    return "light"


def test_goroutine_moves_again_once_the_file_is_closed() -> None:
    coro = h.refused(_closes_its_file(), "stream")
    assert _core.chain_send(coro, None)[0] is False
    assert h.finish(h.move(coro)) == "light"


def test_reason_names_the_line_where_the_frame_stands() -> None:
    coro = h.start(_open_file())
    with pytest.raises(_core.Pinned) as info:
        _core.chain_encode(coro)
    line = coro.cr_frame.f_lineno
    assert f"{Path(__file__).name}:{line}" in str(info.value)
    assert h.finish(coro)


class _Explodes:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("not today")


async def _reduce_raises() -> Any:
    thing = _Explodes()
    await h.park()
    return type(thing).__name__


def test_exception_of_a_users_reduce_is_a_refusal_with_its_text() -> None:
    assert h.finish(h.refused(_reduce_raises(), "thing", "not today")) == "_Explodes"


class _Meddles:
    target: Any = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        for act in (lambda: _Meddles.target.send(None), lambda: _Meddles.target.close()):
            try:
                act()
            except BaseException as e:
                h.log(type(e).__name__)
        return (_Thing, ())


async def _holds_a_meddler() -> Any:
    thing = _Meddles()
    try:
        await h.park()
    finally:
        h.log("finally")
    return type(thing).__name__


def test_user_code_that_runs_during_the_encoding_cannot_resume_the_coroutine() -> None:
    h.LOG.clear()
    coro = h.start(_holds_a_meddler())
    _Meddles.target = coro
    try:
        with contextlib.suppress(_core.Pinned):
            _core.chain_encode(coro)
    finally:
        _Meddles.target = None
    assert ("tuple", ("str", "'finally'")) not in h.LOG
    assert h.finish(coro) == "_Meddles"


class _Reenters:
    def __reduce_ex__(self, protocol: Any) -> Any:
        inner = h.start(_holds([1, 2]))
        assert h.finish(h.move(inner)) == [1, 2]
        _core.value_decode(_core.value_encode({"a": [1]}))
        return (_Thing, ())


def test_encoder_can_be_entered_again_from_a_users_reduce() -> None:
    async def body() -> Any:
        first, thing, last = ["x"], _Reenters(), ["y"]
        both = (first, last)
        await h.park()
        return first, type(thing).__name__, both[1] is last

    coro = h.start(body())
    with contextlib.suppress(_core.Pinned):
        coro = h.move(coro)
    out = h.finish(coro)
    assert (out[0], out[2]) == (["x"], True)
