"""The seed of the C tests that draw what they try: one for the run, from MPGORT_SEED or at random.

It is printed at the end, so that what failed can be run again as it was."""

from __future__ import annotations

import os
import random

import pytest

os.environ.setdefault("MPGORT_SEED", str(random.randrange(1, 1 << 32)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"tests/shm: MPGORT_SEED={os.environ['MPGORT_SEED']}")
