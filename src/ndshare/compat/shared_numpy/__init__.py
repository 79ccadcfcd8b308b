"""shared_numpy 1.1.1 on ndshare: arrays in shared memory, and a queue that hands them to other processes.

::

    a = snp.array(...)      an array of ndshare, with `close` and `unlink`
    q.put(a)                ndshare.Queue: one descriptor, no copy
    connection.send(a)      by reference, too, and as an argument of a Process

A program says ``from ndshare.compat import shared_numpy as snp`` instead of ``import shared_numpy as snp``.

Guarantees
----------
- The memory is freed when nobody has the array any more, whoever calls `close` or `unlink`, and whoever dies.
- An array can be read and written after `close` and `unlink`, until it is let go.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import numpy.typing as npt

import ndshare
from ndshare.compat.shared_numpy import shared_memory
from ndshare.compat.shared_numpy.shared_memory import ShareableList, SharedMemory

__version__ = "1.1.1"

#: Arrays of this module go through it by reference, all else by value.
Queue = ndshare.Queue

__all__ = [
    "Queue",
    "ShareableList",
    "SharedMemory",
    "SharedNDArray",
    "array",
    "from_array",
    "ndarray",
    "shared_memory",
]


class _Memory:
    """What ``array.shm`` is: the names of a `SharedMemory`; the array itself keeps the memory."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.name = f"snp_{secrets.token_hex(4)}"
        self.size = array.nbytes
        self.closed = False
        self._unlinked = False

    def close(self) -> None:
        """Say that this process is done with it. Calling it again does nothing."""
        self.closed = True

    def unlink(self) -> None:
        """Say that nobody wants it any more.

        Raises
        ------
        FileNotFoundError
            If that was said here before.
        """
        if self._unlinked:
            raise FileNotFoundError(2, "unlinked already in this process", self.name)
        self._unlinked = True


class SharedNDArray(np.ndarray[Any, Any]):
    """An array in shared memory; slices of it and results like ``a + 1`` are of this class, too."""

    _shm: Any = None
    _carrier: Any = None

    def __array_finalize__(self, obj: Any) -> None:
        # A view has the memory of its array. What a function has made has memory of its own.
        if isinstance(obj, SharedNDArray) and self.base is not None and np.may_share_memory(self, obj):
            self._shm = obj.shm

    @property
    def shm(self) -> Any:
        """The memory: `name`, `size`, `close`, `unlink`."""
        if self._shm is None:
            self._shm = _Memory(self)
        return self._shm

    def set_shm(self, shm: Any) -> None:
        """Say what `shm` is."""
        self._shm = shm

    def close(self) -> None:
        """Say that this process is done with it; what the array holds can be read until it is let go."""
        self.shm.close()

    def unlink(self) -> None:
        """Say that nobody wants it any more; once per process."""
        self.shm.unlink()


def _shared(make: Callable[[], npt.NDArray[Any]], what: str) -> SharedNDArray:
    with ndshare.shared_memory():
        made = make()
    if made.dtype.hasobject:
        raise TypeError(f"{what}: Python objects cannot be shared (dtype {made.dtype}); convert them first")
    if not ndshare.is_shared(made):  # it existed before
        made = ndshare.share(made)
    return np.ndarray.view(made, SharedNDArray)


def array(obj: Any, *args: Any, **kwargs: Any) -> SharedNDArray:
    """Make an array in shared memory; arguments are those of `numpy.array`."""
    return _shared(lambda: np.array(obj, *args, **kwargs), "array")


def ndarray(shape: Any, *args: Any, **kwargs: Any) -> SharedNDArray:
    """Make an array in shared memory that is not initialized; arguments are those of `numpy.ndarray`."""
    return _shared(lambda: np.ndarray(shape, *args, **kwargs), "ndarray")


def from_array(arr: Any) -> SharedNDArray:
    """Copy an array, or what can be made one, to shared memory; F order is kept."""
    return _shared(lambda: np.array(arr, order="K", copy=True), "from_array")


def _take(queue: ndshare.Queue) -> Any:
    try:
        return queue.get()
    finally:
        queue.close()


def _reduce(array: SharedNDArray) -> Any:
    """For what multiprocessing sends: through a queue of its own."""
    array._carrier = queue = ndshare.Queue()  # open until the child has been started
    queue.put(array)
    return _take, (queue,)


ForkingPickler.register(SharedNDArray, _reduce)
