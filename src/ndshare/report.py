"""What a map did: `MapReport`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ndshare._runner import WorkerReport
from ndshare.captured import Traffic


@dataclasses.dataclass(frozen=True)
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
        One per worker process or thread that finished.
    context : str
        Name of the context's class.
    start_method : {"serial", "threads", "pool", "fork"}
        How workers were started.
    reason : str
        Why so, if not as usual.
    num_workers : int
        Workers of the context.
    captured : dict of Traffic
        For each variable that the kernel uses: bytes that went by reference, were copied once for all
        workers, and were pickled. Empty where nothing has to be sent.
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
        """Busiest worker against the mean, less one: 0 is perfect."""
        each = [worker.busy for worker in self.workers] + [0.0] * (self.num_workers - len(self.workers))
        mean = sum(each) / len(each) if each else 0.0
        return max(each) / mean - 1 if mean else 0.0

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return (
            f"<MapReport: {self.items} items in {self.elapsed:.3g} s{failed}, {self.context} "
            f"({self.start_method}), {len(self.workers)} of {self.num_workers} workers, "
            f"imbalance {self.imbalance:.0%}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return MapReport, tuple(getattr(self, field.name) for field in dataclasses.fields(self))
