"""Bodies for test_continuation.py (see continuation_bodies.py): closures, names, objects."""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Awaitable, Callable
from typing import Any

from continuation_bodies import _leaf
from continuation_harness import Boom, log, park

MAY_PIN = {
    "local_class_with_zero_argument_super",
    "module_class_with_zero_argument_super",
    "partial_and_methodcaller",
}


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
