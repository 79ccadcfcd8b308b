"""Contexts whose maps run in this process: `SerialContext`, `ThreadContext`."""

from __future__ import annotations

from collections.abc import Callable

from ndshare._map.contexts.base import MapContext
from ndshare._map.job import Job
from ndshare._map.workers.base import MapWorkers
from ndshare._map.workers.local import Caller, Threads
from ndshare._system import default_workers


class SerialContext(MapContext):
    """Maps run in the calling thread, one item after the other.

    Parameters
    ----------
    *_ignored, **_options
        Those of other contexts are accepted and ignored: there is one worker.
    """

    def __init__(self, *_ignored: object, **_options: object) -> None:
        super().__init__(1)

    def make_workers(self, job: Job, tell: Callable[[], None]) -> tuple[MapWorkers, str]:
        """See `MapContext`."""
        return Caller(job, tell), ""


class ThreadContext(MapContext):
    """Maps run in threads of this process, made for each map.

    Parameters
    ----------
    num_workers : int, optional
        By default the number of processors.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        super().__init__(default_workers() if num_workers is None else num_workers)

    def make_workers(self, job: Job, _tell: Callable[[], None]) -> tuple[MapWorkers, str]:
        """See `MapContext`."""
        return Threads(job), ""
