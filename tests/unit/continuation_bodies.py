"""The hand-written bodies that test_continuation.py moves at each of their parks: awaits, loops,
generators. Those that raise are in continuation_bodies_raise.py, those that hold something in
continuation_bodies_hold.py.

They stand in modules of their own, which pytest does not rewrite: a child process that imports one
has the same code objects. Each public `async def` is one body, named after what stands in its
frames while it is parked. A body takes nothing, notes what it does with `log`, and returns plain
data. It may park as often as it likes, and must end whatever the parks answer.

MAY_PIN names the bodies that hold something which a continuation may refuse: for them a refusal is
right, and so is a move, but not a difference."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from continuation_harness import exc_info_name, log, park

MAY_PIN = {
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
