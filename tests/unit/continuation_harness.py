"""Runs one coroutine body under a schedule of moves, and says what happened.

Every test of continuations is a comparison: the same body, driven with the same answers, once in
plain Python and once with its await chain encoded, dropped, decoded and resumed. What must be
equal is the whole of what a program can notice: the result or the exception with its chain, and
the log of side effects in order.

1. A body is an `async def` of an importable module. It parks with `await park()` and notes side
   effects with `log(...)`. Both are functions of this module, so that no body holds a reference to
   the log: an object shared with the outside would rightly keep it at home.
2. A plan answers the k-th park: `("send", value)`, `("throw", k)` or `("close", None)`.
3. An engine carries out the plan. `PlainEngine` is the oracle and uses nothing of mpgort: its park
   is a Python generator, its drive is `coro.send`. `MovingEngine` moves the chain inside this
   process. `HoppingEngine` passes it to and fro between this process and a `Child`, which has
   another PYTHONHASHSEED.
4. `run` returns an `Outcome`, compared by `==`.

Run as a program (`python continuation_harness.py serve`), this file is that child: a loop over
length-prefixed pickles on stdin and stdout."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
import pickle
import select
import struct
import subprocess
import sys
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MAX_PARKS = 400
CANON_NODES = 4000

Body = Callable[[], Coroutine[Any, Any, Any]]
Act = tuple[str, Any]
Plan = Callable[[int], Act]


class TooManyParks(AssertionError):
    """The body has parked MAX_PARKS times."""


class Boom(Exception):
    """What a plan throws. Its argument is the number of the park it was thrown at."""


# ---- what a body may use ------------------------------------------------------------------------

LOG: list[Any] = []


def log(*entry: Any) -> None:
    """Notes a side effect. The entry is frozen at once: later changes to its parts do not show."""
    LOG.append(canon(entry))


class _PlainPark:
    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield)


_park: Callable[[], Awaitable[Any]] = _PlainPark


def park() -> Awaitable[Any]:
    """The awaitable that always suspends and gives what it is resumed with."""
    return _park()


def exc_info_name() -> str | None:
    """The type of the exception that is being handled in the caller, as sys.exc_info() sees it."""
    kind = sys.exc_info()[0]
    return None if kind is None else kind.__name__


# ---- a form of any value that can be compared between runs and processes ------------------------


def canon(value: Any) -> Any:
    """A nested tuple of names and reprs: types count, set order and addresses do not."""
    return _canon(value, (), [CANON_NODES])


def _canon(value: Any, above: tuple[int, ...], left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        return "..."
    if isinstance(value, BaseException):
        return describe(value)
    kind = type(value)
    record = dataclasses.is_dataclass(value) and kind is not type
    listlike = isinstance(value, list)
    if kind not in (tuple, dict, set, frozenset) and not listlike and not record:
        return (kind.__name__, repr(value).split(" at 0x")[0])
    if id(value) in above:
        return ("cycle", len(above) - above.index(id(value)))
    above = (*above, id(value))
    if record:
        names = [f.name for f in dataclasses.fields(value)]
        return (kind.__name__, *((n, _canon(getattr(value, n), above, left)) for n in names))
    if kind is dict:
        pairs = ((_canon(k, above, left), _canon(v, above, left)) for k, v in value.items())
        return ("dict", *pairs)
    items = [_canon(v, above, left) for v in value]
    return (kind.__name__, *(sorted(items, key=repr) if kind in (set, frozenset) else items))


def describe(exc: BaseException | None, seen: tuple[int, ...] = ()) -> Any:
    """Type, arguments, notes and both chains of an exception."""
    if exc is None:
        return None
    if id(exc) in seen:
        return ("cycle", len(seen) - seen.index(id(exc)))
    seen = (*seen, id(exc))
    parts: tuple[Any, ...] = (
        type(exc).__name__,
        tuple(canon(a) for a in exc.args if not isinstance(a, (BaseException, list))),
        tuple(getattr(exc, "__notes__", ())),
        ("cause", describe(exc.__cause__, seen)),
        ("context", describe(exc.__context__, seen), exc.__suppress_context__),
    )
    if isinstance(exc, BaseExceptionGroup):
        parts += (("group", *(describe(e, seen) for e in exc.exceptions)),)
    return parts


# ---- plans --------------------------------------------------------------------------------------


def answer_numbers(k: int) -> Act:
    return ("send", k)


def answer_none(k: int) -> Act:
    return ("send", None)


def throw_at(at: int) -> Plan:
    """Numbers, but park number `at` raises Boom(at)."""
    return lambda k: ("throw", k) if k == at else ("send", k)


def close_at(at: int) -> Plan:
    return lambda k: ("close", None) if k == at else ("send", k)


# ---- engines ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """All that can be noticed of a run. `dropped` is what reached sys.unraisablehook; it is left
    out of `==` because it arises in the child where the child drops something."""

    how: str
    what: Any
    log: list[Any]
    parks: int
    moves: int = field(compare=False, default=0)
    pinned: list[str] = field(compare=False, default_factory=list)
    dropped: list[str] = field(compare=False, default_factory=list)


class Closed(Exception):
    """Raised by an engine's resume after a `close`: there is no result."""


class PlainEngine:
    """The oracle: no mpgort at all."""

    def __init__(self) -> None:
        self.moves = 0
        self.pinned: list[str] = []

    def start(self, coro: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
        global _park
        _park = _PlainPark
        self.coro: Any = coro
        return self._step(coro.send, None)

    def resume(self, k: int, act: Act) -> tuple[bool, Any]:
        verb, arg = act
        if verb == "close":
            self.coro.close()
            raise Closed
        if verb == "throw":
            return self._step(self.coro.throw, Boom(arg))
        return self._step(self.coro.send, arg)

    @staticmethod
    def _step(call: Callable[[Any], Any], arg: Any) -> tuple[bool, Any]:
        try:
            return (False, call(arg))
        except StopIteration as stop:
            return (True, stop.value)


def core() -> Any:
    return importlib.import_module("mpgort._core")


def require_frames() -> None:
    """Skips the calling test module where frames do not move. On the interpreters that mpgort is
    made for it fails instead: else a broken self-test would turn all of these tests off."""
    if core().frames_ok:
        return
    import pytest

    reason = f"frames do not move here: {core().frames_reason}"
    made_for = sys.platform == "linux" and (3, 11) <= sys.version_info < (3, 14)
    assert not (made_for and sys.implementation.name == "cpython"), reason
    pytest.skip(reason, allow_module_level=True)


def apply_act(coro: Any, act: Act) -> tuple[bool, Any]:
    """Resumes a chain that stands at a park of mpgort's."""
    verb, arg = act
    if verb == "close":
        coro.close()
        raise Closed
    if verb == "throw":
        return core().chain_throw(coro, Boom(arg))  # type: ignore[no-any-return]
    return core().chain_send(coro, arg)  # type: ignore[no-any-return]


class MovingEngine:
    """Moves the chain within this process at each park for which `when(k)` holds. With `may_pin` a
    refusal is noted and the coroutine goes on as it is; without, it is raised."""

    def __init__(
        self,
        when: Callable[[int], bool] = lambda k: True,
        *,
        collect: bool = False,
        fast_forward: bool = True,
        may_pin: bool = False,
    ) -> None:
        self.when, self.collect, self.fast_forward = when, collect, fast_forward
        self.may_pin = may_pin
        self.moves = 0
        self.pinned: list[str] = []

    def start(self, coro: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
        global _park
        _park = core().park
        core().set_fast_forward(self.fast_forward)
        self.coro: Any = coro
        return core().chain_send(coro, None)  # type: ignore[no-any-return]

    def resume(self, k: int, act: Act) -> tuple[bool, Any]:
        if self.when(k):
            self._move()
        return apply_act(self.coro, act)

    def _encode(self) -> bytes | None:
        try:
            return core().chain_encode(self.coro)  # type: ignore[no-any-return]
        except core().Pinned as e:
            if not self.may_pin:
                raise
            self.pinned.append(str(e))
            return None

    def _move(self) -> None:
        if (blob := self._encode()) is None:
            return
        core().chain_drop(self.coro)
        self.coro = None
        if self.collect:
            gc.collect()
        self.coro = core().chain_decode(blob)
        if self.collect:
            gc.collect()
        self.moves += 1


class HoppingEngine(MovingEngine):
    """Odd parks are resumed in the child, even ones here; each resume is preceded by a move. What
    is pinned goes on where it is."""

    def __init__(self, child: Child, may_pin: bool = False) -> None:
        super().__init__(may_pin=may_pin)
        self.child = child
        self.away: tuple[bytes | None, bytes] | None = None

    def resume(self, k: int, act: Act) -> tuple[bool, Any]:
        blob: bytes | None
        if self.coro is not None:
            blob = self._encode()
            if blob is None:
                return apply_act(self.coro, act)
            core().chain_drop(self.coro)
            self.coro = None
        else:
            assert self.away is not None
            blob, codes = self.away
            if blob is not None:
                core().codes_load(codes)
        self.moves += blob is not None
        if k % 2 == 0 and blob is not None:
            self.coro = core().chain_decode(blob)
            return apply_act(self.coro, act)
        kind, what, entries, codes = self.child.call("resume", blob, core().codes_dump(), act)
        LOG.extend(entries)
        if kind in ("parked", "pinned"):
            if kind == "pinned":
                assert self.may_pin, what
                self.pinned.append(what)
                what = None
            self.away = (what, codes)
            return (False, None)
        if kind == "closed":
            raise Closed
        if kind == "raised":
            raise Elsewhere(what)
        return (True, Canon(what))


class Elsewhere(Exception):
    """The body raised in the child; the argument is the description of what it raised."""


@dataclass
class Canon:
    """A result that comes from the child in its canonical form."""

    form: Any


def run(body: Body, plan: Plan, engine: Any) -> Outcome:
    """Drives `body` to its end, with warnings as errors."""
    global _park
    LOG.clear()
    before = _park
    k = 0
    with warnings.catch_warnings(), unraisable() as dropped:
        warnings.simplefilter("error")
        try:
            done, obj = engine.start(body())
            while not done:
                if k == MAX_PARKS:
                    raise TooManyParks
                done, obj = engine.resume(k, plan(k))
                k += 1
            how, what = "return", obj.form if isinstance(obj, Canon) else canon(obj)
        except Closed:
            how, what = "closed", None
        except Elsewhere as e:
            how, what = "raise", e.args[0]
        except AssertionError:
            raise
        except BaseException as e:
            if type(e).__name__ in ("Pinned", "Heavy", "BadContinuation", "CodeMismatch"):
                raise
            how, what = "raise", describe(e)
            del e
        finally:
            _park = before
            engine.coro = obj = None
        gc.collect()
    return Outcome(how, what, list(LOG), k, engine.moves, engine.pinned, sorted(dropped))


@contextmanager
def unraisable() -> Iterator[list[str]]:
    """Gives the list of what reaches sys.unraisablehook inside the block, without addresses."""
    caught: list[str] = []
    former = sys.unraisablehook

    def hook(u: Any) -> None:
        where = getattr(u.object, "__qualname__", type(u.object).__name__)
        caught.append(f"{u.exc_value!r} in {where}")

    sys.unraisablehook = hook
    try:
        yield caught
    finally:
        sys.unraisablehook = former


# ---- helpers for tests that move a chain by hand ------------------------------------------------


@contextmanager
def native_park() -> Iterator[None]:
    """Inside the block `park()` is mpgort's own."""
    global _park
    before, _park = _park, core().park
    try:
        yield
    finally:
        _park = before


def start(coro: Coroutine[Any, Any, Any]) -> Any:
    """Runs a fresh coroutine to its first park; returns it."""
    done, obj = core().chain_send(coro, None)
    assert not done, f"ended with {obj!r} before it parked"
    return coro


def move(coro: Any) -> Any:
    """encode, drop, decode."""
    blob = core().chain_encode(coro)
    core().chain_drop(coro)
    return core().chain_decode(blob)


def finish(coro: Any, value: Any = None) -> Any:
    """Sends `value` and then None until the coroutine returns."""
    for _ in range(MAX_PARKS):
        done, obj = core().chain_send(coro, value)
        if done:
            return obj
        value = None
    raise TooManyParks


def refused(coro: Coroutine[Any, Any, Any], *words: str) -> Any:
    """Starts the coroutine; encoding it must be refused with all `words`, twice alike."""
    start(coro)
    first, second = reason(coro), reason(coro)
    assert first == second
    for word in words:
        assert word in first, first
    return coro


def reason(coro: Any) -> str:
    """Why it cannot be encoded. The exception, which may hold what it speaks of, is let go."""
    try:
        core().chain_encode(coro)
    except core().Pinned as e:
        return str(e)
    raise AssertionError("not refused")


def here(fn: Callable[..., Any]) -> str:
    return f"{Path(fn.__code__.co_filename).name}:"


# ---- the other process --------------------------------------------------------------------------


class Child:
    """A process of the same program with its own hash seed, that answers one call at a time.

    `limit` seconds without an answer, or its death, is an error that names the exit status."""

    def __init__(self, seed: int, limit: float = 60.0) -> None:
        self.limit = limit
        self.proc = subprocess.Popen(
            [sys.executable, str(HERE / "continuation_harness.py"), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_env(seed),
        )

    def call(self, verb: str, *args: Any) -> Any:
        assert self.proc.stdin is not None and self.proc.stdout is not None
        try:
            _write(self.proc.stdin, (verb, args))
        except BrokenPipeError:
            raise AssertionError(f"the child is gone: {self.proc.wait()}") from None
        if not select.select([self.proc.stdout], [], [], self.limit)[0]:
            raise AssertionError(f"no answer to {verb} in {self.limit} s")
        answer = _read(self.proc.stdout)
        if answer is None:
            raise AssertionError(f"the child died in {verb}: {self.proc.wait()}")
        ok, what = answer
        if not ok:
            raise AssertionError(f"in the child: {what}")
        return what

    def close(self) -> None:
        assert self.proc.stdin is not None and self.proc.stdout is not None
        self.proc.stdin.close()
        try:
            self.proc.wait(10)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        self.proc.stdout.close()


def child_env(seed: int) -> dict[str, str]:
    """The environment of a child: these modules and this very mpgort, and the given hash seed."""
    package = str(Path(core().__file__).resolve().parent.parent)
    path = [str(HERE), package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(path)}


def define(name: str, source: str) -> types.ModuleType:
    """A module made from text; the same text makes the same code in each process."""
    module = types.ModuleType(name)
    module.__dict__["__file__"] = f"<{name}>"
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module


def _write(stream: Any, obj: Any) -> None:
    data = pickle.dumps(obj, protocol=5)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _read(stream: Any) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        return None
    data = stream.read(struct.unpack("<Q", head)[0])
    return pickle.loads(data)


_pinned_here: Any = None


def _serve_resume(blob: bytes | None, codes: bytes, act: Act) -> Any:
    """Child side of a hop: (kind, what, log, code table). Without a blob: what is pinned here."""
    global _pinned_here
    LOG.clear()
    if blob is None:
        coro = _pinned_here
    else:
        core().codes_load(codes)
        coro = core().chain_decode(blob)
    _pinned_here = None
    end = None
    try:
        done, obj = apply_act(coro, act)
        if done:
            end = ("returned", canon(obj))
    except Closed:
        end = ("closed", None)
    except BaseException as e:
        end = ("raised", describe(e))
    if end is not None:
        coro = obj = None
        gc.collect()  # what closes generators now does so before the log is taken
        return (*end, list(LOG), b"")
    try:
        away = core().chain_encode(coro)
    except core().Pinned as e:
        _pinned_here = coro
        return ("pinned", str(e), list(LOG), b"")
    core().chain_drop(coro)
    return ("parked", away, list(LOG), core().codes_dump())


def _serve_define(name: str, source: str) -> None:
    define(name, source)


def _serve_value(blob: bytes, codes: bytes) -> Any:
    """Decodes a value and encodes it again: (canonical form, bytes)."""
    core().codes_load(codes)
    value = core().value_decode(blob)
    return (canon(value), core().value_encode(value), core().codes_dump())


def serve() -> None:
    """The child's loop. Answers (True, result) or (False, text of the error)."""
    global _park
    _park = core().park
    verbs: dict[str, Callable[..., Any]] = {
        "resume": _serve_resume,
        "define": _serve_define,
        "value": _serve_value,
    }
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (request := _read(sys.stdin.buffer)) is not None:
        verb, args = request
        try:
            answer = (True, verbs[verb](*args))
        except BaseException as e:
            answer = (False, f"{type(e).__name__}: {e}")
        _write(out, answer)


if __name__ == "__main__":
    # The bodies import this file by its name: serve in that copy, so that there is one LOG.
    importlib.import_module("continuation_harness").serve()
