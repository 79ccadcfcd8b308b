"""What an executor and a workspace have done: `report()` as a text, a table, a plot and a trace."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare

pytestmark = pytest.mark.once


@pytest.fixture
def agg() -> Any:
    """Let matplotlib draw without a display."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    yield plt
    plt.close("all")


def _nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _fail() -> None:
    raise ValueError("<b>no</b>")


@pytest.fixture
def report() -> ndshare.TaskReport:
    """Return that of six naps, a hundred items, an error and a death."""
    with ndshare.ProcessPoolExecutor(2, record=True) as executor:
        for future in [executor.submit(_nap, 0.02) for _ in range(6)]:
            future.result()
        list(executor.map(abs, range(100)))
        for future in (executor.submit(_fail), executor.submit(os._exit, 3)):
            assert future.exception() is not None
    return executor.report()


def test_report_has_a_record_per_task(report: ndshare.TaskReport) -> None:
    """Which function, where, when, and what became of it; one worker does one thing at a time."""
    naps = [task for task in report.tasks if task.name.endswith("_nap()")]
    assert len(naps) == 6
    assert sum(task.name.endswith("abs()") for task in report.tasks) == 100
    assert sorted(task.outcome for task in report.tasks if task.outcome != "done") == ["died", "failed"]
    for task in report.tasks:
        assert report.began <= task.submitted <= task.began <= task.ended <= report.began + report.elapsed
    assert all(task.ended - task.began >= 0.019 for task in naps)
    for number in (0, 1):
        own = sorted((t for t in report.tasks if t.worker == number), key=lambda t: t.began)
        assert all(a.ended <= b.began for a, b in itertools.pairwise(own))
    assert report.busy >= 0.1
    assert report.waited >= 0


def test_report_is_readable(report: ndshare.TaskReport) -> None:
    """As a text and as a table: totals by function and by worker; what users write is escaped."""
    text = repr(report)
    assert text.startswith("<TaskReport: 108 tasks in ")
    assert "failed    1" in text
    assert "died      1" in text
    assert "_nap()" in text
    table = report._repr_html_()
    assert "<th>function</th>" in table
    assert "&lt;" in table or "<b>no</b>" not in table


@pytest.mark.leaves("open descriptor")  # matplotlib keeps the font files that it used open
def test_report_is_drawn(report: ndshare.TaskReport, agg: Any) -> None:
    """A bar per task, a row per worker, a cross for what failed, a legend beside the axes."""
    axes = report.plot()
    bars = [path for collection in axes.collections for path in collection.get_paths()]
    assert len(bars) == len(report.tasks)
    assert len(axes.lines[0].get_xdata()) == 2
    axes.figure.canvas.draw()
    beside, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert beside.x0 >= inside.x1


def test_one_trace_has_all_faces(report: ndshare.TaskReport, tmp_path: Path) -> None:
    """Executor, workspace and map in one file: a process each, tracks that are not shared, one clock."""
    with ndshare.Workspace({"d": np.ones(3)}, 1, record=True) as workspace:

        @workspace.register
        def total(factor):
            return float(d.sum() * factor)  # noqa: F821

        total(2.0)
        assert workspace.evaluate() == [6.0]
    calls = workspace.report()
    assert [task.name.rpartition(".")[2] for task in calls.tasks] == ["total()"]
    mapped = ndshare.SerialContext().map(lambda *_: None, range(5), trace=True)
    path = tmp_path / "all.json"
    report.to_chrome_trace(path, calls, mapped)
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(names) == [1, 2, 3]
    assert names[3].startswith("ndshare.map: ")
    tracks = [(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"]
    assert len({tid for _, tid in tracks}) == len(tracks)
    assert all(e["ts"] >= 0 for e in events if e["ph"] == "X")
    begins = {pid: min(e["ts"] for e in events if e["ph"] == "X" and e["pid"] == pid) for pid in names}
    assert begins[1] < begins[2] < begins[3]
    mapped.to_chrome_trace(path, report)
    assert len(json.loads(path.read_text())["traceEvents"]) > len(report.tasks)


def test_nothing_is_recorded_unless_it_was_asked_for() -> None:
    """The refusal says how to ask."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(abs, -1).result()
        with pytest.raises(ValueError, match="record=True"):
            executor.report()
        assert executor._pool.recorder is None
    with pytest.raises(ValueError, match="record=True"):
        ndshare.Workspace({"d": np.ones(3)}, record=True).report()
    with pytest.raises(TypeError, match="record must be True or False"):
        ndshare.ProcessPoolExecutor(1, record="yes")


def test_report_of_nothing_is_a_report() -> None:
    """Before the first task."""
    with ndshare.ProcessPoolExecutor(2, record=True) as executor:
        report = executor.report()
    assert report.tasks == ()
    assert "0 tasks" in repr(report)
    assert report._repr_html_()
