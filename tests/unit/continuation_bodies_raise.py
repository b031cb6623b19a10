"""Bodies for test_continuation.py (see continuation_bodies.py): what is raised, and `with`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

from continuation_bodies import _count, _leaf
from continuation_harness import Boom, exc_info_name, log, park

MAY_PIN = {
    "suspended_exception_group_handler",
}


# ---- exceptions ---------------------------------------------------------------------------------


async def try_except_else_finally() -> Any:
    out: list[Any] = []
    for i in range(3):
        try:
            out.append(await park())
            if i == 1:
                raise ValueError(i)
        except ValueError as e:
            out.append(("caught", e.args, await park()))
        except Boom as e:
            log("boom", e.args)
        else:
            out.append(("else", await park()))
        finally:
            log("finally", i, await park())
    return out


async def bare_raise_after_the_move() -> Any:
    try:
        try:
            raise KeyError("one")
        except KeyError:
            await park()
            raise
    except KeyError as e:
        return "reraised", e.args, e.__context__


async def handled_exception_becomes_context() -> Any:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            log(exc_info_name())
            await park()
            log(exc_info_name())
            raise ValueError("second")  # noqa: B904
    except ValueError as e:
        return e


async def context_crosses_frames() -> Any:
    async def inner() -> Any:
        log("inner sees", exc_info_name())
        await park()
        log("inner sees", exc_info_name())
        raise TypeError("inner")

    try:
        try:
            raise KeyError("outer")
        except KeyError:
            await inner()
    except TypeError as e:
        return e


async def nested_handlers_unwind() -> Any:
    try:
        raise KeyError(1)
    except KeyError as a:
        await park()
        try:
            raise IndexError(2)
        except IndexError as b:
            await park()
            try:
                raise OSError(3, "three")
            except OSError as c:
                await park()
                chain = (c.__context__ is b, b.__context__ is a, a.__context__)
                log(exc_info_name(), c.errno)
            log(exc_info_name())
            await park()
        log(exc_info_name())
        await park()
    return chain, exc_info_name()


async def raise_from_and_notes() -> Any:
    cause = ValueError("cause")
    try:
        try:
            await park()
            raise RuntimeError("effect") from cause
        except RuntimeError as e:
            e.add_note("a note")
            await park()
            raise
    except RuntimeError as e:
        await park()
        return e, e.__cause__ is cause, e.__suppress_context__


async def one_exception_known_by_three_names() -> Any:
    kept = []
    try:
        raise KeyError("k")
    except KeyError as e:
        kept.append(e)
        await park()
        return kept[0] is e, sys.exc_info()[1] is e, sys.exception() is e


async def traceback_of_a_handled_exception() -> Any:
    def raiser() -> None:
        raise KeyError("deep")

    try:
        raiser()
    except KeyError as e:
        await park()
        try:
            raise e
        except KeyError as again:
            return again is e, again.__traceback__ is not None


async def finally_parks_while_an_exception_flies() -> Any:
    async def inner() -> None:
        try:
            await park()
            raise KeyError("flying")
        finally:
            log("cleanup", await park(), exc_info_name())
            try:
                await park()
            finally:
                log("more cleanup")

    try:
        await inner()
    except KeyError as e:
        return e


async def return_in_finally_parks() -> Any:
    for _ in range(2):
        try:
            return await park()
        finally:
            log("finally", await park())


async def return_value_waits_for_finally() -> Any:
    async def inner() -> list[Any]:
        value = [1]
        try:
            return value
        finally:
            value.append(await park())

    return await inner()


async def swallowed_in_a_loop() -> Any:
    out = []
    for i in range(4):
        try:
            try:
                out.append(await park())
                if i % 2:
                    raise LookupError(i)
            finally:
                out.append(("f", await park()))
        except (LookupError, Boom) as e:
            out.append(type(e).__name__)
            continue
    return out


class _Custom(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.detail = code, detail


async def exception_with_its_own_init() -> Any:
    try:
        raise _Custom(7, detail="d")
    except _Custom as e:
        await park()
        try:
            raise
        except _Custom as f:
            return e is f, f.args, f.code, f.detail


async def suspended_exception_group_handler() -> Any:
    out: list[Any] = []
    try:
        try:
            raise ExceptionGroup("g", [ValueError(1), KeyError("k"), TypeError("t")])
        except* ValueError as eg:
            out.append([e.args for e in eg.exceptions])
            await park()
        except* KeyError as eg:
            out.append([e.args for e in eg.exceptions])
            await park()
    except BaseExceptionGroup as rest:
        await park()
        out.append(rest)
    return out


async def stop_iteration_becomes_runtime_error() -> Any:
    async def inner() -> None:
        await park()
        raise StopIteration("no")

    try:
        await inner()
    except RuntimeError as e:
        await park()
        return e


async def boom_goes_through_three_frames() -> Any:
    async def a() -> Any:
        try:
            return await b()
        except Boom as e:
            e.add_note("through a")
            raise

    async def b() -> Any:
        try:
            return await _leaf("c"), await _leaf("d")
        finally:
            log("b leaves", exc_info_name())

    try:
        return await a()
    except Boom as e:
        log(e.__notes__)
        await park()
        raise RuntimeError("wrapped") from e


async def ignores_the_close_once() -> Any:
    try:
        await park()
    except GeneratorExit:
        log("closing")
        raise
    return await park()


async def parks_while_closing() -> Any:
    try:
        await park()
    finally:
        await park()


# ---- with ---------------------------------------------------------------------------------------


class _Manager:
    def __init__(self, name: str, swallow: bool = False) -> None:
        self.name, self.swallow = name, swallow

    def __enter__(self) -> _Manager:
        log("enter", self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> bool:
        log("exit", self.name, kind and kind.__name__)
        return self.swallow


class _AsyncManager(_Manager):
    async def __aenter__(self) -> _AsyncManager:
        log("aenter", self.name, await park())
        return self

    async def __aexit__(self, kind: Any, e: Any, tb: Any) -> bool:
        log("aexit", self.name, await park(), kind and kind.__name__)
        return self.swallow


async def with_two_managers() -> Any:
    m = _Manager("a")
    with m as a, _Manager("b", swallow=True) as b:
        await park()
        log(a is m, b.name)
        raise ValueError("inside")
    await park()
    return a is m


async def async_with_two_managers() -> Any:
    async with _AsyncManager("a", swallow=True), _AsyncManager("b"):
        await park()
        raise ValueError("inside")
    return await park()


async def with_inside_async_with_inside_loop() -> Any:
    for i in range(2):
        async with _AsyncManager(f"a{i}", swallow=True):
            with _Manager(f"m{i}"):
                if await park() and i:
                    raise KeyError(i)
    return "done"


@contextlib.contextmanager
def _cm(tag: str) -> Iterator[list[str]]:
    log("in", tag)
    try:
        yield [tag]
    except LookupError as e:
        log("suppressed", repr(e))
    finally:
        log("out", tag)


@contextlib.asynccontextmanager
async def _acm(tag: str) -> AsyncIterator[str]:
    log("in", tag, await park())
    try:
        yield tag
    finally:
        log("out", tag, await park())


async def contextmanager_functions() -> Any:
    with _cm("x") as x, _cm("y") as y:
        x.append("more")
        await park()
        raise KeyError("k")
    await park()
    return x, y


async def asynccontextmanager_functions() -> Any:
    async with _acm("p") as p, _acm("q") as q:
        await park()
    return p, q


async def exit_stacks() -> Any:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_cm("one"))
        stack.callback(log, "callback", 1)
        await park()
        stack.enter_context(_cm("two"))
        await park()
    async with contextlib.AsyncExitStack() as astack:
        await astack.enter_async_context(_acm("three"))
        await park()
    return "left"


async def suppress_and_closing() -> Any:
    with contextlib.suppress(Boom, KeyError):
        await park()
        raise KeyError("gone")
    with contextlib.closing(_count(2)) as g:
        next(g)
        await park()
    return "end"
