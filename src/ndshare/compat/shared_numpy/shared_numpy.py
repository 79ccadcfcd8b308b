"""Arrays in shared memory that have `close` and `unlink`."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

import ndshare
from ndshare._memory import idle_bytes, sparse

__all__ = ["SharedNDArray", "array", "from_array", "ndarray"]

#: Smaller arrays have pages from the beginning.
_SPARSE_LEAST = 1 << 20


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


def ndarray(shape: Any, dtype: Any = float, *args: Any, **kwargs: Any) -> SharedNDArray:
    """Make an array in shared memory that is not initialized; arguments are those of `numpy.ndarray`.

    Of a large one the parts that are written to take memory.
    """
    dtype, order = np.dtype(dtype), kwargs.get("order") or "C"
    extent = tuple(map(operator.index, shape)) if isinstance(shape, Iterable) else (operator.index(shape),)
    nbytes = math.prod(extent) * dtype.itemsize
    plain = not (args or kwargs.keys() - {"order"} or dtype.hasobject or dtype.subdtype)
    if not plain or order not in ("C", "F") or nbytes < _SPARSE_LEAST or idle_bytes() >= nbytes:
        return _shared(lambda: np.ndarray(shape, dtype, *args, **kwargs), "ndarray")
    block = sparse(nbytes, filled=True)
    made = block.array(dtype, extent[::-1] if order == "F" else extent, None, 0)
    block.release()
    return np.ndarray.view(made.T if order == "F" else made, SharedNDArray)


def from_array(arr: Any) -> SharedNDArray:
    """Copy an array, or what can be made one, to shared memory; F order is kept."""
    return _shared(lambda: np.array(arr, order="K", copy=True), "from_array")
