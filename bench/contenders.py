"""One face over every pool that a user might pick, for pools.py: start, calls, end.

A contender says what it cannot do by not having the method, and why in `cannot`. Those that are not
installed are left out. Only Mpgort imports mpgort."""

import concurrent.futures
import importlib.util
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

Fn = Callable[..., Any]


class Contender:
    """`with Kind(procs) as pool`. one: a call, waited for; each: one task per item, all at once;
    bulk: a map as its users write it, with `size` items a message where that is the user's to say
    (`sizes`)."""

    name = ""
    needs = ""  # a module
    sizes = False
    cannot: dict[str, str] = {}

    def __init__(self, procs: int) -> None:
        self.procs = procs

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None: ...
    def one(self, fn: Fn, *args: Any) -> Any: ...
    def each(self, fn: Fn, items: Sequence[Any]) -> list[Any]: ...
    def bulk(self, fn: Fn, items: Sequence[Any], size: int | None) -> list[Any]: ...


class Futures(Contender):
    """What has the interface of concurrent.futures.Executor."""

    def make(self) -> Any: ...

    def __enter__(self) -> Contender:
        self.ex = self.make()
        return self

    def __exit__(self, *_: object) -> None:
        self.ex.shutdown()

    def one(self, fn: Fn, *args: Any) -> Any:
        return self.ex.submit(fn, *args).result()

    def each(self, fn: Fn, items: Sequence[Any]) -> list[Any]:
        return [f.result() for f in [self.ex.submit(fn, x) for x in items]]


class Mpgort(Futures):
    name = "mpgort"
    needs = "mpgort"

    def make(self) -> Any:
        import mpgort

        return mpgort.Executor(self.procs)

    def bulk(self, fn: Fn, items: Sequence[Any], size: int | None) -> list[Any]:
        return list(self.ex.map(fn, items))


class ProcessPool(Futures):
    name = "ProcessPoolExecutor"
    sizes = True
    cannot = {"nested": "a task cannot submit to its own pool"}

    def make(self) -> Any:
        return concurrent.futures.ProcessPoolExecutor(self.procs)

    def bulk(self, fn: Fn, items: Sequence[Any], size: int | None) -> list[Any]:
        return list(self.ex.map(fn, items, chunksize=size or 1))


class Loky(ProcessPool):
    name = "loky"
    needs = "joblib"

    def make(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        return ProcessPoolExecutor(self.procs)


class MpPool(Contender):
    name = "multiprocessing.Pool"
    sizes = True
    cannot = {"nested": "a task cannot use its own pool"}

    def __enter__(self) -> Contender:
        self.pool = multiprocessing.Pool(self.procs)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()
        self.pool.join()

    def one(self, fn: Fn, *args: Any) -> Any:
        return self.pool.apply(fn, args)

    def each(self, fn: Fn, items: Sequence[Any]) -> list[Any]:
        return [r.get() for r in [self.pool.apply_async(fn, (x,)) for x in items]]

    def bulk(self, fn: Fn, items: Sequence[Any], size: int | None) -> list[Any]:
        return list(self.pool.imap_unordered(fn, items, size or 1))


class Mpire(Contender):
    name = "mpire"
    needs = "mpire"
    sizes = True
    cannot = {"nested": "a task cannot use its own pool"}

    def __enter__(self) -> Contender:
        from mpire import WorkerPool

        self.pool = WorkerPool(self.procs, keep_alive=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.stop_and_join()

    def one(self, fn: Fn, *args: Any) -> Any:
        return self.pool.apply(fn, args)

    def each(self, fn: Fn, items: Sequence[Any]) -> list[Any]:
        return [r.get() for r in [self.pool.apply_async(fn, (x,)) for x in items]]

    def bulk(self, fn: Fn, items: Sequence[Any], size: int | None) -> list[Any]:
        singles = ((x,) for x in items)  # an item that is an array would be cut up
        args = {"iterable_len": len(items), "chunk_size": size or 1}
        return list(self.pool.imap_unordered(fn, singles, **args))


class Dask(Contender):
    name = "Dask distributed"
    needs = "distributed"

    def __enter__(self) -> Contender:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=self.procs, threads_per_worker=1, dashboard_address=None, silence_logs=50
        )
        self.client = Client(self.cluster)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.cluster.close()

    def one(self, fn: Fn, *args: Any) -> Any:
        return self.client.submit(fn, *args, pure=False).result()

    def each(self, fn: Fn, items: Sequence[Any]) -> list[Any]:
        fs = [self.client.submit(fn, x, pure=False) for x in items]
        return list(self.client.gather(fs))

    def bulk(self, fn: Fn, items: Sequence[Any], size: int | None) -> list[Any]:
        return list(self.client.gather(self.client.map(fn, items, pure=False)))


class Ray(Contender):
    name = "Ray"
    needs = "ray"

    def __enter__(self) -> Contender:
        import ray

        ray.init(num_cpus=self.procs, include_dashboard=False, log_to_driver=False)
        self.ray = ray
        self.made: dict[Fn, Any] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def remote(self, fn: Fn) -> Any:
        if fn not in self.made:
            self.made[fn] = self.ray.remote(fn)
        return self.made[fn].remote

    def one(self, fn: Fn, *args: Any) -> Any:
        return self.ray.get(self.remote(fn)(*args))

    def each(self, fn: Fn, items: Sequence[Any]) -> list[Any]:
        remote = self.remote(fn)
        return list(self.ray.get([remote(x) for x in items]))

    def bulk(self, fn: Fn, items: Sequence[Any], size: int | None) -> list[Any]:
        return self.each(fn, items)


KINDS = [Mpgort, ProcessPool, MpPool, Loky, Mpire, Dask, Ray]


def installed(kind: type[Contender]) -> bool:
    return not kind.needs or importlib.util.find_spec(kind.needs) is not None


def descendants(pid: int) -> list[int]:
    """Living processes below pid."""
    out = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    below: dict[int, list[int]] = {}
    for line in out.splitlines():
        child, parent = map(int, line.split())
        below.setdefault(parent, []).append(child)
    found, todo = [], [pid]
    while todo:
        for child in below.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return [p for p in found if os.path.exists(f"/proc/{p}/exe")]


def proportional_bytes(pid: int) -> int:
    """What a process costs: its own pages and its share of those it has with others (Pss)."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next(int(line.split()[1]) << 10 for line in f if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
