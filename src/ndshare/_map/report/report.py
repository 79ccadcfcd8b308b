"""What a map did: `MapReport`.

Guarantees
----------
- A report can be pickled, whatever its errors are: one that cannot is replaced by a `RemoteError`.
- Printing it fails for no error that a kernel raises.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ndshare._map.job import Death, WorkerReport
from ndshare._map.report import text as _report_text
from ndshare._map.report import timeline
from ndshare._map.watch.captured import Traffic
from ndshare._transport import RemoteTracebackError
from ndshare.errors import RemoteError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MapReport:
    """What a map did.

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
        return _report_text.as_text(self)

    def _repr_html_(self) -> str:
        return _report_text.as_html(self)

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
        axes: Axes = timeline.plot_timeline(self, ax)
        return axes

    def to_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a file that https://ui.perfetto.dev and ``chrome://tracing`` open.

        One track per worker, one slice per share with its items, one instant event per error and death.

        Parameters
        ----------
        path : path-like
            Of the file; viewers expect a name that ends in ``.json``.

        Raises
        ------
        ValueError
            If the map was not called with ``trace=True``.
        """
        timeline.write_chrome_trace(self, path)

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
    cause = error.__cause__
    text = cause.text if isinstance(cause, RemoteTracebackError) else ""
    reason: Exception | None = None
    for dumps in (pickle.dumps, _cloudpickled):
        try:
            data = dumps((error, text))
            if type(pickle.loads(data)[0]) is type(error):
                return data
            reason = TypeError("its pickle gives an exception of another class")
        except Exception as failure:
            reason = failure
    words = _report_text.describe(error).removeprefix(f"{type(error).__name__}: ")
    stand_in = RemoteError(type(error).__qualname__, words, f"{type(reason).__name__}: {reason}")
    return pickle.dumps((stand_in, text))


def _cloudpickled(value: object) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value)
    return data


def _unpacked(data: bytes) -> BaseException:
    error: BaseException
    error, text = pickle.loads(data)
    if text:
        error.__cause__ = RemoteTracebackError(text)
    return error
