"""bench/pools.py: it measures, compares and writes; the figures themselves are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "pools.py"


def test_a_quick_run_compares_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCH), "--quick", "--rounds", "1", "--json", str(out)]
    command += ["--only", "each,nested,memory", "--with", "mpgort,ProcessPoolExecutor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    works = {
        w["key"]: {c["contender"]: c for c in w["cells"]}
        for w in json.loads(out.read_text())["works"]
    }
    assert works["each"]["mpgort"]["ratio"] == 1
    assert works["each"]["ProcessPoolExecutor"]["value"] > 0
    assert works["memory"]["mpgort"]["value"] > 1 << 20
    assert "232 tasks" in works["nested"]["mpgort"]["note"]
    assert works["nested"]["ProcessPoolExecutor"]["value"] is None
    assert "| trivial tasks, submitted one by one |" in done.stdout
