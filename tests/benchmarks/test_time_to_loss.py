"""The benchmark still runs: some steps of tiny models, ours and the peer's, on the Primer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "time_to_loss.py"


@pytest.mark.slow
def test_a_quick_run_ends_with_its_results_and_keeps_none():
    kept = set((SCRIPT.parent / "results").glob("*"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--part", "primer"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])["parts"]["primer"]["results"]
    assert "nanochat" in results and len(results) > 1
    for result in results.values():
        [run] = result["runs"]
        steps, seconds, values = zip(*run["curve"])
        assert steps[-1] == 5 and values[-1] < values[0]
        assert 0 < seconds[0] < seconds[-1] == run["seconds"] < run["seconds_from_launch"]
    assert set((SCRIPT.parent / "results").glob("*")) == kept
