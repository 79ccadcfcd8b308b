"""Time limits of tasks, and who ends those that run: never the next one, whatever the moment.

::

    dispatch ──► arm ── timer ──► look ── late? claimed for death on the board ──► SIGKILL
                                                                                     │
    future  ◄── TaskTimeoutError ◄── verdict ◄────────── report of the death ◄───────┘

When a task began stands on the board. The worker and who kills it agree there by compare-and-swap
(`ndshare._processes.frames`): either the task has an answer, or it is the worker's last one.

Guarantees
----------
- A task is ended no sooner than its limit after it began, whether or not anybody waits for it.
- It fails with what it was ended for; what the worker was sent beside it runs elsewhere.
- Nothing is looked at, and no timer runs, while no task with a limit is with a worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from ndshare._pool.tasks import Task
from ndshare._processes import Crew, Worker
from ndshare.errors import TaskKilledError, TaskTimeoutError

#: Limits may be far off: the longest time between two looks.
_LOOK_MOST_S = 3600.0


class Verdict(NamedTuple):
    """What a task was ended for."""

    task: Task
    error: Callable[[int], BaseException]  # of the worker's process number
    final: bool = False  # it is not tried again


class Limits:
    """Ends tasks of one pool, under the hub's lock.

    Parameters
    ----------
    crew : Crew
        Whose workers they are.
    workers : collection of Worker
        Those of the pool, as of now.
    """

    def __init__(self, crew: Crew, workers: Collection[Worker]) -> None:
        self._hub = crew.hub
        self._workers = workers
        self._due = math.inf  # when the next look is
        self._verdicts: dict[Worker, Verdict] = {}
        self.timed = False  # some task had a limit

    def arm(self, worker: Worker) -> None:
        """Have the tasks watched that a worker was just sent (under the hub's lock)."""
        limits = [task.limit for task in worker.inflight.values() if task.limit is not None]
        if limits:
            self._look_at(time.monotonic() + min(limits))

    def _look_at(self, due: float) -> None:
        if due < self._due:
            self._due = due
            self._hub.later(min(due - time.monotonic(), _LOOK_MOST_S), self._look)

    def _look(self) -> None:
        """End what has run for too long; in the I/O thread."""
        with self._hub.lock:
            self._due = due = math.inf
            now = time.monotonic()
            for worker in self._workers:
                for seq, task in worker.inflight.items():
                    if task.limit is None or worker in self._verdicts:
                        continue
                    began = worker.began(seq)
                    end = task.limit + (now if began is None else began)
                    if end > now:
                        due = min(due, end)
                    else:  # unless it has its answer
                        self._end(worker, seq, Verdict(task, _too_late(task)))
            if due < math.inf:
                self._look_at(due)

    def kill(self, task: Task) -> bool:
        """End a task that runs, for its user; False if none has begun it, or it has its answer."""
        with self._hub.lock:
            worker, seq = task.worker, task.seq
            if worker is None or worker.inflight.get(seq) is not task:
                return False
            name = task.describe()
            return self._end(worker, seq, Verdict(task, lambda pid: TaskKilledError(name, pid), final=True))

    def end(self, worker: Worker, seq: int, task: Task, error: Callable[[int], BaseException]) -> None:
        """End a task, unless it has its answer, by an error of the worker's number (under the lock)."""
        self._end(worker, seq, Verdict(task, error))

    def _end(self, worker: Worker, seq: int, verdict: Verdict) -> bool:
        ended = worker.kill(seq)
        if ended:
            self._verdicts[worker] = verdict
        return ended

    def verdict(self, worker: Worker) -> Verdict | None:
        """Return what the last task of a worker that has died was ended for, if it was (under the lock)."""
        return self._verdicts.pop(worker, None)


def _too_late(task: Task) -> Callable[[int], BaseException]:
    return lambda pid: TaskTimeoutError(task.describe(), task.limit or 0.0, pid, task.attempts)
