"""bench/figures.py: what it makes of the figures, not the figures themselves."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))
    for name in ("figures", "gobench", "peers"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def figures(bench: None) -> ModuleType:
    return importlib.import_module("figures")


@pytest.fixture(scope="module")
def gobench(bench: None) -> ModuleType:
    return importlib.import_module("gobench")


def test_measures_are_taken_in_turn_and_their_medians_compared(figures: ModuleType) -> None:
    order: list[str] = []
    values = iter([5.0, 1.0, 3.0])

    def ours() -> float:
        order.append("ours")
        return next(values)

    def peer() -> None:
        order.append("peer")

    assert figures.medians(ours, peer, rounds=3) == [3.0, None]
    assert order == ["ours", "peer"] * 3


def test_a_bound_is_met_missed_or_unknown(figures: ModuleType) -> None:
    row = figures.Row("k", "what", 2e-6)
    row.faster("slow peer", 30e-6, least=10)
    row.faster("quick peer", 19e-6, least=10)
    row.slower("yardstick", 1e-6, most=2.5)
    row.faster("absent peer", None, least=10)
    row.bound("at most 1 µs", 2.0, most=1.0)
    assert [b.met() for b in row.beside] == [True, False, True, None, False]
    assert [b.ratio for b in row.beside[:3]] == pytest.approx([15, 9.5, 2])


def test_the_table_names_missed_bounds_and_absent_peers(figures: ModuleType) -> None:
    row = figures.Row("k", "what", 2e-6)
    row.faster("peer", 19e-6, least=10)
    row.faster("absent", None)
    assert figures.lines(row) == [
        "| what | 2 µs | peer, 19 µs | 9.5 x as fast | 10 or more | **NO** |",
        "|  |  | absent (not installed) |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.5 s"),
        (0.0123, "s", "12.3 ms"),
        (4.56e-6, "s", "4.56 µs"),
        (171e-9, "s", "171 ns"),
        (251.4, "bytes", "251 bytes"),
    ],
)
def test_quantities_are_short(figures: ModuleType, value: float, unit: str, text: str) -> None:
    assert figures.quantity(value, unit) == text


def test_every_row_has_a_name_of_its_own(figures: ModuleType) -> None:
    assert len(set(figures.ROWS.values())) == len(figures.ROWS)


GOBENCH = {
    "chan_sync": (2000,),
    "prod_cons": (4000, 10),
    "select_uncontended": (200,),
    "pingpong_hog": (50,),
    "create": (200, 2),
    "wakeup_parallel": (20, 5),
    "mutexes": (200, True),
    "timer_latency": (3,),
}


@pytest.mark.parametrize("name", GOBENCH)
def test_gos_benchmarks_come_to_their_end(gobench: ModuleType, name: str) -> None:
    assert gobench.ours(getattr(gobench, name), *GOBENCH[name]) > 0


def test_gos_benchmarks_that_go_does_not_run_are_said_to_be_missing(
    gobench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gobench.peers, "GO", None)
    row = gobench.row("k", "what", lambda: 2e-6, lambda: gobench.golang("mutex", 10), lambda: 1e-6)
    assert [(b.peer, b.value) for b in row.beside] == [("Go", None), ("asyncio", 1e-6)]
    shown = gobench.figures.lines(row)
    assert "Go (not installed)" in shown[0] and "0.5 x as fast" in shown[1]
