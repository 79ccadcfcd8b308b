"""When each worker of a traced map ran which items: as a plot, and as a file for trace viewers.

References
----------
Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: what
Perfetto (https://ui.perfetto.dev) and ``chrome://tracing`` open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ndshare._map.job import Death, WorkerReport

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


class Timeline:
    """What happened when.

    Parameters
    ----------
    began : float
        Start of the map in seconds of the monotonic clock.
    elapsed : float
        Seconds that it took.
    workers : sequence of WorkerReport
        One row, or track, for each `worker_id`: who takes the place of a dead one has its number.
    deaths : sequence of Death
        Workers that ended without a report.
    errors : mapping of int to str
        What went wrong, by item.
    """

    def __init__(
        self,
        began: float,
        elapsed: float,
        workers: Sequence[WorkerReport],
        deaths: Sequence[Death],
        errors: Mapping[int, str],
    ) -> None:
        self._began = began
        self._elapsed = elapsed
        self._workers = workers
        numbers = {worker.worker_id for worker in workers}
        self._tracks = sorted(numbers | {death.worker_id for death in deaths if death.worker_id is not None})
        self._events = list(_events(workers, deaths, errors))

    def trace(self, title: str) -> list[dict[str, Any]]:
        """Return the events of a trace file: a track per worker, a slice per share, an instant per error."""
        events: list[dict[str, Any]] = [_about("process_name", 0, {"name": title})]
        for number in self._tracks:
            events.append(_about("thread_name", _FIRST_TRACK + number, {"name": f"worker {number}"}))
            events.append(_about("thread_sort_index", _FIRST_TRACK + number, {"sort_index": number}))
        events += [
            {
                "name": f"item {start}" if end == start + 1 else f"items {start} to {end - 1}",
                "cat": "share",
                "ph": "X",
                "ts": _microseconds(began - self._began),
                "dur": _microseconds(ended - began),
                "pid": _PROCESS,
                "tid": _FIRST_TRACK + worker.worker_id,
                "args": {"first": start, "last": end - 1, "items": end - start, "process": worker.pid},
            }
            for worker in self._workers
            for start, end, began, ended in worker.timeline
        ]
        events += [
            {
                "name": event.name,
                "cat": "error",
                "ph": "i",
                "s": "t",
                "ts": _microseconds(event.at - self._began),
                "pid": _PROCESS,
                "tid": _FIRST_TRACK + event.track,
                "args": {"item": event.item, "error": event.text},
            }
            for event in self._events
        ]
        return events

    def write(self, title: str, path: str | os.PathLike[str]) -> None:
        """Write a trace file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": self.trace(title), "displayTimeUnit": "ms"}, file)

    def plot(self, title: str, axes: Any = None) -> Any:
        """Draw a bar per share, a row per worker, a cross per error; returns the axes."""
        rows = {number: row for row, number in enumerate(self._tracks)}
        if axes is None:
            from matplotlib import pyplot as plt

            _, axes = plt.subplots(figsize=(8, 1.2 + 0.35 * max(len(rows), 2)), layout="constrained")
        for worker in self._workers:
            spans = [(began - self._began, ended - began) for _, _, began, ended in worker.timeline]
            place = rows[worker.worker_id] - _BAR_HEIGHT / 2, _BAR_HEIGHT
            axes.broken_barh(spans, place, facecolors=("C0", "C9"), edgecolors="none")
        times = [event.at - self._began for event in self._events]
        if times:
            places = [rows[event.track] for event in self._events]
            axes.plot(times, places, linestyle="none", marker="x", color="C3", label="errors")
            axes.legend(loc="upper right")
        axes.set_yticks(range(len(rows)), [f"worker {number}" for number in rows])
        axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)  # the first one on top
        axes.set_xlim(0, max([self._elapsed, *times]) or 1)
        axes.set_xlabel("seconds")
        axes.set_title(title, fontsize="medium")
        return axes


def _events(
    workers: Sequence[WorkerReport], deaths: Sequence[Death], errors: Mapping[int, str]
) -> Iterator[_Event]:
    for worker in workers:
        for index, at in worker.failures:
            yield _Event(worker.worker_id, at, f"error at item {index}", errors.get(index, ""), index)
    for death in deaths:
        if death.worker_id is None:
            continue
        where = "between items" if death.index is None else f"at item {death.index}"
        text = "" if death.index is None else errors.get(death.index, "")
        yield _Event(death.worker_id, death.at, f"died {where}", text, death.index)


def _about(kind: str, track: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": _PROCESS, "tid": track, "args": facts}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
