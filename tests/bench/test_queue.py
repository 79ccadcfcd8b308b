"""The benchmark of queues: a small run of every case. No figure is judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ndshare.bench import queues

pytestmark = pytest.mark.once


def test_wrong_results_are_noticed() -> None:
    """A lost or damaged message ends the benchmark."""
    with pytest.raises(AssertionError, match="wrong frames"):
        queues._check_sum(2.0, 3)
    with pytest.raises(AssertionError, match="wrong messages"):
        queues._check_bytes(2999, 3)


def test_bench_queue_runs_every_case(run_ndshare, tmp_path: Path) -> None:
    """Every case with the peers that are always there; figures go to JSON and a picture."""
    figures, picture = tmp_path / "queue.json", tmp_path / "queue.png"
    run_ndshare("bench queue --quick --rounds 1 --json", figures, "--plot", picture)
    cases = {case["name"]: case for case in json.loads(figures.read_text())["cases"]}
    assert set(cases) == {"frames", "messages", "bounded"}
    assert set(cases["frames"]["results"]) == {
        "ndshare",
        "multiprocessing",
        "shared_memory",
        "ndshare, made shared",
    }
    assert picture.stat().st_size > 5_000
