"""The benchmark: its arithmetic, and a small run of every case. No figure is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ndshare.bench import peers, report
from ndshare.bench.command import main
from ndshare.bench.goal import Goal, Result
from ndshare.bench.memory import pss, tree
from ndshare.bench.timing import Contestant, alternate

pytestmark = pytest.mark.once


def _result(*goals: Goal) -> Result:
    values = {"bare": [1.0, 2.0, 9.0], "ndshare": [3.0, 2.0, 40.0], "loky": [8.0]}
    return Result("case", "a case", "s", values, "bare", goals)


def test_result_compares_medians() -> None:
    """Ratios are of medians: one slow round decides nothing."""
    result = _result()
    assert result.median("ndshare") == 3.0
    assert result.ratio("ndshare") == 1.5
    assert result.ratio("bare") == 1.0


@pytest.mark.parametrize(
    ("goal", "reached", "text"),
    [
        (Goal(1.6), 1.5, "1.50 x ok"),
        (Goal(1.4), 1.5, "1.50 x MISSED"),
        (Goal(0.5, "extra"), 1.0, "+ 1 s MISSED"),
        (Goal(3.0, "value"), 3.0, "3 s ok"),
        (Goal(1.0, subject="ray"), None, "not measured"),
    ],
)
def test_goal_is_judged(goal: Goal, reached: float | None, text: str) -> None:
    """Each kind of goal is compared with the right number."""
    result = _result(goal)
    assert result.reached(goal) == reached
    assert report.reached_text(result, goal) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (4.5e-6, "s", "4.5 µs"),
        (2.5e-8, "s", "25 ns"),
        (1.0345, "x", "1.034 x"),
        (-0.002, "s", "-2 ms"),
        (1.2e9, "B", "1.2 GB"),
        (0, "B", "0 B"),
    ],
)
def test_quantity_has_a_readable_unit(value: float, unit: str, text: str) -> None:
    """Times and sizes are given in the unit that suits them."""
    assert report.quantity(value, unit) == text


def test_alternate_takes_turns_and_checks() -> None:
    """Contestants run in turn, warm-up rounds are not counted, each result is checked."""
    order: list[str] = []
    checked: list[str] = []

    def contestant(name: str) -> Contestant:
        return Contestant(lambda: order.append(name) or name, checked.append, per=2)

    seconds = alternate({"a": contestant("a"), "b": contestant("b")}, 3)
    assert order == ["a", "b"] * 5
    assert checked == order
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 3, "b": 3}


def test_alternate_wrong_result_stops_the_run() -> None:
    """A peer that returns a wrong result is not timed."""

    def refuse(_: object) -> None:
        raise AssertionError("wrong")

    with pytest.raises(AssertionError, match="wrong"):
        alternate({"a": Contestant(int, refuse)}, 1)


def test_peer_that_is_missing_is_reported(monkeypatch) -> None:
    """A library that cannot be imported is left out, with the reason."""
    monkeypatch.setitem(sys.modules, "npshmex", None)
    versions, missing = peers.importable(["ndshare", "npshmex"])
    assert list(versions) == ["ndshare"]
    assert "not installed" in missing["npshmex"]


def test_peer_unknown_is_refused(capsys) -> None:
    """An unknown peer is refused by name."""
    with pytest.raises(SystemExit):
        main(["executor", "--peers", "lokki"])
    assert "lokki" in capsys.readouterr().err


def test_pss_counts_children() -> None:
    """Memory of a process tree: the children are found, and the sum is plausible."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in tree(os.getpid())
        assert pss(os.getpid()) > 1_000_000
    finally:
        child.communicate(b"\n")
    assert child.pid not in tree(os.getpid())


def test_bench_quick_run_measures_every_goal(run_ndshare, tmp_path: Path) -> None:
    """A run with one round fills the JSON file and the picture; every goal has a figure."""
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    run_ndshare("bench executor --quick --rounds 1 --json", figures, "--plot", picture)
    content = json.loads(figures.read_text())
    assert {"cpu", "cores", "kernel", "python", "numpy"} <= set(content["machine"])
    assert len(content["cases"]) == 14
    for case in content["cases"]:
        for goal in case["goals"]:
            assert goal["reached"] is not None, case["name"]
        assert "ndshare" in case["results"]
    assert {"ndshare", "stdlib", "mp.Pool"} <= set(content["versions"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bench_dict_quick_run_measures_every_goal(run_ndshare, tmp_path: Path) -> None:
    """The cases of SharedDict, once, small: every goal has a figure."""
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    run_ndshare("bench dict --quick --rounds 1 --json", figures, "--plot", picture)
    content = json.loads(figures.read_text())
    assert len(content["cases"]) == 10
    for case in content["cases"]:
        for goal in case["goals"]:
            assert goal["reached"] is not None, case["name"]
    assert picture.read_bytes().startswith(b"\x89PNG")
