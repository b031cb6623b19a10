"""mpgort.metrics: figures by HTTP, under names with units."""

from __future__ import annotations

import urllib.request

import pytest
from conftest import Programs, wait_until

import mpgort

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from mpgort import metrics


def get(port: int) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for s in family.samples:
            found[s.name, s.labels["runtime"] + s.labels.get("worker", "")] = s.value
    return found


@pytest.mark.usefixtures("auto")  # a worker is killed, and nobody is at home there
def test_a_get_gives_the_figures_of_each_runtime() -> None:
    with (
        mpgort.Runtime(1, name="web", max_pending=9) as rt,
        mpgort.Runtime(1, name="web") as other,
        mpgort.Executor(1, name="pool") as ex,
    ):
        ch = rt.chan()
        hs = [rt.spawn(ch.recv) for _ in range(3)]
        assert ex.submit(int, 5).result(timeout=30) == 5
        wait_until("all stand", lambda: not rt.stats()["problems"] + other.stats()["problems"])
        server = metrics.serve(0, "127.0.0.1")
        try:
            counted = "mpgort_goroutines_finished_total", "pool"
            wait_until("its end is counted", lambda: get(server.port)[counted] >= 1)
            m = get(server.port)
            assert m["mpgort_goroutines", "web"] >= 3
            assert m["mpgort_goroutines", "web-2"] == 0
            assert m["mpgort_pending_tasks", "web"] == 3
            assert m["mpgort_pending_tasks_limit", "web"] == 9
            assert ("mpgort_pending_tasks", "pool") not in m
            assert m["mpgort_workers", "web"] == m["mpgort_procs", "web"] == 1
            assert m["mpgort_healthy", "web"] == 1
            assert 0 < m["mpgort_heap_bytes", "web"] <= m["mpgort_heap_limit_bytes", "web"]
            assert 0 < m["mpgort_uptime_seconds", "web"] < 60
            assert m["mpgort_deaths_total", "web"] == 0
            resident = [v for (name, _), v in m.items() if name == "mpgort_worker_resident_bytes"]
            assert len(resident) == 3 and all(v > 1 << 20 for v in resident)
            rt.spawn(killed)
            wait_until("one died", lambda: get(server.port)["mpgort_deaths_total", "web"] == 1)
        finally:
            server.close()
            ch.close()
        assert all(h.result(timeout=30) is None for h in hs)
    with pytest.raises(OSError):
        get(server.port)


def killed() -> None:
    import os

    os.kill(os.getpid(), 9)


def test_what_has_ended_is_not_there_any_more() -> None:
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    registry.register(metrics.collector())
    with mpgort.Runtime(0, name="short"):
        assert registry.get_sample_value("mpgort_procs", {"runtime": "short"}) == 0
    assert registry.get_sample_value("mpgort_procs", {"runtime": "short"}) is None


def test_without_prometheus_client_the_error_says_what_to_install(program: Programs) -> None:
    r = program(
        """
        import sys
        sys.modules["prometheus_client"] = None
        import mpgort
        try:
            import mpgort.metrics
        except ImportError as e:
            print(e)
        """
    )
    assert r.out == "mpgort.metrics needs prometheus-client: pip install 'mpgort[metrics]'\n"
