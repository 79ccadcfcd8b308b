"""What an executor or a workspace did, task by task, if that was asked for: `TaskReport`.

::

    submit ─► Recorder.take ... answer heard ─► Recorder.note ─► TaskRecord ─► report() ─► TaskReport

Guarantees
----------
- Nothing is recorded, and nothing is paid, unless it was asked for when the pool was made.

Not guaranteed
--------------
- Times to the microsecond: a task ends when its answer is heard, which a busy caller does late.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ndshare._system import Moment, Slice, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FUNCTIONS_MOST = 12
_WORKERS_MOST = 16
_FUNCTION_COLUMNS = ("function", "tasks", "failed", "total", "median", "longest")
_WORKER_COLUMNS = ("worker", "processes", "tasks", "busy")


class TaskRecord(NamedTuple):
    """One task of an executor, or one call of a workspace.

    Attributes
    ----------
    name : str
        The function.
    worker, pid : int
        Number of the worker, and its process.
    submitted, began, ended : float
        In seconds of the monotonic clock (`time.monotonic`).
    outcome : {"done", "failed", "died"}
        Whether it returned, raised, or lost its worker.
    """

    name: str
    worker: int
    pid: int
    submitted: float
    began: float
    ended: float
    outcome: Literal["done", "failed", "died"]


class Recorder:
    """Notes of a pool; called under the hub's lock but for `take`."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._records: list[TaskRecord] = []
        self._free: dict[int, float] = {}  # when each worker was last known to end something

    def take(self, tasks: Iterable[Any]) -> None:
        """Note that tasks are submitted now."""
        now = time.monotonic()
        for task in tasks:
            task.submitted = now

    def note(self, worker: Any, task: Any, seconds: float, *, ok: bool) -> None:
        """Note that a task has been answered."""
        if task.submitted:  # else it is one of the pool's own
            self._add(worker, worker.pid, task, seconds, "done" if ok else "failed")

    def note_death(self, worker: Any, pid: int, task: Any) -> None:
        """Note that a task has lost its worker."""
        if not task.submitted:
            return
        since = max(self._free.get(worker.number, 0.0), task.submitted)
        self._add(worker, pid, task, time.monotonic() - since, "died")

    def _add(
        self, worker: Any, pid: int, task: Any, seconds: float, outcome: Literal["done", "failed", "died"]
    ) -> None:
        now = time.monotonic()
        # Several answers are heard at once: each began when the one before it had ended, at the earliest.
        began = max(now - seconds, self._free.get(worker.number, 0.0))
        self._free[worker.number] = now
        self._records.append(
            TaskRecord(task.describe(), worker.number, pid, task.submitted, began, now, outcome)
        )

    def report(self, workers: int) -> TaskReport:
        """Return what was noted so far."""
        last = max([record.ended for record in self._records], default=time.monotonic())
        return TaskReport(tuple(self._records), self.began, last - self.began, workers)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TaskReport:
    """What an executor or a workspace has done so far.

    Page: docs/executor.md.

    Attributes
    ----------
    tasks : tuple of TaskRecord
        Those that have ended, in that order: `name`, `worker`, `pid`, `submitted`, `began` and `ended` in
        seconds of `time.monotonic`, and `outcome`: "done", "failed" or "died".
    began : float
        When recording began.
    elapsed : float
        Seconds from then to the end of the last task.
    num_workers : int
        Workers of the pool.

    Notes
    -----
    A task ends when its answer is heard, within a millisecond as a rule, later if the caller keeps Python
    busy. Its begin is that, less the time that the worker has measured.
    """

    tasks: tuple[TaskRecord, ...]
    began: float
    elapsed: float
    num_workers: int

    @property
    def busy(self) -> float:
        """Seconds that workers spent in tasks, together."""
        return sum(task.ended - task.began for task in self.tasks)

    @property
    def waited(self) -> float:
        """Median of the seconds between submit and begin; 0 without tasks."""
        return _median([task.began - task.submitted for task in self.tasks])

    # ------------------------------------------------------------------ shown

    def __repr__(self) -> str:
        lines = [f"<TaskReport: {self._headline()}"]
        lines += [f"  {label:<8}  {text}" for label, text in self._facts()]
        for table in (list(self._functions()), list(self._workers())):
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines += [
                "  " + "  ".join(f"{cell:>{size}}" for cell, size in zip(row, widths, strict=True))
                for row in table
            ]
        return "\n".join(lines) + ">"

    def _repr_html_(self) -> str:
        import html

        facts = "".join(
            f'<tr><th style="text-align: left">{html.escape(label)}</th>'
            f'<td style="text-align: left">{html.escape(text)}</td></tr>'
            for label, text in self._facts()
        )
        parts = [f"<div><b>TaskReport: {html.escape(self._headline())}</b><table>{facts}</table>"]
        for head, *rows in (list(self._functions()), list(self._workers())):
            if rows:
                titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
                body = "".join(
                    "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                    for row in rows
                )
                parts.append(f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>")
        return "".join(parts) + "</div>"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw when each worker ran which task, with matplotlib; a colour per function.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure of pyplot, which a notebook shows.

        Returns
        -------
        matplotlib.axes.Axes
            Of the plot: ``report.plot().figure.savefig("tasks.png")``.
        """
        axes: Axes = self.timeline().plot(self._headline(), ax)
        return axes

    def to_chrome_trace(self, path: str | os.PathLike[str], *others: Any) -> None:
        """Write a file that https://ui.perfetto.dev and ``chrome://tracing`` open.

        Parameters
        ----------
        path : path-like
            Of the file; viewers expect a name that ends in ``.json``.
        *others : TaskReport or MapReport
            Reports of other executors, workspaces and traced maps of this program, for the same file.
        """
        self.timeline().write(path, [report.timeline() for report in others])

    def timeline(self) -> Timeline:
        """Return what is drawn and written."""
        slices = [
            Slice(
                task.worker,
                task.began,
                task.ended,
                task.name,
                task.name,
                {"process": task.pid, "waited_s": task.began - task.submitted, "outcome": task.outcome},
            )
            for task in self.tasks
        ]
        moments = [
            Moment(task.worker, task.ended, f"{task.name} {task.outcome}", {"process": task.pid})
            for task in self.tasks
            if task.outcome != "done"
        ]
        tracks = {number: f"worker {number}" for number in sorted({task.worker for task in self.tasks})}
        title = f"ndshare tasks: {self._headline()}"
        return Timeline(title, self.began, self.elapsed, tracks, slices, moments, "task")

    # ------------------------------------------------------------------ in words

    def _headline(self) -> str:
        count = len(self.tasks)
        text = f"{count:,} task{'s' * (count != 1)} in {_duration(self.elapsed)}"
        return f"{text}, {count / self.elapsed:,.4g} per second" if count and self.elapsed > 0 else text

    def _facts(self) -> Iterator[tuple[str, str]]:
        used = len({task.worker for task in self.tasks})
        capacity = self.elapsed * self.num_workers
        share = f", busy {self.busy / capacity:.0%} of the time" if capacity > 0 else ""
        yield "workers", f"{used} of {self.num_workers}{share}"
        yield "waited", f"{_duration(self.waited)} from submit to begin (median)"
        for outcome in ("failed", "died"):
            if number := sum(task.outcome == outcome for task in self.tasks):
                yield outcome, f"{number:,}"

    def _functions(self) -> Iterator[tuple[str, ...]]:
        yield _FUNCTION_COLUMNS
        by_name: dict[str, list[TaskRecord]] = {}
        for task in self.tasks:
            by_name.setdefault(task.name, []).append(task)
        totals = {name: sum(t.ended - t.began for t in tasks) for name, tasks in by_name.items()}
        for name in sorted(by_name, key=lambda name: -totals[name])[:_FUNCTIONS_MOST]:
            seconds = [task.ended - task.began for task in by_name[name]]
            yield (
                name,
                f"{len(seconds):,}",
                f"{sum(task.outcome != 'done' for task in by_name[name]):,}",
                _duration(totals[name]),
                _duration(_median(seconds)),
                _duration(max(seconds)),
            )

    def _workers(self) -> Iterator[tuple[str, ...]]:
        yield _WORKER_COLUMNS
        for number in sorted({task.worker for task in self.tasks})[:_WORKERS_MOST]:
            own = [task for task in self.tasks if task.worker == number]
            busy = sum(task.ended - task.began for task in own)
            pids = list(dict.fromkeys(str(task.pid) for task in own))
            part = f" ({busy / self.elapsed:.0%})" if self.elapsed > 0 else ""
            yield str(number), " ".join(pids[-3:]), f"{len(own):,}", _duration(busy) + part


def _median(values: list[float]) -> float:
    values = sorted(values)
    half = len(values) // 2
    return 0.0 if not values else values[half] if len(values) % 2 else sum(values[half - 1 : half + 1]) / 2


def _duration(seconds: float) -> str:
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds >= 1 or seconds <= 0:
        return f"{max(0.0, seconds):.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
