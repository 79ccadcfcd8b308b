"""`ProcessContext`: maps run in warm workers, or in processes forked for each map.

::

    map ──► asked to fork, or only a fork shows all of the program's state ──► forked workers
        ──► else workers of the pool ──► what cannot be sent to them ──► forked workers, if that is safe
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from ndshare import _arrays
from ndshare._map.contexts.base import MapContext
from ndshare._map.job import Job
from ndshare._map.watch import captured
from ndshare._map.watch.own_state import brings_its_state
from ndshare._map.workers.base import MapWorkers
from ndshare._map.workers.forked import Forked
from ndshare._map.workers.pooled import PoolWorkers
from ndshare._pickling import register_reducer
from ndshare._pool import Environment, Pool, ProcessPoolExecutor
from ndshare._system import Board, default_workers, fork_hazards, keep_spare, spare_size, take_spare
from ndshare.errors import CapacityError
from ndshare.functors import files

_LISTED_MOST = 4


def _have_files_reopened() -> None:
    import h5py

    for kind in (h5py.File, h5py.Group, h5py.Dataset):
        register_reducer(kind, files.reduce_hdf5)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED_MOST} more" if len(names) > _LISTED_MOST else ""
    return ", ".join(names[:_LISTED_MOST]) + more


class ProcessContext(MapContext):
    """Maps run in warm worker processes, or in processes forked for each map.

    Page: docs/map.md.

    Parameters
    ----------
    num_workers : int, optional
        By default the smaller of the CPU affinity and the container's CPU quota, at least 1.
    start : {"pool", "fork", "auto"}, optional
        Where the workers come from. Workers of the pool are forked from a clean process and sent the kernel;
        forked ones have everything that the caller has, at the price of a fork per map. With "auto" all
        kernels see the state of the program at the time of the map where a fork is safe: workers are
        forked if no threads but ndshare's run, unless those of the pool would see the same. Where threads run
        that a library started and a child would wait for, "fork" is refused when a map begins.
    threads_per_worker, env, preload
        As of `ndshare.ProcessPoolExecutor`.
    """

    can_kill = True

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        start: Literal["pool", "fork", "auto"] = "pool",
        threads_per_worker: int | None = None,
        env: Environment = None,
        preload: Sequence[str] = (),
    ) -> None:
        super().__init__(default_workers() if num_workers is None else num_workers)
        if start not in ("pool", "fork", "auto"):
            raise ValueError(f"start must be 'pool', 'fork' or 'auto', got {start!r}")
        self.start = start
        self._options: dict[str, Any] = {
            "threads_per_worker": threads_per_worker,
            "env": env,
            "preload": preload,
        }
        self._executor: ProcessPoolExecutor | None = None
        self._lock = os.getpid(), threading.Lock()

    def make_board(self, items: int, kept: int = 0) -> Board:
        """See `MapContext`."""
        nbytes = Board.nbytes(self.num_workers, items, kept)
        memory = take_spare(nbytes)
        if memory is None:
            memory = _arrays.empty(spare_size(nbytes), np.uint8)
        memory[:nbytes] = 0
        return Board(memory[:nbytes], self.num_workers, items, kept)

    def drop_board(self, board: Board) -> None:
        """See `MapContext`."""
        keep_spare(board.memory.base)

    def make_workers(self, job: Job, _tell: Callable[[], None]) -> tuple[MapWorkers, str]:
        """See `MapContext`."""
        if self._is_to_fork(job):
            return self._forked(job), ""
        workers = PoolWorkers(job, self.pool())
        files.reopened.clear()
        if "h5py" in sys.modules:
            _have_files_reopened()
        try:
            workers.pack()
        except (CapacityError, KeyboardInterrupt):
            raise
        except Exception as error:
            reason = captured.unsendable(job.kernel, job.functor, error)
            if hazards := fork_hazards(parked=False):
                remedy = "map before they are started"
                if not fork_hazards(native_only=True):
                    remedy = 'ask for ProcessContext(start="fork") if threads of Python hold no locks'
                raise TypeError(
                    f"{reason}; workers cannot be forked for this map either, because other threads run in "
                    f"this process: {_listed(hazards)}. Open it inside the kernel, pass what is needed of "
                    f"it, or {remedy}"
                ) from error
            return self._forked(job), reason
        names = ", ".join(dict.fromkeys(map(repr, files.reopened)))
        return workers, f"{names} opened by name, read-only, in each worker" if names else ""

    def _is_to_fork(self, job: Job) -> bool:
        if self.start == "auto":
            return not brings_its_state(job.kernel, job.functor) and not fork_hazards()
        if self.start == "fork" and (hazards := fork_hazards(native_only=True)):
            raise RuntimeError(
                "map: workers cannot be forked, because libraries have threads in this process that a child "
                f"would wait for without end: {_listed(hazards)}. Map before they are started, or in warm "
                'workers, which are sent what the kernel uses: ProcessContext(start="pool")'
            )
        return self.start == "fork"

    def _forked(self, job: Job) -> MapWorkers:
        threads = self._options["threads_per_worker"] or max(1, default_workers() // self.num_workers)
        return Forked(job, threads)

    def _own_lock(self) -> threading.Lock:
        """Return the lock of this process: one that is inherited by a fork may be held for ever."""
        if self._lock[0] != os.getpid():
            self._lock = os.getpid(), threading.Lock()
        return self._lock[1]

    def pool(self) -> Pool:
        """Return the pool that its workers belong to."""
        with self._own_lock():
            if self._executor is None or not self._executor.usable:
                self._executor = ProcessPoolExecutor(self.num_workers, **self._options)
            return self._executor._pool
