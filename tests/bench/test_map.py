"""The benchmark of maps: its yardsticks, and a small run of every case. No figure is judged here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ndshare.bench.balance import makespan, pareto
from ndshare.bench.command import main
from ndshare.bench.mappers import MAPPERS, Work
from ndshare.bench.work import spin, triple

pytestmark = pytest.mark.once


def test_makespan_gives_the_next_item_to_who_is_free_first() -> None:
    """Greedy list scheduling by hand: 3 and 1 begin, 2 follows 1, the last waits for either."""
    assert makespan(np.array([3.0, 1.0, 2.0, 4.0]), 2) == 7.0
    assert makespan(np.array([3.0, 1.0, 2.0, 4.0]), 1) == 10.0
    assert makespan(np.array([3.0]), 4) == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_makespan_is_within_grahams_bound(seed: int) -> None:
    """No schedule of seven items is better than 2 - 1/m times less (Graham 1966)."""
    costs = pareto(7, seed)
    best = min(
        max(costs[[owner == worker for owner in owners]].sum() for worker in range(3))
        for owners in itertools.product(range(3), repeat=7)
    )
    assert best <= makespan(costs, 3) <= (2 - 1 / 3) * best + 1e-12


def test_pareto_costs_are_drawn_once_and_for_all() -> None:
    """The same seed gives the same costs; half of them are below the median of the distribution."""
    costs = pareto(20_000, 3)
    np.testing.assert_array_equal(costs, pareto(20_000, 3))
    assert costs.min() >= 0.2e-3
    assert np.median(costs) == pytest.approx(0.2e-3 * 2 ** (1 / 1.2), rel=0.05)


def test_spin_takes_its_time() -> None:
    """An item is never shorter than it should be."""
    import time

    start = time.perf_counter()
    assert spin(0.01) == 0.01
    assert time.perf_counter() - start >= 0.01


@pytest.mark.parametrize("name", ["ndshare", "mp.Pool"])
def test_mapper_returns_results_in_order(name: str) -> None:
    """Kernels that write and functions that return do the same."""

    def kernel_for(out):
        def kernel(_worker_id, index, value):
            out[index] = 3 * value

        return kernel

    mapper = MAPPERS[name](2)
    try:
        run = mapper.prepare(Work(triple, kernel_for, {}), np.arange(50.0), np.float64)
        np.testing.assert_array_equal(run(), 3 * np.arange(50.0))
    finally:
        mapper.close()


def test_peer_of_another_face_is_refused(capsys) -> None:
    """Ray has no map here, pasha is no executor."""
    for face, name in (("map", "ray"), ("executor", "pasha")):
        with pytest.raises(SystemExit):
            main([face, "--peers", name])
        assert name in capsys.readouterr().err


def test_bench_joblib_quick_run_measures_every_goal(run_ndshare, tmp_path: Path) -> None:
    """Both cases of the joblib backend, with small arrays."""
    figures = tmp_path / "figures.json"
    run_ndshare("bench joblib --quick --rounds 1 --json", figures, JOBLIB_TEMP_FOLDER=str(tmp_path))
    cases = json.loads(figures.read_text())["cases"]
    assert [case["name"] for case in cases] == ["joblib-input", "joblib-results"]
    for case in cases:
        assert {"ndshare", "loky"} <= case["results"].keys()
        assert all(goal["reached"] is not None for goal in case["goals"])


def test_bench_map_quick_run_measures_every_goal(run_ndshare, tmp_path: Path) -> None:
    """A run with one round fills the JSON file and the picture; every goal has a figure."""
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    run_ndshare("bench map --quick --rounds 1 --json", figures, "--plot", picture)
    content = json.loads(figures.read_text())
    names = [case["name"] for case in content["cases"]]
    assert names == [
        *(
            "bookkeeping",
            "item-rng",
            "tiny",
            "tiny-peers",
            "many",
            "many-peers",
            "many-array",
            "many-array-peers",
            "captured",
            "pareto",
        )
    ]
    for case in content["cases"]:
        assert len(case["goals"]) == (not case["name"].endswith("-peers"))
        assert all(goal["reached"] is not None for goal in case["goals"]), case["name"]
        assert "ndshare" in case["results"]
    assert {"ndshare", "mp.Pool"} <= set(content["versions"])
    assert picture.read_bytes().startswith(b"\x89PNG")
