"""bench/figures.py: what it makes of the figures, not the figures themselves."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("figures", BENCH / "figures.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["figures"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCH))
    del sys.modules["figures"]


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
