"""bench/soak.py for some seconds (MPGORT_STORM=1: two minutes): nothing lost, memory flat."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "bench" / "soak.py"
SECONDS = 120 if os.environ.get("MPGORT_STORM", "0") not in ("", "0") else 4


@pytest.mark.timeout(SECONDS + 120)
def test_a_pool_under_everything_at_once_loses_nothing_and_stays_flat() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--seconds", str(SECONDS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
