"""Whole programs that Go's own repository tests its channels with (test/chan, test/ken).

Each is run on one worker, where everything depends on the order of one queue, and on three, more
than this machine may have processors, where goroutines are stolen and rebuilt elsewhere. What the
originals keep in shared variables is sent here: values go over channels, globals are per M."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import pytest

import mpgort
from mpgort import Chan, chan, go, gosched, spawn


@pytest.fixture(params=[1, 3], ids=["procs=1", "procs=3"])
def procs(request: pytest.FixtureRequest) -> int:
    return request.param


# ---- sieve -----------------------------------------------------------------------------------


async def generate(out: Chan) -> None:
    n = 2
    while True:
        await out.send(n)
        n += 1


async def drop_multiples(source: Chan, out: Chan, prime: int) -> None:
    while True:
        n = await source.recv()
        if n % prime:
            await out.send(n)


async def sieve(primes: Chan) -> None:
    source = chan()
    go(generate, source)
    while True:
        prime = await source.recv()
        await primes.send(prime)
        rest = chan()
        go(drop_multiples, source, rest, prime)
        source = rest


async def first_primes(count: int) -> list[int]:
    primes = chan()
    go(sieve, primes)
    return [await primes.recv() for _ in range(count)]


def test_sieve_yields_the_primes_in_order(procs: int) -> None:
    """Go test/chan/sieve1.go, which stops at 97 as well."""
    found = mpgort.run(first_primes, 25, procs=procs)
    assert found == [n for n in range(2, 98) if all(n % d for d in range(2, n))]


# ---- a long chain ----------------------------------------------------------------------------


async def pass_on(left: Chan, right: Chan) -> None:
    await left.send(await right.recv())


async def chain(length: int) -> int:
    leftmost = right = chan()
    for _ in range(length):
        left, right = right, chan()
        go(pass_on, left, right)
    go(right.send, 1)
    value: int = await leftmost.recv()
    return value


def test_a_value_passes_through_a_chain_of_10_000_goroutines(procs: int) -> None:
    """Go test/chan/goroutines.go. The value is looked at; the original drops it."""
    assert mpgort.run(chain, 10_000, procs=procs) == 1


# ---- skynet ----------------------------------------------------------------------------------


async def skynet(first: int, size: int, up: Chan) -> None:
    if size == 1:
        await up.send(first)
        return
    below = chan(10)
    for i in range(10):
        go(skynet, first + i * size // 10, size // 10, below)
    total = 0
    for _ in range(10):
        total += await below.recv()
    await up.send(total)


async def skynet_sum(size: int) -> int:
    up = chan()
    go(skynet, 0, size, up)
    total: int = await up.recv()
    return total


@pytest.mark.parametrize("size", [10_000, 100_000])
def test_skynet_adds_up_exactly(procs: int, size: int) -> None:
    """The skynet benchmark, a tree of goroutines with ten below each."""
    assert mpgort.run(skynet_sum, size, procs=procs) == size * (size - 1) // 2


# ---- first in, first out ---------------------------------------------------------------------


async def through_a_buffer(n: int) -> list[int]:
    ch = chan(n)
    for i in range(n):
        await ch.send(i)
    return [await ch.recv() for _ in range(n)]


async def link(ch: Chan, expected: int, before: Chan, after: Chan) -> None:
    await before.recv()
    got = await ch.recv()
    if got != expected:
        raise AssertionError(f"receiver {expected} got {got}")
    await after.send(None)


async def daisy_chain(n: int) -> None:
    ch, start = chan(), chan()
    before = start
    for i in range(n):
        after = chan()
        go(link, ch, i, before, after)
        before = after
    await start.send(None)
    for i in range(n):
        await ch.send(i)
    await before.recv()


def test_a_buffer_gives_back_what_it_got_in_order(procs: int) -> None:
    """Go test/chan/fifo.go AsynchFifo."""
    assert mpgort.run(through_a_buffer, 10, procs=procs) == list(range(10))


def test_ten_receivers_in_a_daisy_chain_get_ten_values_in_order(procs: int) -> None:
    """Go test/chan/fifo.go SynchFifo."""
    mpgort.run(daisy_chain, 10, procs=procs)


async def parked_receiver(number: int, ch: Chan, out: Chan, ready: Chan) -> None:
    await ready.send(number)
    await out.send((number, await ch.recv()))


async def receivers_in_order(n: int) -> list[tuple[int, int]]:
    ch, out, ready = chan(), chan(n), chan()
    for number in range(n):
        go(parked_receiver, number, ch, out, ready)
        await ready.recv()
    for value in range(n):
        await ch.send(value)
    return [await out.recv() for _ in range(n)]


def test_every_waiting_receiver_gets_exactly_one_value(procs: int) -> None:
    """Beside fifo.go: the waiters' queue rather than the buffer."""
    pairs = mpgort.run(receivers_in_order, 50, procs=procs)
    assert sorted(number for number, _ in pairs) == list(range(50))
    assert sorted(value for _, value in pairs) == list(range(50))


# ---- ten receivers, each value once ----------------------------------------------------------


async def mark(ch: Chan, out: Chan) -> None:
    async for value in ch:
        await out.send(value)
    await out.send(None)


async def send_once(n: int, buffer: int, receivers: int) -> Counter[int]:
    ch, out = chan(buffer), chan()
    for _ in range(receivers):
        go(mark, ch, out)
        await gosched()
    go(send_all, ch, n)
    seen: Counter[int] = Counter()
    ended = 0
    while ended < receivers:
        value = await out.recv()
        if value is None:
            ended += 1
        else:
            seen[value] += 1
    return seen


async def send_all(ch: Chan, n: int) -> None:
    for value in range(n):
        await ch.send(value)
    ch.close()


@pytest.mark.parametrize("buffer", [0, 2])
def test_ten_receivers_see_each_of_a_thousand_values_once(procs: int, buffer: int) -> None:
    """Go test/ken/chan1.go (1000 values, 10 receivers, buffer 2), unbuffered as well."""
    seen = mpgort.run(send_once, 1000, buffer, 10, procs=procs)
    assert seen == Counter(range(1000))


# ---- power series ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """A power series flows on demand: whoever wants a term sends `tag` on req, receives on dat."""

    req: Chan
    tag: int
    dat: Chan


def series() -> Series:
    return Series(chan(), 0, chan())


async def get(u: Series) -> Fraction:
    await u.req.send((u.tag, None))
    term: Fraction = await u.dat.recv()
    return term


async def put(term: Fraction, z: Series) -> None:
    await z.req.recv()
    await z.dat.send(term)


FETCHED = -1


async def fetch(u: Series, to: Chan) -> None:
    await to.send((FETCHED, await get(u)))


async def splitter(u: Series, pair: tuple[Series, Series]) -> None:
    """One term of u for each outlet, whatever the order they ask in. While a term is being fetched
    the other outlet is served from its queue: a series may be made from its own earlier terms."""
    queues: tuple[list[Fraction], list[Fraction]] = ([], [])
    waiting = [False, False]
    fetching = False
    while True:
        tag, term = await pair[0].req.recv()
        if tag == FETCHED:
            fetching = False
            for queue in queues:
                queue.append(term)
        else:
            waiting[tag] = True
        for i in (0, 1):
            if waiting[i] and queues[i]:
                waiting[i] = False
                await pair[i].dat.send(queues[i].pop(0))
        if any(waiting) and not fetching:
            fetching = True
            go(fetch, u, pair[0].req)


def split(u: Series | None = None) -> tuple[Series, Series]:
    req = chan()
    pair = Series(req, 0, chan()), Series(req, 1, chan())
    if u is not None:
        go(splitter, u, pair)
    return pair


async def copying(u: Series, z: Series) -> None:
    while True:
        await put_next(u, z)


async def put_next(u: Series, z: Series) -> None:
    await z.req.recv()
    await z.dat.send(await get(u))


async def repeating(c: Fraction, z: Series) -> None:
    while True:
        await put(c, z)


def rep(c: int) -> Series:
    z = series()
    go(repeating, Fraction(c), z)
    return z


async def adding(u: Series, v: Series, z: Series) -> None:
    while True:
        await z.req.recv()
        await z.dat.send(await get(u) + await get(v))


def add(u: Series, v: Series) -> Series:
    z = series()
    go(adding, u, v, z)
    return z


async def scaling(c: Fraction, u: Series, z: Series) -> None:
    while True:
        await z.req.recv()
        await z.dat.send(c * await get(u))


def cmul(c: Fraction, u: Series) -> Series:
    z = series()
    go(scaling, c, u, z)
    return z


async def multiplying(u: Series, v: Series, z: Series) -> None:
    """Let U = u + x*UU and V = v + x*VV: then UV = u*v + x*(u*VV + v*UU) + x*x*UU*VV."""
    await z.req.recv()
    u0, v0 = await get(u), await get(v)
    await z.dat.send(u0 * v0)
    uu, vv = split(u), split(v)
    w = add(cmul(u0, vv[0]), cmul(v0, uu[0]))
    await put_next(w, z)
    await copying(add(w, mul(uu[1], vv[1])), z)


def mul(u: Series, v: Series) -> Series:
    z = series()
    go(multiplying, u, v, z)
    return z


async def differentiating(u: Series, z: Series) -> None:
    await z.req.recv()
    await get(u)
    n = 1
    while True:
        await z.dat.send(n * await get(u))
        await z.req.recv()
        n += 1


def diff(u: Series) -> Series:
    z = series()
    go(differentiating, u, z)
    return z


async def integrating(c: Fraction, u: Series, z: Series) -> None:
    await put(c, z)
    n = 1
    while True:
        await z.req.recv()
        await z.dat.send(await get(u) / n)
        n += 1


def integ(c: int, u: Series) -> Series:
    z = series()
    go(integrating, Fraction(c), u, z)
    return z


async def reciprocal(u: Series, z: Series) -> None:
    """Let U = u + x*UU and Z = z + x*ZZ: then z = 1/u and ZZ = -UU*(z + x*ZZ)/u."""
    await z.req.recv()
    z0 = 1 / await get(u)
    await z.dat.send(z0)
    zz = split()
    shifted = series()
    go(shifting, z0, zz[0], shifted)
    go(splitter, mul(cmul(-z0, u), shifted), zz)
    await copying(zz[1], z)


async def shifting(c: Fraction, u: Series, z: Series) -> None:
    await put(c, z)
    await copying(u, z)


def recip(u: Series) -> Series:
    z = series()
    go(reciprocal, u, z)
    return z


def exp(u: Series) -> Series:
    """Z = exp(U) and DZ = Z*DU: integrated, Z is made from itself."""
    zz = split()
    go(splitter, integ(1, mul(zz[0], diff(u))), zz)
    return zz[1]


async def substituting(u: Series, c: Fraction, n: int, z: Series) -> None:
    factor = Fraction(1)
    while True:
        await z.req.recv()
        await z.dat.send(await get(u) * factor)
        factor *= c
        for _ in range(n - 1):
            await put(Fraction(0), z)


def monomial_subst(u: Series, c: int, n: int) -> Series:
    """U(c x^n): each term is multiplied by c^i and followed by n-1 zeros."""
    z = series()
    go(substituting, u, Fraction(c), n, z)
    return z


EXP = [
    Fraction(p)
    for p in "1 1 3/2 13/6 73/24 167/40 4051/720 37633/5040 43817/4480 4596553/362880".split()
]
ATAN = [Fraction(0 if n % 2 == 0 else (-1) ** (n // 2), max(n, 1)) for n in range(10)]

FORMULAS = {
    "ones": (lambda: rep(1), [1] * 5),
    "add": (lambda: add(rep(1), rep(2)), [3] * 10),
    "diff": (lambda: diff(rep(1)), list(range(1, 11))),
    "integ": (lambda: integ(0, rep(1)), [0] + [Fraction(1, n) for n in range(1, 10)]),
    "cmul": (lambda: cmul(Fraction(-1), rep(2)), [-2] * 10),
    "sub": (lambda: add(rep(1), cmul(Fraction(-1), rep(2))), [-1] * 10),
    "mul": (lambda: mul(rep(1), rep(1)), list(range(1, 11))),
    "recip": (lambda: recip(rep(1)), [1, -1] + [0] * 6),
    "exp": (lambda: exp(rep(1)), EXP),
    "atan": (lambda: integ(0, monomial_subst(rep(1), -1, 2)), ATAN),
}


async def terms_of(formula: str, count: int) -> list[Fraction]:
    u = FORMULAS[formula][0]()
    return [await get(u) for _ in range(count)]


@pytest.mark.parametrize("formula", FORMULAS)
def test_power_series_on_demand_have_the_right_terms(procs: int, formula: str) -> None:
    """Go test/chan/powser1.go, with its expected terms. A product starts goroutines for every term
    it yields, an exponential asks itself for its earlier ones. Where the original selects between
    the requests of two outlets, they share one channel and say which they are."""
    expected = FORMULAS[formula][1]
    assert mpgort.run(terms_of, formula, len(expected), procs=procs) == expected


# ---- a token in a ring -----------------------------------------------------------------------


async def ring_node(inlet: Chan, outlet: Chan) -> None:
    async for token in inlet:
        await outlet.send(token + 1)
    outlet.close()


async def ring(size: int, laps: int) -> int:
    first = inlet = chan()
    for _ in range(size):
        outlet = chan()
        go(ring_node, inlet, outlet)
        inlet = outlet
    token = 0
    for _ in range(laps):
        await first.send(token)
        token = await inlet.recv()
    first.close()
    assert await inlet.recv_ok() == (None, False)  # the close has gone all the way round
    return token


def test_a_token_counts_every_node_of_a_ring_in_every_lap(procs: int) -> None:
    """The token ring, with a close that follows the token at the end."""
    assert mpgort.run(ring, 200, 20, procs=procs) == 4000


async def tree(depth: int) -> int:
    if depth == 0:
        return 1
    children = [spawn(tree, depth - 1) for _ in range(3)]
    return sum([await child for child in children])


def test_a_recursive_tree_of_handles_counts_its_leaves(procs: int) -> None:
    """Go runtime/proc_test.go BenchmarkMatmult's shape: recursive fork and join."""
    assert mpgort.run(tree, 7, procs=procs) == 3**7


def test_the_expected_terms_of_exp_follow_its_recurrence() -> None:
    """The table above, copied from the original, against n*e[n] = sum of k*e[n-k]."""
    e = [Fraction(1)]
    for n in range(1, len(EXP)):
        e.append(sum((k * e[n - k] for k in range(1, n + 1)), Fraction(0)) / n)
    assert e == EXP
