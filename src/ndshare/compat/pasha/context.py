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
from typing import Any, ClassVar, Literal, Self

import numpy as np

import ndshare
from ndshare._map import drop_result, resolved_layout
from ndshare.compat.pasha.functor import Functor

__all__ = ["MapContext", "PoolContext", "ProcessContext", "SerialContext", "ThreadContext"]

Start = Literal["auto", "fork", "pool"]

_OURS = __name__.rpartition(".")[0]


class MapContext:
    """Base of contexts: subclasses define `map`, and call `run_worker` for each share.

    Parameters
    ----------
    num_workers : int
        How many workers there are; the rows of an array with ``per_worker=True``.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    @staticmethod
    def _resolve_alloc(shape: Any, dtype: Any, order: Any, like: Any) -> tuple[Any, Any, Any]:
        """Return shape, dtype and order; what is given wins over `like`, and that over float64 and "C"."""
        if shape is None and like is None:
            raise ValueError("array shape must be specified, or an array that the new one is to be like")
        return resolved_layout(shape, dtype, order, like, objects=True)

    @staticmethod
    def _alloc(shape: tuple[int, ...], dtype: Any, order: Any, fill: Any) -> np.ndarray[Any, Any]:
        """Make the array of `alloc`; for subclasses with memory of their own."""
        # Objects cannot be shared with processes, but with threads.
        make: Any = np.zeros if np.dtype(dtype).hasobject else ndshare.zeros
        array: np.ndarray[Any, Any] = make(shape, dtype, order)
        if fill is not None:
            array[...] = fill
        return array

    def alloc(
        self,
        shape: Any = None,
        dtype: Any = None,
        *,
        order: Any = None,
        fill: Any = None,
        like: Any = None,
        per_worker: bool = False,
    ) -> Any:
        """Make an array that all workers can write to.

        Parameters
        ----------
        shape : int or iterable of int, optional
            Its shape; by default that of `like`.
        dtype : dtype-like, optional
            By default that of `like`, or float64.
        order : {"C", "F"}, optional
            By default that of `like`, or "C".
        fill : scalar or array_like, optional
            What it is filled with; by default zeros.
        like : array_like, optional
            Where shape, dtype and order are taken from as far as they are not given.
        per_worker : bool, optional
            Add an axis with one entry per worker: the first for order "C", the last for "F".

        Returns
        -------
        numpy.ndarray
        """
        shape, dtype, order = self._resolve_alloc(shape, dtype, order, like)
        if per_worker:
            shape = (self.num_workers, *shape) if order == "C" else (*shape, self.num_workers)
        return self._alloc(shape, dtype, order, fill)

    def map(self, function: Callable[..., object], functor: Any) -> Any:
        """Call ``function(worker_id, *entry)`` for every entry of a collection.

        Parameters
        ----------
        function : callable
            The kernel; what it returns is dropped.
        functor : Functor or collection
            What to map over.
        **options
            In the contexts of this module, those of `ndshare.MapContext.map`: `progress`, `timeout`, ...

        Returns
        -------
        None or ndshare.MapReport
            The report if there are options.
        """
        raise NotImplementedError("map")

    @staticmethod
    def run_worker(*args: Any) -> None:
        """Call the kernel for every entry of a share: ``run_worker(function, functor, share, worker_id)``."""
        function, functor, share, worker_id = args
        for entry in functor.iterate(share):
            drop_result(function(worker_id, *entry))


class NativeContext(MapContext):
    """A context whose maps are those of a context of ndshare."""

    _native: tuple[int, ndshare.MapContext] | None = None

    def _make(self) -> ndshare.MapContext:
        raise NotImplementedError

    def _share_kernel(self, function: Any, functor: Any) -> Callable[..., None]:
        """Return a kernel for shares: the loop is that of a subclass."""
        return lambda worker_id, _, share: self.run_worker(function, functor, share, worker_id)

    def __getstate__(self) -> dict[str, Any]:
        left = ("_native", "_entering", "id_queue", "worker_storage")
        return {name: value for name, value in vars(self).items() if name not in left}

    def map(self, function: Callable[..., object], functor: Any, **options: Any) -> Any:
        """See `MapContext.map`."""
        functor = Functor.try_wrap(functor)
        if self._native is None or self._native[0] != self.num_workers:
            self._native = self.num_workers, self._make()
        kind: Any = type(self)
        loop, begin = kind.run_worker, getattr(kind, "init_worker", kind.run_worker)
        if not (loop.__module__.startswith(_OURS) and begin.__module__.startswith(_OURS)):
            function, functor = self._share_kernel(function, functor), list(functor.split(self.num_workers))
        report = self._native[1].map(function, functor, **options)
        return report if options else None


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

    Parameters
    ----------
    num_workers : int, optional
        By default the smaller of the CPU affinity and the container's CPU quota, at least 1.
    start : {"auto", "fork", "pool"}, optional
        As of `ndshare.ProcessContext`.

    Notes
    -----
    Forked for the map unless a thread runs that may hold a lock; those that wait for something to do, as
    beside a notebook, a progress bar or a queue, hold none. Otherwise warm ones, to which the kernel is
    sent; files of h5py are opened there by name, read-only. These also do maps whose kernel uses nothing but
    arrays, numbers and functions of the script.
    """

    _instance: ClassVar[Self | None] = None
    _start: Start = "auto"

    def __init__(self, num_workers: int | None = None, *, start: Start = "auto") -> None:
        super().__init__(num_workers)
        self._start = start
        self._make()  # which refuses another start

    def _make(self) -> ndshare.MapContext:
        return ndshare.ProcessContext(self.num_workers, start=self._start)

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
