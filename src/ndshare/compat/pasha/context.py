"""pasha's contexts on those of ndshare.

::

    SerialContext    ndshare.SerialContext       this thread
    ThreadContext    ndshare.ThreadContext       threads of this process
    ProcessContext   ndshare.ProcessContext      workers that see the state at the time of map (start="auto")
    MapContext       base of contexts of others: alloc, and the loop of one worker; they define map
    PoolContext      base of contexts of others that have a pool like multiprocessing.Pool

Guarantees
----------
- Arrays from `alloc` of any context are shared with the workers of every other.
- What a kernel writes to another captured array stays in its worker: `ndshare.SilentWriteWarning` says so.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

import ndshare
from ndshare.compat import preloads
from ndshare.compat.pasha._base import MapContext, NativeContext
from ndshare.compat.pasha.functor import Functor

__all__ = ["MapContext", "PoolContext", "ProcessContext", "SerialContext", "ThreadContext"]


class SerialContext(NativeContext):
    """One worker, which is the calling thread. All arguments are ignored."""

    def __init__(self, *_ignored: Any, **_options: Any) -> None:
        super().__init__(num_workers=1)

    def _make(self) -> ndshare.MapContext:
        return ndshare.SerialContext()


class PoolContext(MapContext):
    """Base of contexts with a pool like `multiprocessing.Pool`.

    Parameters
    ----------
    num_workers : int, optional
        By default the smaller of the CPU affinity and the container's CPU quota, at least 1.
    """

    function: Any

    def __init__(self, num_workers: int | None = None) -> None:
        super().__init__(ndshare.ThreadContext(num_workers).num_workers)

    @cached_property
    def id_queue(self) -> Any:
        """Numbers for workers that begin."""
        return queue.SimpleQueue()

    def map(self, function: Callable[..., object], functor: Any, pool_cls: Any) -> Any:  # type: ignore[override]
        """Call ``run_worker(share)`` in a pool whose workers begin with ``init_worker(functor)``."""
        self.function = function
        functor = Functor.try_wrap(functor)
        for worker_id in range(self.num_workers):
            self.id_queue.put(worker_id)
        worker: Any = self
        with pool_cls(self.num_workers, worker.init_worker, (functor,)) as pool:
            pool.map(worker.run_worker, functor.split(self.num_workers))


class _NativePoolContext(NativeContext, PoolContext):  # type: ignore[misc]
    """What threads and processes have in common: subclasses may define `init_worker` and `run_worker`."""

    @cached_property
    def _entering(self) -> Any:
        return threading.Lock()

    def _share_kernel(self, function: Any, functor: Any) -> Callable[..., None]:
        def run_share(worker_id: int, _: int, share: Any) -> None:
            self.function = function
            with self._entering:  # so that a worker gets its own number
                self.id_queue.put(worker_id)
                worker.init_worker(functor)
            worker.run_worker(share)

        worker: Any = self
        return run_share


class ThreadContext(_NativePoolContext):
    """Threads of this process."""

    @cached_property
    def worker_storage(self) -> Any:
        """What each thread has to itself."""
        return threading.local()

    def _make(self) -> ndshare.MapContext:
        return ndshare.ThreadContext(self.num_workers)

    def init_worker(self, functor: Any) -> None:
        """Begin a worker, in its thread."""
        self.worker_storage.worker_id = self.id_queue.get()
        self.worker_storage.functor = functor

    def run_worker(self, share: Any) -> None:  # type: ignore[override]
        """Run a share, in a thread that `init_worker` has begun."""
        mine = self.worker_storage
        MapContext.run_worker(self.function, mine.functor, share, mine.worker_id)


class ProcessContext(_NativePoolContext):
    """Processes that see the state of the program as it is when `map` is called.

    Notes
    -----
    Forked for the map while no thread but ndshare's runs; otherwise warm ones, to which the kernel is sent.
    These also do maps whose kernel uses nothing but arrays, numbers and functions of the script.
    """

    _instance: ClassVar[Self | None] = None

    def _make(self) -> ndshare.MapContext:
        return ndshare.ProcessContext(self.num_workers, start="auto", preload=preloads())

    @staticmethod
    def _alloc(shape: tuple[int, ...], dtype: Any, order: Any, fill: Any) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = ndshare.alloc(shape, dtype, order=order, fill=fill)
        return array

    def init_worker(self, functor: Any) -> None:
        """Begin a worker, in its process."""
        type(self)._instance = self
        self.worker_id = self.id_queue.get()
        self.functor = functor

    @classmethod
    def run_worker(cls, share: Any) -> None:
        """Run a share, in a process that `init_worker` has begun."""
        me: Any = cls._instance
        MapContext.run_worker(me.function, me.functor, share, me.worker_id)
