"""The benchmark of the drop-in modules: a small run of every case. No figure is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_bench_compat_quick_run_measures_every_case(tmp_path: Path) -> None:
    """A run with one round fills the JSON file; originals that are not installed are named."""
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ndshare", "bench", "compat", "--quick", "--rounds", "1"),
            *("--json", str(figures)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = {case["name"]: case for case in json.loads(figures.read_text())["cases"]}
    assert list(cases) == [
        *("pasha-1000", "pasha-100000", "npshmex", "contextshare", "shared_numpy", "SHMArrays")
    ]
    for name, case in cases.items():
        assert "ndshare" in case["results"]
        original = case["reference"]
        assert original in case["results"] or any("left out" in note for note in case["notes"]), name
