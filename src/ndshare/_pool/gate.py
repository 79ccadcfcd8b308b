"""A bounded backlog: who submits waits outside while so many tasks are not finished."""

from __future__ import annotations

import queue
import threading

from ndshare._pool.pool import Pool
from ndshare._pool.tasks import Task
from ndshare._system import _wire


class Gate:
    """Lets tasks into a pool.

    Parameters
    ----------
    pool : Pool
        Where they go.
    most : int
        So many may be unfinished.
    waits : bool
        Whether who comes when it is full waits, or is refused.
    """

    def __init__(self, pool: Pool, most: int, *, waits: bool) -> None:
        self.most = most
        self._pool = pool
        self._waits = waits
        self._entering = 0  # those that have been let in and are not on the pool's books
        self._condition = threading.Condition()
        pool.on_finished = self._look

    def submit(self, task: Task, *, waits: bool | None = None) -> None:
        """Submit a task when there is room.

        Raises
        ------
        queue.Full
            If there is none, and nobody is to wait.
        """
        _wire.shield()
        try:
            while not self._enter():
                if not (self._waits if waits is None else waits):
                    raise queue.Full(
                        f"{task.describe()} was refused: {self._pool.pending} tasks are not finished, and "
                        f"max_pending is {self.most}; wait for some of them, or let submit wait (when_full)"
                    )
                self._pool.wait_for(self, self._condition, None)
            try:
                self._pool.submit(task)
            finally:
                with self._pool.hub.lock:
                    self._entering -= 1
        finally:
            _wire.unshield()

    def _enter(self) -> bool:
        with self._pool.hub.lock:
            if not self.done():
                return False
            self._entering += 1
            return True

    def done(self) -> bool:
        """Whether there is room; or nothing to wait for, as the pool is closed."""
        return self._pool.closed or self._pool.pending + self._entering < self.most

    def _look(self) -> None:
        """Have those that wait look whether there is room."""
        with self._condition:
            self._condition.notify_all()
