"""Figures of this process's runtimes for Prometheus: `mpgort.metrics.serve(9464)`.

They are read when they are asked for, from shared memory: no goroutine, worker or counter pays for
it. Names end in their unit, and in _total where they only grow, as Prometheus has it. Each has the
label `runtime`: its name option (by default the program's), with a number from the second of that
name on. Executors and Pools are runtimes, too; one that has ended is not there any more.

`collector()` is for a registry of your own, beside the metrics of the rest of your program."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

from mpgort import _core, _host, _service

try:
    import prometheus_client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as e:
    raise ImportError(
        "mpgort.metrics needs prometheus-client: pip install 'mpgort[metrics]'", name=e.name
    ) from e

PREFIX = "mpgort_"
# name, what it says, key of Runtime.stats(); `bytes` and `seconds` are the units
GAUGES = [
    ("goroutines", "goroutines that there are", "goroutines"),
    ("runnable_goroutines", "goroutines that wait for a worker", "runnable"),
    ("runnable_batch_goroutines", "those of them with priority=batch", "runnable_batch"),
    ("workers", "workers that stand ready", "workers"),
    ("procs", "workers that there are to be", "procs"),
    ("heap_bytes", "live bytes of the shared heap", "live_bytes"),
    ("heap_large_bytes", "of these, arrays and large values", "large_bytes"),
    ("heap_committed_bytes", "memory that the shared heap has taken", "committed"),
    ("heap_limit_bytes", "what it may take: the option heap_bytes", "heap_bytes"),
    ("pending_tasks", "what counts for max_pending and has not ended", "pending"),
    ("pending_tasks_limit", "the option max_pending", "max_pending"),
    ("uptime_seconds", "since the runtime was started", "uptime_s"),
]
COUNTERS = [
    ("goroutines_started", "goroutines that were started", "spawned"),
    ("goroutines_finished", "goroutines that have ended", "finished"),
    ("parks", "times that a goroutine has begun to wait", "parks"),
    ("turns", "times that a worker took up a goroutine", "executed"),
    ("moves", "times that it was another worker than before", "moves"),
    ("preemptions", "goroutines that had their time slice", "preempted"),
    ("wakes", "workers that were woken", "wakes"),
    ("deaths", "workers that died", "deaths"),
    ("replacements", "workers started in the place of others", "replacements"),
    ("recycled_workers", "workers that recycle() has asked to leave", "recycled"),
]
PAGE = os.sysconf("SC_PAGESIZE")


def stats_of(host: _host.Host) -> dict[str, Any] | None:
    """As Runtime.stats(); None: it has just ended."""
    try:
        stats = host.prog.stats()
        return stats | _service.health(host, stats)
    except Exception:
        if host.stopped:
            return None
        raise


def resident_bytes(pid: int) -> int | None:
    """What is resident of a process, shared memory included; None: it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as f:
            return int(f.read().split()[1]) * PAGE
    except OSError:
        return None


class Collector:
    """A prometheus_client collector; register it where you like."""

    def collect(self) -> Iterator[Any]:
        rows = []
        names: dict[str, int] = {}
        for host in sorted(_host.hosts, key=lambda host: host.number):
            stats = stats_of(host)
            if stats is not None:
                name = host.opts.name
                n = names[name] = names.get(name, 0) + 1
                rows.append((name if n == 1 else f"{name}-{n}", stats))
        kinds = ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily))
        for table, family in kinds:
            for name, text, key in table:
                metric = family(PREFIX + name, text, labels=["runtime"])
                for label, stats in rows:
                    if stats[key] is not None:
                        metric.add_metric([label], stats[key])
                yield metric
        healthy = GaugeMetricFamily(PREFIX + "healthy", "1: all is well", labels=["runtime"])
        resident = GaugeMetricFamily(
            PREFIX + "worker_resident_bytes",
            "resident memory of a worker, shared memory included",
            labels=["runtime", "worker"],
        )
        for label, stats in rows:
            healthy.add_metric([label], not stats["problems"])
            for m in stats["ms"]:
                rss = resident_bytes(m["pid"]) if m["kind"] == _core.M_WORKER else None
                if rss is not None:
                    resident.add_metric([label, f"M{m['slot']}"], rss)
        yield healthy
        yield resident


def collector() -> Collector:
    """A new Collector: `prometheus_client.REGISTRY.register(mpgort.metrics.collector())`."""
    return Collector()


class Server:
    """What serve() returns."""

    def __init__(self, server: Any, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port: int = server.server_port

    def close(self) -> None:
        """Stops serving. It also ends with the process."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(port: int = 9464, addr: str = "0.0.0.0") -> Server:
    """Serves GET /metrics from a thread of this process; port 0: any free one (`.port`).

    A process with a second thread starts its workers by forkserver: to fork them, start the runtime
    first. Raises OSError where the port is taken."""
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return Server(*prometheus_client.start_http_server(port, addr, registry))
