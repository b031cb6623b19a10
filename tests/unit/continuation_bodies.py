"""The hand-written bodies that test_continuation.py moves at each of their parks.

They stand in a module of their own, which pytest does not rewrite: a child process that imports it
has the same code objects. Each public `async def` is one body, named after what stands in its
frames while it is parked. A body takes nothing, notes what it does with `log`, and returns plain
data. It may park as often as it likes, and must end whatever the parks answer.

MAY_PIN names the bodies that hold something which a continuation may refuse: for them a refusal is
right, and so is a move, but not a difference."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import itertools
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from types import TracebackType
from typing import Any

from continuation_harness import Boom, exc_info_name, log, park

MAY_PIN = {
    "local_class_with_zero_argument_super",
    "module_class_with_zero_argument_super",
    "suspended_exception_group_handler",
    "partial_and_methodcaller",
    "set_iterator_over_strings",
    "reversed_dict_and_views",
    "awaitable_class_with_python_iterator",
    "asyncgen_asend_athrow_aclose_in_flight",
    "itertools_objects",
    "anext_with_default",
}


# ---- nested awaits ------------------------------------------------------------------------------


async def _leaf(name: str) -> Any:
    got = await park()
    log(name, got)
    return got


async def one_park() -> Any:
    return await park()


async def parks_in_an_expression() -> Any:
    return [1, await park(), (2, await park()), {await park(): await park()}]


async def nested_three_deep() -> Any:
    async def middle(x: int) -> Any:
        a = await _leaf("a")
        b = await _leaf("b")
        return (x, a, b)

    first = await middle(1)
    second = await middle(2)
    return first, second


async def _deep(n: int) -> Any:
    if n == 0:
        return await park()
    inner = await _deep(n - 1)
    log("back at", n)
    return (n, inner)


async def forty_frames_deep() -> Any:
    return await _deep(40)


async def _fib(n: int) -> int:
    if n < 2:
        await park()
        return n
    return await _fib(n - 1) + await _fib(n - 2)


async def recursion_with_a_pending_operand() -> Any:
    return await _fib(5)


async def call_arguments_on_the_stack() -> Any:
    def f(*args: Any, **kw: Any) -> Any:
        return args, sorted(kw.items())

    x = [1]
    a = f(1, await park(), *[2, await park()], k=await park(), **{"z": await park()})
    b = f(x, x.append, await park())[0][0]
    return a, b is x, "{}-{}".format("s", await park()), f"{await park()!r:>5}"


async def coroutine_awaited_later() -> Any:
    later = _leaf("later")
    await _leaf("now")
    return await later


class _Awaitable:
    def __init__(self, tag: str) -> None:
        self.tag = tag

    def __await__(self) -> Generator[Any, Any, Any]:
        got = yield from park().__await__()
        log(self.tag, got)
        return got


async def await_dunder_generator() -> Any:
    return [await _Awaitable("x"), await _Awaitable("y")]


class _Forward:
    """An awaitable whose iterator is a coroutine's own."""

    def __await__(self) -> Any:
        return _leaf("forwarded").__await__()


async def coroutine_wrapper() -> Any:
    return await _Forward(), await _Forward()


class _PyIterator:
    def __init__(self) -> None:
        self.inner = park().__await__()

    def __await__(self) -> _PyIterator:
        return self

    def __iter__(self) -> _PyIterator:
        return self

    def __next__(self) -> Any:
        return next(self.inner)


async def awaitable_class_with_python_iterator() -> Any:
    return await _PyIterator()


# ---- loops --------------------------------------------------------------------------------------


async def for_over_list() -> Any:
    out = []
    for x in [1, "two", 3.0, None, (4,)]:
        out.append((x, await park()))
    return out


async def for_over_growing_list() -> Any:
    items = [0]
    for x in items:
        if len(items) < 5:
            items.append(x + 1)
        await park()
    return items


async def list_shrinks_under_its_iterator() -> Any:
    items = list(range(10))
    seen = []
    for x in items:
        seen.append(x)
        await park()
        del items[-2:]
    return seen, items


async def for_over_tuple_and_str_and_bytes() -> Any:
    out: list[Any] = []
    for x in (1, 2):
        for c in "añ𝄞":
            for b in b"\x00\xff":
                out.append((x, c, b))
                await park()
    return out


async def for_over_ranges() -> Any:
    out = []
    for x in range(3):
        for y in range(10, -10, -7):
            out.append((x, y, await park()))
    for z in range(2**70, 2**70 + 2):
        out.append((z, await park()))
    return out


async def for_over_dict() -> Any:
    d: dict[Any, Any] = {"a": 1, "b": 2, 3: "c"}
    del d["a"]
    d["last"] = None
    out: list[Any] = []
    for k in d:
        out.append((k, await park()))
    for v in d.values():
        out.append((v, await park()))
    for k, v in d.items():
        out.append((k, v, await park()))
    return out, d


async def dict_value_replaced_under_its_iterator() -> Any:
    d = {"a": 1, "b": 2, "c": 3}
    for k in d:
        await park()
        d[k] += 10
    return d


async def dict_grows_under_its_iterator() -> Any:
    d = {"a": 1, "b": 2}
    try:
        for k in d:
            await park()
            d[k + "x"] = 0
    except RuntimeError as e:
        return str(e), d
    return d


async def for_over_set() -> Any:
    total = 0
    for x in {1, 2, 3}:
        total += x
        await park()
    return total


async def set_iterator_over_strings() -> Any:
    seen = set()
    for x in {"alpha", "beta", "gamma", "delta"}:
        seen.add(x)
        await park()
    return seen


async def reversed_dict_and_views() -> Any:
    d = {"a": 1, "b": 2, "c": 3}
    keys, items = d.keys(), d.items()
    out: list[Any] = []
    for k in reversed(d):
        out.append(k)
        await park()
    d["d"] = 4
    return out, list(keys), list(items)


async def enumerate_zip_map_filter_reversed() -> Any:
    out: list[Any] = []
    for i, x in enumerate(["a", "b"], start=5):
        out.append((i, x, await park()))
    for p, q in zip([1, 2, 3], "xy", strict=False):
        out.append((p, q, await park()))
    for m in map(abs, [-1, -2]):
        out.append((m, await park()))
    for f in filter(None, [0, 1, "", "s"]):
        out.append((f, await park()))
    for r in reversed([1, 2, 3]):
        out.append((r, await park()))
    for r2 in reversed((1, 2)):
        out.append((r2, await park()))
    return out


async def iterators_half_consumed_and_exhausted() -> Any:
    spent = iter([1])
    next(spent)
    next(spent, None)
    half = iter([1, 2, 3])
    next(half)
    empty: Iterator[Any] = iter(())
    chars = iter("ab")
    next(chars)
    hint = half.__length_hint__()  # type: ignore[attr-defined]
    await park()
    return list(spent), list(half), list(empty), list(chars), hint


async def two_names_for_one_iterator() -> Any:
    it = iter([1, 2, 3, 4])
    pair = [it, it]
    a = next(it)
    await park()
    b = next(pair[0])
    await park()
    c = next(pair[1])
    return a, b, c, list(it), pair[0] is it


async def itertools_objects() -> Any:
    c = itertools.count(3)
    ch = itertools.chain([1, 2], "ab")
    isl = itertools.islice(range(100), 5, 20, 5)
    cy = itertools.cycle([1, 2])
    out = []
    for _ in range(3):
        out.append((next(c), next(ch), next(isl), next(cy)))
        await park()
    return out


async def while_else_break_continue() -> Any:
    n, out = 0, []
    while n < 6:
        n += 1
        if n == 2:
            continue
        if n == 5:
            break
        out.append(await park())
    else:
        out.append("never")
    for _ in ():
        pass
    else:
        out.append(await park())
    return out


# ---- generators ---------------------------------------------------------------------------------


def _count(n: int) -> Generator[Any, Any, str]:
    try:
        for i in range(n):
            got = yield i
            log("generator got", got)
    finally:
        log("generator closed")
    return "end"


def _delegate() -> Generator[Any, Any, Any]:
    got = yield from _count(2)
    yield got
    yield from [7, 8]


async def for_over_generator() -> Any:
    out = []
    for x in _count(3):
        out.append((x, await park()))
    return out


async def generator_with_yield_from() -> Any:
    out = []
    for x in _delegate():
        out.append(x)
        await park()
    return out


async def generator_that_receives() -> Any:
    g = _count(4)
    out = [next(g)]
    await park()
    out.append(g.send("hello"))
    await park()
    try:
        g.throw(KeyError("k"))
    except KeyError as e:
        out.append(repr(e))
    await park()
    return out, list(g), g.gi_frame is None


async def generator_not_started() -> Any:
    g = _count(2)
    await park()
    return list(g)


async def generator_expressions() -> Any:
    base = 10
    g = (x + base for x in range(4) if x != 1)
    out = [next(g)]
    await park()
    base = 20
    out.extend(g)
    h = (y for x in ([1], [2, 3]) for y in x)
    for v in h:
        out.append((v, await park()))
    return out


async def two_frames_share_a_generator() -> Any:
    g = _count(5)

    async def taker() -> list[Any]:
        first = next(g)
        await park()
        return [first, next(g)]

    out = [next(g), *(await taker()), next(g)]
    await park()
    g.close()
    return out


async def generator_handling_an_exception() -> Any:
    def gen() -> Iterator[Any]:
        try:
            raise KeyError("inside")
        except KeyError as e:
            yield repr(e)
            yield exc_info_name()
            raise

    g = gen()
    out = [next(g)]
    await park()
    out.append(next(g))
    await park()
    try:
        next(g)
    except KeyError as e:
        out.append(("again", repr(e)))
    return out, exc_info_name()


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


# ---- closures and names -------------------------------------------------------------------------


async def cell_shared_by_two_closures() -> Any:
    n = 0

    def up() -> int:
        nonlocal n
        n += 1
        return n

    def get() -> int:
        return n

    up()
    await park()
    up()
    await park()
    n += 10
    return up(), get(), n


async def nonlocal_through_coroutines() -> Any:
    total, seen = 0, []

    async def add(x: int) -> None:
        nonlocal total
        got = await park()
        total += x
        seen.append((x, got))

    for i in range(3):
        await add(i)
    return total, seen


async def loop_variable_captured() -> Any:
    fs = []
    for i in range(3):
        fs.append(lambda: i)  # noqa: B023
        await park()
    bound = [lambda i=i: i for i in range(3)]
    await park()
    return [f() for f in fs], [f() for f in bound]


async def recursive_closure() -> Any:
    def fact(n: int) -> int:
        return 1 if n < 2 else n * fact(n - 1)

    async def walk(n: int) -> list[int]:
        await park()
        return [n] + (await walk(n - 1) if n else [])

    return fact(5), await walk(3), fact.__qualname__


async def function_attributes_and_defaults() -> Any:
    shared: list[int] = []

    def f(x: int, acc: list[int] = shared, *, k: dict[str, int] = {"a": 1}) -> Any:  # noqa: B006
        """doc"""
        acc.append(x)
        return list(acc), k

    f.tag = "t"  # type: ignore[attr-defined]
    f(1)
    await park()
    out = f(2)
    await park()
    return out, shared, f.tag, f.__doc__, f.__name__, f.__annotations__["x"]  # type: ignore[attr-defined]


async def deleted_and_unbound_locals() -> Any:
    x, y = 1, 2
    del x
    await park()
    try:
        return x  # noqa: F821
    except UnboundLocalError as e:
        log(type(e).__name__)
    await park()
    if y == 3:
        z = 1
    try:
        return z
    except UnboundLocalError:
        return sorted(locals())


async def deleted_cell() -> Any:
    x = 1

    def get() -> int:
        return x

    del x
    await park()
    try:
        return get()
    except NameError as e:
        log(type(e).__name__)
    x = 5
    await park()
    return get()


async def star_args_and_keywords() -> Any:
    async def f(a: Any, /, *args: Any, b: Any = 2, **kw: Any) -> Any:
        args += (await park(),)
        kw["new"] = await park()
        return a, args, b, kw

    return await f(1, 2, 3, b=4, c=5), await f(*range(3), **{"x": 1})


async def walrus_and_conditionals() -> Any:
    if (n := await park()) or (m := await park()):
        log("n", n)
    out = [y := 1, y + 1, await park()]
    z = (await park()) if y else None
    return n, out, z, 0 < 1 <= (len(out) or await park()), "m" in locals() and m


async def unpacking() -> Any:
    a, *b, c = [1, 2, await park(), 4]
    (d, e), f = (await park(), 2), [await park()]
    *g, h = "xyz"
    return a, b, c, d, e, f, g, h


async def augmented_assignment() -> Any:
    d = {"k": [1]}
    d["k"] += [await park()]
    xs = [1, 2, 3]
    xs[1] = await park()
    xs[0:1] = [await park(), await park()]
    x: Any = 5
    x = x if await park() is None else -x
    return d, xs, x


@dataclasses.dataclass
class _Point:
    x: int
    y: Any


async def match_statements() -> Any:
    out: list[Any] = []
    for subject in [(1, 2, 3), {"k": [1], "o": 2}, _Point(1, y=[0]), "s", None]:
        match subject:
            case [a, *rest] if len(rest) == 2:
                out.append((a, rest, await park()))
            case {"k": [v], **others}:
                out.append((v, others, await park()))
            case _Point(x=px, y=[py]):
                out.append((px, py, await park()))
            case str() as s:
                out.append((s, await park()))
            case _:
                out.append(await park())
    return out


async def comprehensions_that_await() -> Any:
    out: list[Any] = [[x, await park()] for x in range(3) if x != 1]
    out.append({x: await park() for x in "ab"})
    out.append({await park() is None for _ in range(2)})
    out.append([[await park() for _ in range(2)] for _ in range(2)])
    x = "outer"
    out.append([x for x in range(2) if await park() or True])
    return out, x


async def comprehension_with_a_closure() -> Any:
    fs = [
        lambda i=i: (i, n)  # noqa: B023
        for i in range(2)
        if await park() != "skip"
        for n in [i * 10]
    ]
    await park()
    return [f() for f in fs]


# ---- async generators ---------------------------------------------------------------------------


async def _ticks(n: int) -> AsyncIterator[int]:
    try:
        for i in range(n):
            log("tick", await park())
            yield i
            await park()
    finally:
        log("ticks end")


async def async_for_over_async_generator() -> Any:
    out = []
    async for t in _ticks(3):
        out.append((t, await park()))
    return out


async def async_comprehensions() -> Any:
    a = [t async for t in _ticks(2)]
    b = {t: u async for t in _ticks(1) for u in [await park()]}
    c = [t async for t in (s + 1 async for s in _ticks(2))]
    return a, b, c


async def async_generator_left_early() -> Any:
    g = _ticks(5)
    async for t in g:
        if t == 1:
            break
    await park()
    await g.aclose()  # type: ignore[attr-defined]
    return [x async for x in g]


async def async_generator_that_receives() -> Any:
    async def echo() -> Any:
        got = None
        while True:
            try:
                got = yield (got, await park())
            except KeyError as e:
                got = repr(e)
                await park()

    g = echo()
    out = [await g.asend(None), await g.asend("a"), await g.athrow(KeyError("k"))]
    await park()
    await g.aclose()
    return out


async def asyncgen_asend_athrow_aclose_in_flight() -> Any:
    async def gen() -> Any:
        try:
            yield await park()
            yield 2
        except LookupError as e:
            log("in gen", repr(e), await park())
            yield await park()
        finally:
            log("closing", await park())

    g = gen()
    a = await g.__anext__()
    b = await g.athrow(LookupError("x"))
    await g.aclose()
    return a, b


async def anext_with_default() -> Any:
    g = _ticks(1)
    first = await anext(g, "none")  # type: ignore[call-overload]
    return first, await anext(g, "none")  # type: ignore[call-overload]


class _Counter:
    def __init__(self, n: int) -> None:
        self.n = n

    def __aiter__(self) -> _Counter:
        return self

    async def __anext__(self) -> int:
        await park()
        if self.n == 0:
            raise StopAsyncIteration
        self.n -= 1
        return self.n


async def async_for_over_a_class() -> Any:
    c = _Counter(3)
    return [x async for x in c], c.n


# ---- objects and identity -----------------------------------------------------------------------


async def one_list_under_many_names() -> Any:
    a: list[Any] = [1]
    pair = (a, a)
    d = {"a": a}

    async def inner(b: list[Any]) -> Any:
        await park()
        b.append(2)
        return b

    c = await inner(a)
    await park()
    a.append(3)
    return a is c, pair[0] is pair[1] is d["a"] is a, a


async def cyclic_objects() -> Any:
    a: list[Any] = [1]
    a.append(a)
    d: dict[str, Any] = {}
    d["self"] = d
    p = _Point(0, None)
    p.y = [p, (p, a)]
    await park()
    return a[1] is a, d["self"] is d, p.y[0] is p is p.y[1][0], p.y[1][1] is a


async def recursive_tuple() -> Any:
    inner: list[Any] = []
    t = (1, inner)
    inner.append(t)
    await park()
    return t[1][0] is t, t[1] is inner


async def equal_objects_stay_apart() -> Any:
    a, b, c = [1], [1], (1, [2])
    e: tuple[Any, ...] = (1, [2])
    await park()
    a.append(2)
    return a, b, a is b, c[1] is e[1]


class _Slots:
    __slots__ = ("a", "b", "__weakref__")


class _Color(enum.Enum):
    RED = 1
    BLUE = "b"


_Pair = namedtuple("_Pair", "left right")  # noqa: PYI024


class _Base:
    def __init__(self) -> None:
        self.items: list[Any] = []

    async def add(self, x: Any) -> Any:
        got = await park()
        self.items.append((x, got))
        return self

    def method(self) -> int:
        return len(self.items)

    @property
    def size(self) -> int:
        return len(self.items)


class _Child(_Base):
    async def add(self, x: Any) -> Any:
        await park()
        await super().add(x)
        return self


async def methods_of_an_instance() -> Any:
    o = _Base()
    same = (await o.add(1)) is o
    m = o.method
    await (await o.add(2)).add(3)
    await park()
    return same, m(), m.__self__ is o, o.size, o.items


async def module_class_with_zero_argument_super() -> Any:
    o = _Child()
    return (await o.add(1)) is o, o.items


async def local_class_with_zero_argument_super() -> Any:
    class Local(_Base):
        async def add(self, x: Any) -> Any:
            await park()
            return await super().add(("local", x))

    o = Local()
    await park()
    return (await o.add(1)) is o, type(o) is Local, o.items


async def instances_of_many_kinds() -> Any:
    s = _Slots()
    s.a = [1]
    p, q = _Point(1, "y"), _Pair(1, [2])
    dd: defaultdict[str, list[int]] = defaultdict(list)
    dd["x"].append(1)
    dq = deque([1, 2, 3], maxlen=3)
    od = OrderedDict(b=1, a=2)
    ct = Counter("abca")
    await park()
    dq.append(4)
    dd["y"].append(2)
    od.move_to_end("b")
    return (
        s.a, hasattr(s, "b"), p, q, type(q) is _Pair, dict(dd), list(dq), dq.maxlen, list(od),
        ct["a"], _Color.RED is _Color(1),
    )  # fmt: skip


async def enum_members_and_singletons() -> Any:
    things = [_Color.BLUE, None, True, Ellipsis, NotImplemented, int, _Point, len, Boom, sys]
    await park()
    same = [_Color.BLUE, None, True, Ellipsis, NotImplemented, int, _Point, len, Boom, sys]
    return [a is b for a, b in zip(things, same, strict=True)]


async def numbers_and_text_of_every_size() -> Any:
    things: list[Any] = [0, -1, 255, 256, -(2**31), 2**63, -(2**64), 3**500, 0.0, -0.0, 1e300]
    things += [float("inf"), 1j, "", "a", "é", "日本", "𝄞", "x" * 3000, b"", b"\0" * 300]
    things += [bytearray(b"ab"), range(3), range(0, -9, -2), slice(1, None, 2), frozenset({1})]
    nan = float("nan")
    await park()
    things[-5].append(99)
    return things, nan != nan


async def partial_and_methodcaller() -> Any:
    import operator

    f = functools.partial(max, 3, key=abs)
    get, call = operator.itemgetter(1), operator.methodcaller("upper")
    await park()
    return f(-5), get([1, 2]), call("a")


async def bound_builtin_methods() -> Any:
    xs: list[int] = []
    push, find = xs.append, "abc".find
    push(1)
    await park()
    push(2)
    return xs, find("c"), push.__self__ is xs  # type: ignore[attr-defined]


async def lambdas_and_local_functions() -> Any:
    k = 3
    f: Callable[[int], int] = lambda x: x * k  # noqa: E731
    g = [f, f]
    await park()
    k = 4
    return f(2), g[0] is g[1] is f, (lambda: (yield))().__class__.__name__


def _decorate(fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(fn)
    async def wrapper(*args: Any) -> Any:
        log("before", fn.__name__)
        out = await fn(*args)
        log("after", await park())
        return out

    return wrapper


@_decorate
async def _decorated(x: int) -> Any:
    return x, await park()


async def decorated_coroutine_functions() -> Any:
    @_decorate
    async def local(x: int) -> Any:
        return await _decorated(x), await park()

    return await local(1)


async def private_module_names() -> Any:
    global _SCRATCH
    _SCRATCH = 1
    await park()
    return _Color.__module__, __name__, type(_leaf).__name__


_SCRATCH = 0


async def many_locals() -> Any:
    a, b, c, d, e, f, g, h = range(8)
    i, j, k, m, n, o, p, q = "abcdefgh"
    r, s, t = [a, i], (b, j), {c: k}
    u = v = w = None
    x = y = z = 0.5
    await park()
    return a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q, r, s, t, u, v, w, x, y, z


async def two_hundred_parks() -> Any:
    total = 0
    for i in range(200):
        if await park() is not None:
            total += i
    return total
