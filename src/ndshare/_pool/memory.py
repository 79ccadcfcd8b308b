"""Memory limits of workers: the task that takes too much is ended, and what tasks leave goes with the worker.

::

    dispatch ──► arm ── timer ──► look ── /proc, ledger ──► over the limit? ended as for a time limit
    answer   ──► has the worker nothing left to do? ── /proc, ledger ──► swollen? replaced, and logged

A worker's own memory is what is in it and nowhere else: anonymous pages, and segments that it has made and
has arrays in (NumPy's large arrays lie there). Shared arrays of more than 1 MiB that it has made, arrays of
the caller and of other workers, results that were handed over and memory kept for reuse are none of it.

Guarantees
----------
- No task is ended for shared arrays, however large and whoever has written to them.
- Nothing is read, and no timer runs, while no worker of an executor with a limit has something to do.

Not guaranteed: that a task is ended before it has taken more than the limit; it is looked at every 25 ms.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from ndshare._memory import ledger_held
from ndshare._pool.limits import Limits
from ndshare._processes import Crew, Worker
from ndshare._system import process_memory, unshared_memory
from ndshare.errors import WorkerMemoryError, readable_size

#: Between two looks: at 2 GB/s, what fresh pages allow, a task takes 50 MB in that time.
_PERIOD_S = 25e-3
#: Looks take no larger part of the time than this: those that walk page tables may be slow.
_PART = 1 / 20
#: A worker is replaced when tasks have left so much of the limit behind.
_LEFT_MOST = 1 / 2
_LOGGER = logging.getLogger("ndshare")


def own_memory(worker: Worker, *, exact: bool = False) -> int:
    """Return the bytes that are a worker's own; 0 if it is not there.

    Pages that it has from the process it was forked from are counted in full, unless it is to be `exact`.
    """
    pid = worker.pid
    if not pid:
        return 0
    ordinary = unshared_memory(pid) if exact else process_memory(pid).anonymous
    return ordinary + ledger_held(worker.ledger_slot) if ordinary else 0


class MemoryWatch:
    """Watches the workers of one pool.

    Parameters
    ----------
    crew : Crew
        Whose workers they are.
    workers : collection of Worker
        Those of the pool, as of now.
    limits : Limits
        Who ends tasks.
    most : int
        Bytes that each worker may have.
    """

    def __init__(self, crew: Crew, workers: Collection[Worker], limits: Limits, most: int) -> None:
        self._hub = crew.hub
        self._workers = workers
        self._limits = limits
        self._most = most
        self._armed = False
        self._began: dict[Worker, int] = {}  # what it had when it began to work

    def arm(self) -> None:
        """Look from now on, as long as somebody has something to do (under the hub's lock)."""
        if not self._armed:
            self._armed = True
            self._hub.later(_PERIOD_S, self._look)

    def _look(self) -> None:
        began = time.monotonic()
        with self._hub.lock:
            busy = [worker for worker in self._workers if worker.inflight]
            self._armed = False
        for worker in busy:
            if self._used(worker) >= self._most:
                self._end(worker)
        if busy:
            with self._hub.lock:
                if not self._armed:
                    self._armed = True
                    pause = max(_PERIOD_S, (time.monotonic() - began) / _PART)
                    self._hub.later(pause, self._look)

    def _used(self, worker: Worker) -> int:
        """Return what a worker has of its own; looked at closely only if it seems to be too much."""
        used = own_memory(worker)
        return own_memory(worker, exact=True) if used >= self._most else used

    def _end(self, worker: Worker) -> None:
        with self._hub.lock:
            if worker not in self._workers:
                return
            seq, task = next(
                ((seq, task) for seq, task in worker.inflight.items() if worker.began(seq) is not None),
                (0, None),
            )
            if task is None:
                return
            used = self._used(worker)  # again: it may be at another task by now
            if used < self._most:
                return
            name, most = task.describe(), self._most
            self._limits.end(
                worker, seq, task, lambda pid: WorkerMemoryError(name, used, most, pid, task.attempts)
            )

    def note_start(self, worker: Worker) -> None:
        """Note what a worker has before its first task (under the hub's lock)."""
        self._began[worker] = own_memory(worker)

    def is_swollen(self, worker: Worker) -> bool:
        """Whether tasks have left so much in a worker that has nothing to do that it is to be replaced."""
        began = self._began.get(worker, 0)
        allowed = began + (self._most - began) * _LEFT_MOST
        left = own_memory(worker)
        if left < max(allowed, began) or (left := own_memory(worker, exact=True)) < allowed:
            return False
        _LOGGER.warning(
            "worker %d is replaced: its tasks have left %s in it, of the %s that memory_limit allows; look "
            "for caches, globals and lists that grow",
            worker.pid,
            readable_size(left - began),
            readable_size(self._most),
        )
        return True

    def forget(self, worker: Worker) -> None:
        """Let go of a worker that has gone (under the hub's lock)."""
        self._began.pop(worker, None)
