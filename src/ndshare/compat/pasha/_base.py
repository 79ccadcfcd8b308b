"""`MapContext`, the base of contexts, and `NativeContext`, of those whose maps ndshare runs."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

import ndshare
from ndshare._map import drop_result
from ndshare.compat.pasha.functor import Functor

__all__ = ["MapContext", "NativeContext"]

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
        flags = getattr(like, "flags", None)
        only_f = flags is not None and flags.f_contiguous and not flags.c_contiguous
        shape = like.shape if shape is None else shape
        dtype = getattr(like, "dtype", np.float64) if dtype is None else dtype
        order = ("F" if only_f else "C") if order is None else order
        return (shape,) if isinstance(shape, Integral) else tuple(shape), dtype, order

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
