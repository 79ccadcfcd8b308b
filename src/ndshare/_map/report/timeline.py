"""When each worker of a traced map ran which items: as a plot, and as a file for trace viewers.

References
----------
Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: what
Perfetto (https://ui.perfetto.dev) and ``chrome://tracing`` open.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from ndshare._map.report.text import describe, headline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ndshare._map.report.report import MapReport

#: Viewers take a thread with the number of its process for the main thread, and 0 for an idle processor.
_PROCESS = 1
_FIRST_TRACK = 2
_BAR_HEIGHT = 0.8


class _Event(NamedTuple):
    """Something that happened at one moment: an error, or a death."""

    track: int
    at: float
    name: str
    text: str
    item: int | None


def _origin(report: MapReport, what: str) -> float:
    if report.began is None:
        raise ValueError(f"{what} needs a map that was traced; call map(…, trace=True)")
    return report.began


def _tracks(report: MapReport) -> list[int]:
    """Return the numbers of all workers. Who takes the place of a dead one has its number, and its track."""
    numbers = {worker.worker_id for worker in report.workers}
    return sorted(numbers | {death.worker_id for death in report.deaths if death.worker_id is not None})


def _events(report: MapReport) -> Iterator[_Event]:
    errors = dict(report.errors)
    for worker in report.workers:
        for index, at in worker.failures:
            text = describe(errors[index]) if index in errors else ""
            yield _Event(worker.worker_id, at, f"error at item {index}", text, index)
    for death in report.deaths:
        if death.worker_id is None:
            continue
        where = "between items" if death.index is None else f"at item {death.index}"
        error = None if death.index is None else errors.get(death.index)
        yield _Event(
            death.worker_id, death.at, f"died {where}", describe(error) if error else "", death.index
        )


def _items_of(start: int, end: int) -> str:
    return f"item {start}" if end == start + 1 else f"items {start} to {end - 1}"


def trace_events(report: MapReport) -> list[dict[str, Any]]:
    """Return the events of a trace file: one track per worker, one slice per share, one instant per error."""
    origin = _origin(report, "to_chrome_trace")
    title = f"ndshare.map: {headline(report)}, {report.context} ({report.start_method})"
    events: list[dict[str, Any]] = [_name("process_name", 0, title)]
    for number in _tracks(report):
        events.append(_name("thread_name", _FIRST_TRACK + number, f"worker {number}"))
        events.append(_about("thread_sort_index", _FIRST_TRACK + number, {"sort_index": number}))
    for worker in report.workers:
        events += [
            {
                "name": _items_of(start, end),
                "cat": "share",
                "ph": "X",
                "ts": _microseconds(began - origin),
                "dur": _microseconds(ended - began),
                "pid": _PROCESS,
                "tid": _FIRST_TRACK + worker.worker_id,
                "args": {
                    "first": start,
                    "last": end - 1,
                    "items": end - start,
                    "process": worker.pid,
                },
            }
            for start, end, began, ended in worker.timeline
        ]
    events += [
        {
            "name": event.name,
            "cat": "error",
            "ph": "i",
            "s": "t",
            "ts": _microseconds(event.at - origin),
            "pid": _PROCESS,
            "tid": _FIRST_TRACK + event.track,
            "args": {"item": event.item, "error": event.text},
        }
        for event in _events(report)
    ]
    return events


def write_chrome_trace(report: MapReport, path: str | os.PathLike[str]) -> None:
    """Write a trace file."""
    trace = {"traceEvents": trace_events(report), "displayTimeUnit": "ms"}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(trace, file)


def _about(kind: str, track: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": _PROCESS, "tid": track, "args": facts}


def _name(kind: str, track: int, name: str) -> dict[str, Any]:
    return _about(kind, track, {"name": name})


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def plot_timeline(report: MapReport, axes: Any = None) -> Any:
    """Draw a bar per share, a row per worker, a cross per error; returns the axes."""
    origin = _origin(report, "plot")
    rows = {number: row for row, number in enumerate(_tracks(report))}
    if axes is None:
        from matplotlib import pyplot as plt

        _, axes = plt.subplots(figsize=(8, 1.2 + 0.35 * max(len(rows), 2)), layout="constrained")
    for worker in report.workers:
        spans = [(began - origin, ended - began) for _, _, began, ended in worker.timeline]
        row = rows[worker.worker_id]
        axes.broken_barh(
            spans, (row - _BAR_HEIGHT / 2, _BAR_HEIGHT), facecolors=("C0", "C9"), edgecolors="none"
        )
    events = list(_events(report))
    if events:
        axes.plot(
            [event.at - origin for event in events],
            [rows[event.track] for event in events],
            linestyle="none",
            marker="x",
            color="C3",
            label="errors",
        )
        axes.legend(loc="upper right")
    axes.set_yticks(range(len(rows)), [f"worker {number}" for number in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)  # the first one on top
    axes.set_xlim(0, max([report.elapsed, *[event.at - origin for event in events]]) or 1)
    axes.set_xlabel("seconds")
    axes.set_title(headline(report), fontsize="medium")
    return axes
