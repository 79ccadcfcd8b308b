"""The benchmark of the drop-in modules: a small run of every case. No figure is judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.once


def test_bench_compat_quick_run_measures_every_case(run_ndshare, tmp_path: Path) -> None:
    """A run with one round fills the JSON file; originals that are not installed are named."""
    figures = tmp_path / "figures.json"
    run_ndshare("bench compat --quick --rounds 1 --json", figures)
    cases = {case["name"]: case for case in json.loads(figures.read_text())["cases"]}
    assert list(cases) == [
        *("pasha-1000", "pasha-100000", "npshmex", "contextshare", "shared_numpy", "SHMArrays")
    ]
    for name, case in cases.items():
        assert "ndshare" in case["results"]
        original = case["reference"]
        assert original in case["results"] or any("left out" in note for note in case["notes"]), name
