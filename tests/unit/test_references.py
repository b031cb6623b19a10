"""What an await has taken it gives back: references to objects and memory, counted by the program
references.py. In a debug build of CPython (README, Hacking) that is every single reference, a lost
one too; in another one only objects that are kept show."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MODES, Programs


@pytest.mark.parametrize("migrate", MODES)
def test_no_await_keeps_or_loses_a_reference(program: Programs, migrate: str) -> None:
    done = program(Path(__file__).with_name("references.py"), env={"MPGORT_MIGRATE": migrate})
    assert done.status == 0, done.err
    changes = {name: int(n) for name, n in map(str.split, done.out.splitlines())}
    assert len(changes) >= 12
    assert {name: n for name, n in changes.items() if n} == {}
