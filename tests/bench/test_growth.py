"""The cost of one over the number of all: the arithmetic, and a small run of every case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ndshare.bench import growth
from ndshare.bench.curve import Curve

pytestmark = pytest.mark.once


def _curve() -> Curve:
    points = {100: [1e-6, 9e-6, 1.2e-6], 1000: [1e-6], 10_000: [2e-6], 100_000: [2.1e-6]}
    return Curve(
        "tasks", "tiny tasks", "tasks", {"ndshare": points, "stdlib": {100: [1e-4]}}, ["stops there"]
    )


def test_curve_finds_steps() -> None:
    """A step is where one costs half as much again as it did one size before; medians decide."""
    assert list(_curve().steps()) == [(1000, 10_000, 2.0)]
    assert list(_curve().steps("stdlib")) == []


def test_curve_as_a_table() -> None:
    """Sizes are columns, contestants rows; what was not measured stays empty."""
    lines = _curve().text().splitlines()
    assert lines[1].split() == ["tasks", "100", "1k", "10k", "100k"]
    assert lines[2].split() == ["ndshare", "1.2", "µs", "1", "µs", "2", "µs", "2.1", "µs"]
    assert lines[3].split() == ["stdlib", "100", "µs"]
    assert lines[4:] == ["    step: 2.00 x from 1k to 10k tasks", "    stops there"]


def test_contestant_stops_where_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next size is left out, with a note; the others go on."""
    clock = [0.0]

    def work(each: float) -> Any:
        def do(size: int) -> None:
            clock[0] += each * size

        return do

    monkeypatch.setattr(growth.time, "perf_counter", lambda: clock[0])
    curve = growth._grow(Curve("x", "x", "things"), {"a": work(1e-3), "b": work(1.0)}, (10, 100), 2)
    assert {name: sorted(points) for name, points in curve.seconds.items()} == {"a": [10, 100], "b": [10]}
    assert curve.cost("a") == pytest.approx({10: 1e-3, 100: 1e-3})
    assert curve.notes == ["b: 100 things would take more than 30 s"]


def test_bench_growth_quick_run(run_ndshare: Any, tmp_path: Path) -> None:
    """Every case runs, with the standard library beside it, and is drawn."""
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    run_ndshare("bench growth --quick --rounds 1 --json", figures, "--plot", picture)
    curves = json.loads(figures.read_text())["curves"]
    assert [curve["name"] for curve in curves] == list(growth._CASES)
    for curve in curves:
        assert len(curve["seconds per one"]) >= 2, curve["name"]
        assert all(len(points) == 2 for points in curve["seconds per one"].values()), curve["name"]
    assert picture.read_bytes().startswith(b"\x89PNG")
