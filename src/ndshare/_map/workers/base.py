"""What the workers of one map must be able to do, whatever they are.

::

    MapWorkers ── Caller       the calling thread
               ├─ Threads      made for this map
               ├─ PoolWorkers  processes of the pool
               ├─ Forked       forked for this map
               └─ Remote       on other machines
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ndshare._map.job import Death, WorkerReport
from ndshare._map.watch.captured import Traffic

Ranges = Sequence[tuple[int, int]]


class Lost:
    """A worker that ended without a report.

    Parameters
    ----------
    pid : int
        Its process; 0 if it is not known, or if there was none.
    error : BaseException
        What became of it.
    """

    def __init__(self, pid: int, error: BaseException) -> None:
        self.pid = pid
        self.error = error


class ItemError(NamedTuple):
    """An item that failed where nobody could report it: its worker died or took too long."""

    item: int
    error: BaseException


#: What a map hears of its workers; a `Death` is that of one which somebody else has dealt with.
Outcome = WorkerReport | Lost | Death | ItemError


class MapWorkers(Protocol):
    """Workers of one map."""

    start_method: str
    rolls_back: bool
    """Whether they keep what rows held when a share began."""

    @property
    def captured(self) -> Mapping[str, Traffic]:
        """How the variables of the kernel are sent."""

    @property
    def running(self) -> int:
        """How many have been started and not been heard of since."""

    def start(self, count: int, ranges: Ranges = ()) -> None:
        """Start so many more; they run these items first."""

    def wait(self, seconds: float | None) -> list[Outcome]:
        """Wait until one has ended, or so long."""

    def kill(self, pid: int) -> None:
        """Kill a process."""

    def close(self) -> None:
        """End those that still run, whatever it takes, and let everything go."""
