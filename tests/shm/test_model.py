"""The models of shm/model/ hold, and each of their mutations is found: bash shm/model/check.

Needs spin (apt install spin). MPGORT_STORM=1 searches larger models too, some minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[2] / "shm" / "model" / "check"
STORM = os.environ.get("MPGORT_STORM", "0") not in ("", "0")
LIMIT = 3600 if STORM else 300


@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize("model", sorted(p.stem for p in CHECK.parent.glob("*.pml")))
def test_the_model_holds_and_its_mutations_do_not(model: str) -> None:
    if shutil.which("spin") is None:
        warnings.warn(f"NOT CHECKED: shm/model/{model}.pml, for want of spin", stacklevel=1)
        pytest.skip("spin is not installed (apt install spin)")
    done = subprocess.run(
        ["bash", str(CHECK), model], capture_output=True, text=True, timeout=LIMIT
    )
    if done.returncode != 0:
        pytest.fail(f"{done.stdout[-8000:]}\n{done.stderr}", pytrace=False)
    assert f"{model} " in done.stdout and "holds" in done.stdout
