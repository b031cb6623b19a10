"""mpgort's Executor beside other pools, on the same work in one run.

    python bench/pools.py                         all of it (about half an hour)
    python bench/pools.py --quick                 a tenth of the counts, two rounds
    python bench/pools.py --only bulk,death --with mpgort,loky --json out.json --png out.png

Each figure is measured in a process of its own, with a time limit; the contenders take turns,
ROUNDS times over, and the medians are compared. The cells are how many times as long as mpgort one
takes (or how many times the memory). Where a pool leaves the number of items per message to its
user, the sizes in SIZES are tried in the same run and the best is shown. What a pool cannot do,
and what it does when a worker dies, stands there in words.

Only ratios of one run mean anything, and only on a machine that has nothing else to do."""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import contenders
from contenders import Contender
from figures import machine, quantity

ROUNDS = 5
LIMIT_S = 60.0
LATE = f"over {LIMIT_S:.0f} s"  # it is not asked again
SIZES = (1, 10, 100, 1000, 10_000)
clock = time.perf_counter

# ---- the work: functions that every pool can import --------------------------------------------


def trivial(x: int) -> int:
    return x


def compute(seconds: float) -> float:
    """Holds a processor for so long, whatever it is."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds


def same(a: Any) -> Any:
    return a


def negated(a: Any) -> Any:
    return -a


def die_at(x: int) -> int:
    time.sleep(0.01)
    if x == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


# ---- measures: (pool, scale) -> seconds per operation, or a figure and a note -------------------

Measure = Callable[[Contender, int], "float | tuple[float, str]"]


def warm(pool: Contender) -> None:
    pool.each(compute, [0.01] * (2 * pool.procs))


def one(pool: Contender, scale: int) -> float:
    warm(pool)
    n = 100 * scale
    started = clock()
    for i in range(n):
        pool.one(trivial, i)
    return (clock() - started) / n


def each(pool: Contender, scale: int) -> float:
    warm(pool)
    n = 500 * scale
    started = clock()
    got = pool.each(trivial, range(n))
    seconds = clock() - started
    assert sum(got) == n * (n - 1) // 2
    return seconds / n


def best(pool: Contender, fn: Any, items: Sequence[Any], total: Any) -> tuple[float, str]:
    """Seconds for all, with the best chunk size."""
    found = []
    for size in SIZES if pool.sizes else (None,):
        if size is not None and (size * pool.procs > len(items) > 1 and size > 1):
            continue
        if size is not None and len(items) / size > 20_000:
            continue  # hopeless, and long
        started = clock()
        got = pool.bulk(fn, items, size)
        found.append((clock() - started, "" if size is None else f"chunks of {size}"))
        assert sum(got) == total
    return min(found)


def bulk(pool: Contender, scale: int) -> tuple[float, str]:
    warm(pool)
    n = 10_000 * scale
    pool.bulk(trivial, range(1000), 100)
    seconds, note = best(pool, trivial, range(n), n * (n - 1) // 2)
    return seconds / n, note


def tasks(ms: int) -> Measure:
    def measure(pool: Contender, scale: int) -> tuple[float, str]:
        warm(pool)
        n = max(2 * pool.procs, 200 * scale // ms)
        items = [ms / 1000] * n
        started = clock()
        pool.each(compute, items)
        seconds = clock() - started
        return seconds, f"{100 * sum(items) / pool.procs / seconds:.0f} % of ideal"

    return measure


def skewed(pool: Contender, scale: int) -> tuple[float, str]:
    """Most tasks short, some twenty times as long, the longest last: a map with fixed chunks ends
    with one worker busy."""
    warm(pool)
    items = [0.001 + 0.0199 * (i % 17 == 16) for i in range(34 * scale)] + [0.05]
    total = sum(items)
    seconds, note = best(pool, compute, items, total)
    return seconds, f"{100 * total / pool.procs / seconds:.0f} % of ideal {note}".rstrip()


def arrays(size: int, n: int) -> Measure:
    def measure(pool: Contender, scale: int) -> float:
        import numpy as np

        warm(pool)
        a = np.ones(size // 8)
        count = max(1, n * scale // 10)
        pool.one(same, a[:8])
        started = clock()
        for _ in range(count):
            got = pool.one(negated, a)
            assert got[-1] == -1.0
            del got
        return (clock() - started) / count

    return measure


def nested_mpgort(n: int) -> int:
    import mpgort

    async def fib(n: int) -> int:
        if n < 2:
            return n
        h = mpgort.spawn(fib, n - 1)
        rest = await fib(n - 2)
        return (await h) + rest

    async def start() -> int:
        return await mpgort.spawn(fib, n)

    return start()  # type: ignore[return-value]


def nested_dask(n: int) -> int:
    from distributed import worker_client

    if n < 2:
        return n
    with worker_client() as client:
        f = client.submit(nested_dask, n - 1, pure=False)
        rest = nested_dask(n - 2)
        return f.result() + rest


def nested_ray(n: int) -> int:
    import ray

    if n < 2:
        return n
    f = ray.remote(nested_ray).remote(n - 1)
    rest = nested_ray(n - 2)
    return ray.get(f) + rest


def nested(pool: Contender, scale: int) -> tuple[float, str]:
    """Fork and join: fib(n), a task per addition."""
    fn = {"mpgort": nested_mpgort, "Dask distributed": nested_dask, "Ray": nested_ray}[pool.name]
    n = 8 if pool.name != "mpgort" else 12 + (scale >= 10) * 4
    a, b, made = 0, 1, [0, 0]
    for _ in range(n):
        a, b = b, a + b
    for i in range(2, n + 1):
        made.append(made[i - 1] + made[i - 2] + 1)
    warm(pool)
    started = clock()
    assert pool.one(fn, n) == a
    return (clock() - started) / made[n], f"{made[n]} tasks, seconds for each"


def sweep(pool: Contender, scale: int) -> float:
    """scikit-learn: a grid search of a small forest."""
    import joblib
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    if pool.name == "mpgort":
        import mpgort.joblib  # noqa: F401
    backend = {"mpgort": "mpgort", "loky": "loky", "Dask distributed": "dask"}[pool.name]
    x, y = make_classification(300 * scale, 20, random_state=0)
    grid = {"max_depth": [2, 4, 6], "n_estimators": [5, 10]}
    search = GridSearchCV(RandomForestClassifier(random_state=0), grid, cv=3)
    with joblib.parallel_config(backend, n_jobs=pool.procs):
        joblib.Parallel()(joblib.delayed(trivial)(i) for i in range(4 * pool.procs))
        started = clock()
        search.fit(x, y)
        return clock() - started


def put_all(q: Any, n: int) -> None:
    for i in range(n):
        q.put(i)
    q.put(None)


async def send_all(ch: Any, n: int) -> None:
    for i in range(n):
        await ch.send(i)
    ch.close()


async def sum_all(ch: Any) -> int:
    total = 0
    async for i in ch:
        total += i
    return total


def stream(pool: Contender, scale: int) -> tuple[float, str]:
    """Messages from one process to another, one by one, through room for 1000."""
    n = 100_000 * scale
    if pool.name == "mpgort":
        import mpgort

        async def between() -> float:
            ch = mpgort.chan(1000)
            started = clock()
            mpgort.go(send_all, ch, n)
            assert await mpgort.spawn(sum_all, ch) == n * (n - 1) // 2
            return clock() - started

        return mpgort.run(between, procs=2) / n, "chan"
    n //= 10
    q: Any = multiprocessing.Queue(1000)
    p = multiprocessing.Process(target=put_all, args=(q, n))
    p.start()
    started = clock()
    assert sum(iter(q.get, None)) == n * (n - 1) // 2
    seconds = clock() - started
    p.join()
    return seconds / n, "multiprocessing.Queue"


def memory(pool: Contender, scale: int) -> float:
    """Bytes of all its processes but the caller's, for each worker: proportional set size."""
    warm(pool)
    pool.bulk(trivial, range(1000), 100)
    return sum(map(contenders.proportional_bytes, contenders.descendants(os.getpid()))) / pool.procs


def death(pool: Contender, scale: int) -> tuple[float, str]:
    """One of 60 tasks kills its worker: how many of the other 59 give their result, and can the
    pool be used afterwards?"""
    warm(pool)
    started = clock()
    good = lost = 0
    for outcome in outcomes(pool, 60):
        good += outcome
        lost += not outcome
    try:
        after = "goes on" if pool.one(trivial, 5) == 5 else "gives nonsense"
    except Exception as e:
        after = f"is broken ({type(e).__name__})"
    return clock() - started, f"{good} of 59 results; {after}"


def outcomes(pool: Contender, n: int) -> list[bool]:
    if isinstance(pool, contenders.MpPool | contenders.Mpire):
        rs = [pool.pool.apply_async(die_at, (i,)) for i in range(n)]
        return [succeeds(lambda r=r: r.get(timeout=5)) for r in rs]  # type: ignore[misc]
    if isinstance(pool, contenders.Ray):
        refs = [pool.remote(die_at)(i) for i in range(n)]
        return [succeeds(lambda r=r: pool.ray.get(r)) for r in refs]  # type: ignore[misc]
    if isinstance(pool, contenders.Dask):
        fs = [pool.client.submit(die_at, i, pure=False, retries=0) for i in range(n)]
    else:
        fs = [pool.ex.submit(die_at, i) for i in range(n)]  # type: ignore[attr-defined]
    return [succeeds(lambda f=f: f.result(timeout=20)) for f in fs]  # type: ignore[misc]


def succeeds(fn: Callable[[], Any]) -> bool:
    try:
        fn()
    except Exception:
        return False
    return True


@dataclass(frozen=True)
class Work:
    key: str
    what: str
    measure: Measure | None  # None: from start to end, see `start`
    unit: str = "s"
    among: tuple[str, ...] = ()  # the contenders that can; (): all
    words: bool = False  # the note is the result


MB = 1 << 20
WORKS = [
    Work("one", "a trivial task, one at a time", one),
    Work("each", "trivial tasks, submitted one by one", each),
    Work("bulk", "trivial tasks in one map, an item", bulk),
    Work("1ms", "tasks of 1 ms of computing", tasks(1)),
    Work("10ms", "tasks of 10 ms", tasks(10)),
    Work("100ms", "tasks of 100 ms", tasks(100)),
    Work("skewed", "tasks of 1 ms, some of 20, the last of 50, one map", skewed),
    Work("1KB", "a 1 KB array in and out", arrays(1024, 1000)),
    Work("1MB", "a 1 MB array in and out", arrays(MB, 200)),
    Work("200MB", "a 200 MB array in and out", arrays(200 * MB, 20)),
    Work("nested", "fork and join, a task", nested, among=("mpgort", "Dask distributed", "Ray")),
    Work("sweep", "scikit-learn's GridSearchCV", sweep, among=("mpgort", "loky")),
    Work("stream", "a stream of messages, each", stream, among=("mpgort", "multiprocessing.Pool")),
    Work("start", "start, one trivial call, end", None),
    Work("memory", "memory for each worker", memory, unit="bytes"),
    Work("death", "a worker is killed", death, words=True),
]


def start(kind: type[Contender], procs: int) -> float:
    started = clock()
    with kind(procs) as pool:
        assert pool.one(trivial, 7) == 7
    return clock() - started


# ---- one measurement, in a process of its own -------------------------------------------------


def measure_here(work: Work, kind: type[Contender], procs: int, scale: int) -> None:
    """Prints the figure and the note as JSON, and leaves: the end of a broken pool may hang."""
    if work.measure is None:
        value, note = start(kind, procs), ""
    else:
        with kind(procs) as pool:
            found = work.measure(pool, scale)
            value, note = found if isinstance(found, tuple) else (found, "")
            print(json.dumps([value, note]), flush=True)
        return
    print(json.dumps([value, note]), flush=True)


def measured(work: Work, kind: type[Contender], procs: int, scale: int) -> tuple[float | None, str]:
    command = [sys.executable, os.path.abspath(__file__), "--measure", work.key, kind.name]
    command += [str(procs), str(scale)]
    p = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    late = False
    try:
        out, err = p.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(p.pid, signal.SIGKILL)
        out, err = p.communicate()
    line = next((x for x in out.splitlines() if x.startswith("[")), None)
    if line is not None:
        value, note = json.loads(line)
        return value, note + ("; then its end hangs" if late else "")
    if late:
        return None, LATE
    return None, "fails: " + (err.strip().splitlines() or ["?"])[-1][:100]


# ---- all of it --------------------------------------------------------------------------------


@dataclass
class Cell:
    contender: str
    value: float | None
    note: str = ""
    ratio: float | None = None  # to mpgort's
    rounds: list[float] = field(default_factory=list)


@dataclass
class Result:
    key: str
    what: str
    unit: str
    words: bool
    cells: list[Cell]


def compare(work: Work, kinds: list[type[Contender]], procs: int, scale: int, n: int) -> Result:
    cells = [Cell(kind.name, None) for kind in kinds]
    for _ in range(n):
        for kind, cell in zip(kinds, cells, strict=True):
            if work.key in kind.cannot:
                cell.note = kind.cannot[work.key]
            elif work.among and kind.name not in work.among:
                cell.note = "not measured"
            elif cell.note != LATE:
                value, note = measured(work, kind, procs, scale)
                cell.note = note or cell.note
                if value is not None:
                    cell.rounds.append(value)
    for cell in cells:
        if cell.rounds:
            cell.value = statistics.median(cell.rounds)
    ours = next((c.value for c in cells if c.contender == "mpgort"), None)
    for cell in cells:
        if cell.value is not None and ours and not work.words:
            cell.ratio = cell.value / ours
    return Result(work.key, work.what, work.unit, work.words, cells)


def text(result: Result, cell: Cell) -> str:
    if cell.value is None:
        return "" if cell.note == "not measured" else cell.note
    if result.words:
        return f"{cell.note} ({quantity(cell.value, 's')})"
    figure = quantity(cell.value, result.unit)
    if result.unit == "bytes":
        figure = f"{cell.value / MB:.1f} MB"
    if cell.contender != "mpgort" and cell.ratio is not None:
        figure = f"**{cell.ratio:.3g}** ({figure})"
    return f"{figure}, {cell.note}" if cell.note else figure


def line(result: Result) -> str:
    return f"| {result.what} | " + " | ".join(text(result, c) for c in result.cells) + " |"


def picture(results: list[Result], path: str) -> None:
    """The ratios, on a logarithmic scale: to the right of 1 mpgort is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [r for r in results if any(c.ratio for c in r.cells if c.contender != "mpgort")]
    names = [c.contender for c in shown[0].cells if c.contender != "mpgort"] if shown else []
    fig, ax = plt.subplots(figsize=(9, 1 + 0.55 * len(shown)))
    for i, name in enumerate(names):
        points = [
            (c.ratio, y)
            for y, r in enumerate(shown)
            for c in r.cells
            if c.contender == name and c.ratio
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            ax.scatter(xs, ys, label=name, s=45, color=f"C{i}", zorder=3)
    ax.axvline(1, color="black", lw=1)
    ax.set_xscale("log")
    ax.set_yticks(range(len(shown)), [r.what for r in shown])
    ax.invert_yaxis()
    ax.grid(True, axis="x", alpha=0.4)
    ax.set_xlabel("times as much as mpgort (1: the same; to the right: mpgort is better)")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.set_title(machine(), fontsize=9)
    fig.savefig(path, dpi=130, bbox_inches="tight")


def main() -> int:
    keys = [w.key for w in WORKS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the counts, two rounds")
    parser.add_argument("--only", metavar="WORK[,WORK]", help=f"of {', '.join(keys)}")
    parser.add_argument("--with", dest="among", metavar="POOL[,POOL]", help="whom to measure")
    parser.add_argument("--procs", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--png", metavar="FILE", help="draw the ratios there (needs matplotlib)")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    by_name = {kind.name: kind for kind in contenders.KINDS}
    if args.measure:
        key, name, procs, scale = args.measure
        work = next(w for w in WORKS if w.key == key)
        measure_here(work, by_name[name], int(procs), int(scale))
        return 0
    wanted = args.only.split(",") if args.only else keys
    if unknown := [k for k in wanted if k not in keys]:
        parser.error(f"no such work: {', '.join(unknown)} (there are {', '.join(keys)})")
    names = args.among.split(",") if args.among else list(by_name)
    if unknown := [n for n in names if n not in by_name]:
        parser.error(f"no such pool: {', '.join(unknown)} (there are {', '.join(by_name)})")
    kinds = [by_name[n] for n in names if contenders.installed(by_name[n])]
    rounds = args.rounds or (2 if args.quick else ROUNDS)

    print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {args.procs} workers")
    for name in names:
        if not contenders.installed(by_name[name]):
            print(f"NOT MEASURED: {name} is not installed")
    print()
    print("| work | " + " | ".join(k.name for k in kinds) + " |")
    print("| --- |" + " --- |" * len(kinds), flush=True)
    results = []
    for work in WORKS:
        if work.key in wanted:
            n = 1 if work.words else rounds
            results.append(compare(work, kinds, args.procs, 1 if args.quick else 10, n))
            print(line(results[-1]), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": machine(), "works": [asdict(r) for r in results]}, f, indent=2)
    if args.png:
        picture(results, args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
