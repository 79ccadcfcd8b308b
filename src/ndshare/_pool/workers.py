"""The workers of an executor as its user sees them.

::

    executor.workers()  ── WorkerStatus    what each runs, and since when
    executor._processes ── WorkerProcess   as of `multiprocessing`, for programs that look there
    executor._executor_manager_thread ── Ending
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable

from ndshare._pool.memory import own_memory
from ndshare._pool.pool import Pool
from ndshare._pool.tasks import describe
from ndshare._processes import Worker
from ndshare._system import process_memory

#: Between two looks at a worker that is waited for.
_LOOK_S = 0.002


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker of an executor is at.

    Attributes
    ----------
    pid : int
        Its process number; 0 while it starts.
    running : str or None
        Name of what it runs; None if it is idle.
    since : float or None
        When it began that, in seconds as of `time.time`.
    waiting : int
        Tasks that it was sent and has not begun.
    done : int
        Tasks that it has done for this executor.
    own_bytes : int
        Memory that it has of its own now, shared arrays not counted: what `memory_limit` is about.
    peak_bytes : int
        The most memory that was resident in it, shared arrays included; 0 if that is not known.
    """

    pid: int
    running: str | None
    since: float | None
    waiting: int
    done: int = 0
    own_bytes: int = 0
    peak_bytes: int = 0

    @property
    def state(self) -> str:
        """What it does: "starting", "running" or "idle"."""
        return "starting" if not self.pid else "idle" if self.running is None else "running"


def statuses(pool: Pool) -> list[WorkerStatus]:
    """Return what each worker of a pool is at."""
    if pool.hub.pid != os.getpid():
        return []
    with pool.hub.lock:
        return [_status(worker) for worker in pool.workers]


def _status(worker: Worker) -> WorkerStatus:
    for seq, task in worker.inflight.items():  # it takes them in their order
        if (began := worker.began(seq)) is not None:
            since = time.time() - (time.monotonic() - began)
            name = describe(task.function)
            return WorkerStatus(worker.pid, name, since, len(worker.inflight) - 1, *_figures(worker))
    return WorkerStatus(worker.pid, None, None, len(worker.inflight), *_figures(worker))


def _figures(worker: Worker) -> tuple[int, int, int]:
    done = max(0, worker.sent - len(worker.inflight))
    return done, own_memory(worker), process_memory(worker.pid).peak if worker.pid else 0


class WorkerProcess:
    """A worker with the interface of `multiprocessing.Process`.

    It has ended for its executor when the executor has: its process may work on for another one.
    """

    def __init__(self, pool: Pool, worker: Worker) -> None:
        self._pool = pool
        self._worker = worker
        self.pid = worker.pid
        self.name = f"NdshareWorker-{worker.id}"
        self.daemon = True

    def is_alive(self) -> bool:
        """Whether it works for this executor."""
        return self._worker in self._pool.workers

    @property
    def exitcode(self) -> int | None:
        """None while it is alive; negative: the signal that has ended it."""
        if self.is_alive():
            return None
        code = self._worker.exitcode
        return 0 if code is None else code

    def terminate(self) -> None:
        """Send SIGTERM: what it runs fails."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL: what it runs fails."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._pool.hub.lock:
            if self.is_alive():
                self._worker.signal(number)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended; at most for `timeout` seconds."""
        _wait(lambda: not self.is_alive(), timeout)

    def __repr__(self) -> str:
        state = "started" if self.exitcode is None else f"stopped exitcode={self.exitcode}"
        return f"<WorkerProcess name={self.name!r} pid={self.pid} {state}>"


class Ending:
    """Stands for the thread and the queue of the standard executor, as programs wait for them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def is_alive(self) -> bool:
        """Whether the executor has something to do, or may get it."""
        return not self._pool.over

    def join(self, timeout: float | None = None) -> None:
        """Wait until it was shut down and its last task is done."""
        _wait(lambda: self._pool.over, timeout)

    join_thread = join


def _wait(finished: Callable[[], bool], timeout: float | None) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    while not finished() and (deadline is None or time.monotonic() < deadline):
        time.sleep(_LOOK_S)


def processes(pool: Pool) -> dict[int, WorkerProcess]:
    """Return the workers of a pool by process number; waits for those that are just starting."""
    while True:
        with pool.hub.lock:
            workers = list(pool.workers) if pool.hub.pid == os.getpid() else []
            if all(worker.pid for worker in workers):
                return {worker.pid: _handle(pool, worker) for worker in workers}
        time.sleep(_LOOK_S)


def _handle(pool: Pool, worker: Worker) -> WorkerProcess:
    """Return the handle of a worker: the same one for as long as somebody has it (under the hub's lock)."""
    handle = pool.handles.get(worker)
    if handle is None:
        handle = pool.handles[worker] = WorkerProcess(pool, worker)
    return handle
