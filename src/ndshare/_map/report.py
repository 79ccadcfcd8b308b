"""What a map did: `MapReport`.

Guarantees
----------
- A report can be pickled, whatever its errors are: one that cannot is replaced by a `RemoteError`.
- Printing it fails for no error that a kernel raises. A terminal gets several lines, a notebook a small
  table, of the same rows: what, and what about it.
"""

from __future__ import annotations

import dataclasses
import html
import os
import pickle
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ndshare._map.job import Death, WorkerReport
from ndshare._map.timeline import timeline_of
from ndshare._map.watch.captured import Traffic
from ndshare._memory import readable_bytes
from ndshare._system import Timeline
from ndshare._transport import traceback_of, with_traceback
from ndshare.errors import RemoteError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: So many errors, workers and variables are shown; the report itself has them all.
_ERRORS_MOST = 3
_WORKERS_MOST = 16
_VARIABLES_MOST = 12
_TEXT_MOST = 160
_LABEL_MOST = 24

_STARTED = {
    "serial": "in the calling thread",
    "threads": "in threads made for this map",
    "pool": "in warm workers",
    "fork": "in workers forked for this map",
    "cluster": "in workers of other machines",
}
_WORKER_COLUMNS = ("worker", "process", "items", "shares", "busy", "peak memory")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MapReport:
    """What a map did.

    Page: docs/map.md.

    Attributes
    ----------
    items : int
        How many items there were.
    elapsed : float
        Seconds from the call to the last result.
    done : ndarray of bool, shape (items,)
        Which items finished without an error.
    errors : list of (int, Exception)
        Index and error of those that failed, by index.
    workers : list of WorkerReport
        One per worker and process that was started and has ended by itself: its `items`, `shares`, `busy`
        seconds and `peak_bytes` (largest resident memory of its process so far), and on a cluster its
        `node`. Workers of a
        `ThreadContext` share their process, so they have the same peak.
    context : str
        Name of the context's class.
    start_method : {"serial", "threads", "pool", "fork", "cluster"}
        How workers were started.
    reason : str
        Why so, if not as usual.
    num_workers : int
        Workers of the context.
    captured : dict of Traffic
        For each variable that the kernel uses: bytes that went by reference, were copied once for all
        workers, and were pickled. On a cluster nothing goes by reference: bytes were sent to machines that
        did not have them, or with shares. Empty where nothing has to be sent.
    deaths : list of Death
        Workers that died or were killed; their items count in `done`, not in `workers`.
    began : float or None
        Start of the map in seconds of the monotonic clock, if it was traced.
    rows : str
        Why what workers that died had added to rows per worker or per block was not taken back; empty if it
        was (see `Death.rolled_back` of each), or if nobody died.
    resumed : int
        Items that were done before, as the checkpoint says.
    """

    items: int
    elapsed: float
    done: npt.NDArray[np.bool_]
    errors: list[tuple[int, BaseException]]
    workers: list[WorkerReport]
    context: str
    start_method: str
    reason: str = ""
    num_workers: int = 1
    captured: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    deaths: list[Death] = dataclasses.field(default_factory=list)
    began: float | None = None
    rows: str = ""
    resumed: int = 0

    @property
    def speed(self) -> float:
        """Items per second."""
        return self.items / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def lost_writes(self) -> list[tuple[str, str]]:
        """Captured objects that the kernel wrote to in vain: name and kind, each once."""
        return list(dict.fromkeys(lost for worker in self.workers for lost in worker.lost_writes))

    @property
    def busy(self) -> float:
        """Seconds that workers spent in kernels, together."""
        return sum(worker.busy for worker in self.workers)

    @property
    def imbalance(self) -> float:
        """Busiest worker against the mean of those that were started, less one: 0 is perfect.

        Processes that had the same `worker_id`, one after the other, count as one.
        """
        each: dict[int, float] = {}
        for worker in self.workers:
            each[worker.worker_id] = each.get(worker.worker_id, 0.0) + worker.busy
        return max(each.values()) * len(each) / self.busy - 1 if self.busy else 0.0

    # ------------------------------------------------------------------ shown

    def __repr__(self) -> str:
        return _as_text(self)

    def _repr_html_(self) -> str:
        return _as_html(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw when each worker ran which share, with matplotlib.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure of pyplot, which a notebook shows.

        Returns
        -------
        matplotlib.axes.Axes
            Of the plot, to be changed or saved: ``report.plot().figure.savefig("map.png")``.

        Raises
        ------
        ValueError
            If the map was not called with ``trace=True``.
        """
        axes: Axes = self.timeline("plot").plot(_headline(self), ax)
        return axes

    def to_chrome_trace(self, path: str | os.PathLike[str], *others: Any) -> None:
        """Write a file that https://ui.perfetto.dev and ``chrome://tracing`` open.

        One track per worker, one slice per share with its items, one instant event per error and death.

        Parameters
        ----------
        path : path-like
            Of the file; viewers expect a name that ends in ``.json``.
        *others : MapReport or TaskReport
            Reports of other traced maps, executors and workspaces of this program, for the same file.

        Raises
        ------
        ValueError
            If the map was not called with ``trace=True``.
        """
        own = self.timeline("to_chrome_trace")
        own.write(path, [report.timeline() for report in others])

    def timeline(self, what: str = "timeline") -> Timeline:
        """Return what is drawn and written; `what` is named if the map was not traced."""
        if self.began is None:
            raise ValueError(f"{what} needs a map that was traced; call map(…, trace=True)")
        texts = {index: _describe(error) for index, error in self.errors}
        title = f"ndshare.map: {_headline(self)}, {self.context} ({self.start_method})"
        return timeline_of(title, self.began, self.elapsed, self.workers, self.deaths, texts)

    # ------------------------------------------------------------------ pickled

    def __reduce__(self) -> tuple[Any, ...]:
        every = [error for _, error in self.errors]
        every += [error for worker in self.workers for _, error, _ in worker.errors]
        distinct = {id(error): error for error in every}
        number = {key: n for n, key in enumerate(distinct)}
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["errors"] = [(index, number[id(error)]) for index, error in self.errors]
        fields["workers"] = [_with_errors(worker, lambda error: number[id(error)]) for worker in self.workers]
        return _restored, (fields, [_packed(error) for error in distinct.values()])


# ---------------------------------------------------------------------- in words


def _as_text(report: MapReport) -> str:
    """Return several lines, one per fact."""
    lines = [f"<MapReport: {_headline(report)}"]
    facts = list(_facts(report))
    width = max(len(label) for label, _ in facts)
    lines += [f"  {label:<{width}}  {fact}" for label, fact in facts]
    table = list(_table(report))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += [
        "  " + "  ".join(f"{cell:>{most}}" for cell, most in zip(row, widths, strict=True)) for row in table
    ]
    if (hidden := len(report.workers) - _WORKERS_MOST) > 0:
        lines.append(f"  … and {hidden} more workers")
    return "\n".join(lines) + ">"


def _as_html(report: MapReport) -> str:
    """Return two tables; whatever comes from the user's program is escaped."""
    facts = "".join(
        f'<tr><th style="text-align: left">{html.escape(label)}</th>'
        f'<td style="text-align: left">{html.escape(fact)}</td></tr>'
        for label, fact in _facts(report)
    )
    parts = [f"<div><b>MapReport: {html.escape(_headline(report))}</b><table>{facts}</table>"]
    head, *rows = [*_table(report)] or [()]
    if rows:
        titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        parts.append(f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>")
    if (hidden := len(report.workers) - _WORKERS_MOST) > 0:
        parts.append(f"<p>… and {hidden} more workers</p>")
    return "".join(parts) + "</div>"


def _headline(report: MapReport) -> str:
    """Return how much was done how fast."""
    text = f"{_items(report.items)} in {_duration(report.elapsed)}"
    if report.items and report.elapsed > 0:
        text += (
            f", {report.speed:,.4g} per second"
            if report.speed < 1000
            else f", {report.speed:,.0f} per second"
        )
    return text


def _facts(report: MapReport) -> Iterator[tuple[str, str]]:
    where = f"{report.context}, {_STARTED.get(report.start_method, report.start_method)}"
    yield "context", where + (f": {_short(report.reason)}" if report.reason else "")
    places = len({worker.worker_id for worker in report.workers})
    balance = f", the busiest {report.imbalance:.0%} above the mean" if places > 1 else ""
    yield "workers", f"{places} of {report.num_workers}{balance}"
    finished = int(np.count_nonzero(report.done))
    yield "done", "all" if finished == report.items else f"{finished:,} of {report.items:,}"
    if report.resumed:
        yield "resumed", f"{report.resumed:,} had been done before"
    if report.errors:
        yield "errors", f"{len(report.errors):,}"
        for index, error in report.errors[:_ERRORS_MOST]:
            yield f"  item {index}", _short(_describe(error))
        if (hidden := len(report.errors) - _ERRORS_MOST) > 0:
            yield "  …", f"{hidden:,} more"
    if report.deaths:
        at = [str(death.index) for death in report.deaths if death.index is not None][:_ERRORS_MOST]
        yield "died", f"{_workers(len(report.deaths))}" + (f", at item {', '.join(at)}" if at else "")
    taken_back = [death.rolled_back for death in report.deaths if death.rolled_back is not None]
    if taken_back:
        shown = ", ".join(f"{start} to {end - 1}" for start, end in taken_back[:_ERRORS_MOST])
        more = ", …" if len(taken_back) > _ERRORS_MOST else ""
        yield "rolled back", f"rows to before items {shown}{more}"
    elif report.rows:
        yield "rows", _short(report.rows)
    for name, kind in report.lost_writes[:_VARIABLES_MOST]:
        yield "lost writes", _short(f"{name} ({kind})")
    on_cluster = report.start_method == "cluster"
    if report.captured:
        yield "sent", _sent(list(report.captured.values()), on_cluster)
    by_size = sorted(report.captured.items(), key=lambda pair: -max(pair[1]))
    for name, traffic in by_size[:_VARIABLES_MOST]:
        yield f"  {_short(name, _LABEL_MOST)}", _sent([traffic], on_cluster)
    if (hidden := len(by_size) - _VARIABLES_MOST) > 0:
        yield "  …", f"{hidden} more"


def _sent(traffics: list[Traffic], on_cluster: bool) -> str:
    ways = (
        ("by reference", sum(traffic.shared for traffic in traffics)),
        ("to machines" if on_cluster else "copied once", sum(traffic.copied for traffic in traffics)),
        ("with shares" if on_cluster else "pickled", sum(traffic.pickled for traffic in traffics)),
    )
    return ", ".join(f"{readable_bytes(nbytes)} {way}" for way, nbytes in ways if nbytes) or "nothing"


def _table(report: MapReport) -> Iterator[tuple[str, ...]]:
    if not report.workers:
        return
    yield _WORKER_COLUMNS
    for worker in report.workers[:_WORKERS_MOST]:
        part = f" ({worker.busy / report.elapsed:.0%})" if report.elapsed > 0 else ""
        yield (
            str(worker.worker_id),
            f"{worker.node}:{worker.pid}" if worker.node else str(worker.pid),
            f"{worker.items:,}",
            f"{worker.shares:,}",
            _duration(worker.busy) + part,
            readable_bytes(worker.peak_bytes),
        )


# ---------------------------------------------------------------------- words


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count:,} items"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _duration(seconds: float) -> str:
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds >= 1 or seconds <= 0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _describe(error: BaseException) -> str:
    """Return class and text of an exception, whatever its class does."""
    try:
        text = str(error)
    except Exception as failure:  # the user's class
        text = f"<its text could not be had: {type(failure).__name__}>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(text: str, most: int = _TEXT_MOST) -> str:
    """Return text in one line of limited length."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 2] + " …"


# ---------------------------------------------------------------------- pickled


def _with_errors(worker: WorkerReport, convert: Callable[[Any], Any]) -> WorkerReport:
    errors = [(index, convert(error), text) for index, error, text in worker.errors]
    return dataclasses.replace(worker, errors=errors)


def _restored(fields: dict[str, Any], packed: list[bytes]) -> MapReport:
    """Return a report from its pickle."""
    errors = [_unpacked(data) for data in packed]
    pairs = [(index, errors[n]) for index, n in fields["errors"]]
    workers = [_with_errors(worker, errors.__getitem__) for worker in fields["workers"]]
    return MapReport(**{**fields, "errors": pairs, "workers": workers})


def _packed(error: BaseException) -> bytes:
    """Return the pickle of an exception and of the text of its traceback in a worker."""
    text = traceback_of(error)
    reason: Exception | None = None
    for dumps in (pickle.dumps, _cloudpickled):
        try:
            data = dumps((error, text))
            if type(pickle.loads(data)[0]) is type(error):
                return data
            reason = TypeError("its pickle gives an exception of another class")
        except Exception as failure:
            reason = failure
    words = _describe(error).removeprefix(f"{type(error).__name__}: ")
    stand_in = RemoteError(type(error).__qualname__, words, f"{type(reason).__name__}: {reason}")
    return pickle.dumps((stand_in, text))


def _cloudpickled(value: object) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value)
    return data


def _unpacked(data: bytes) -> BaseException:
    error: BaseException
    error, text = pickle.loads(data)
    return with_traceback(error, text)
