"""Workers of an engine's process that run a share which came from another machine."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Any

from ndshare._map import Job, Outcome, PoolWorkers, Ranges, Traffic
from ndshare._node.shares import ShareTask
from ndshare._node.worker import run_part
from ndshare._pool import Pool
from ndshare._transport import Draft, pack

#: How often a share looks whether its map was given up.
_LOOK_S = 0.25


def never(*_entry: object) -> None:
    """Stands for the kernel, which only workers unpickle."""
    raise NotImplementedError


class MapStoppedError(Exception):
    """The caller has given the map or the workspace up."""


class ShareWorkers(PoolWorkers):
    """Workers of this process's pool that open crates instead of unpickling a job."""

    def __init__(
        self, job: Job, pool: Pool, task: ShareTask, crates: list[Any], stopped: Container[str]
    ) -> None:
        super().__init__(job, pool)
        self._task = task
        self._crates = crates
        self._stopped = stopped

    def wait(self, seconds: float | None) -> list[Outcome]:
        """See `PoolWorkers`; now and then looks whether the caller still wants the map."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
            outcomes = super().wait(max(left, 0.0))
            if self._task.map_id in self._stopped:
                raise MapStoppedError(f"map {self._task.map_id} was given up by its caller")
            if outcomes or (deadline is not None and time.monotonic() >= deadline):
                return outcomes

    def message(self, ranges: Ranges) -> tuple[Draft, frozenset[str]]:
        """See `PoolWorkers`."""
        task = self._task
        arguments = self.job.board, task.options, task.start, task.end, ranges, self._crates
        return pack((run_part, arguments, {})), frozenset()

    def account(self) -> dict[str, Traffic]:
        """Nothing: the caller does that."""
        return {}
