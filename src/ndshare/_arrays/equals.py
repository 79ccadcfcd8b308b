"""The shared equal of an array, writable or read-only for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ndshare._arrays.creation import array
from ndshare._arrays.making import checked
from ndshare._memory import SEALED, SHARED, block_of, seal

if TYPE_CHECKING:
    from numpy.typing import NDArray


def share_array(a: NDArray[Any], mode: Literal["rw", "r"] = "rw") -> NDArray[Any]:
    """Return the shared equal of an array; the array itself if it is that already.

    Parameters
    ----------
    a : numpy.ndarray
        Any array without Python objects.
    mode : {"rw", "r"}
        With "r" the result is read-only for every process, the maker included, and the kernel enforces it. A
        writable shared array is copied for it.

    Raises
    ------
    TypeError
        For object dtypes, or if `a` is no array.
    CapacityError
        If the memory cannot be had.

    Notes
    -----
    One copy. Read-only memory is never recycled: it costs fresh pages each time, and one file descriptor per
    array while it lives. Code that ignores NumPy's flags and writes to it (``torch.from_numpy(a)[0] = 1``)
    is ended by the kernel with SIGSEGV.
    """
    if mode not in ("rw", "r"):
        raise ValueError(f"share: mode is {mode!r}; allowed are 'rw' and 'r'")
    if not isinstance(a, np.ndarray):
        raise TypeError(f"share_array: got {type(a).__name__}, need a numpy.ndarray")
    checked(a.dtype, "ndshare.share")
    found = block_of(a)
    kind = found[0].kind if found is not None else None
    if found is not None:
        found[0].release()
    if mode == "rw":
        return a if kind == SHARED and a.flags.writeable else array(a)
    if kind == SEALED:
        return a
    dense = a.copy(order="K")
    flat = dense.ravel(order="K")
    block = seal(flat.view(np.uint8).data if flat.nbytes else b"")
    result = block.array(a.dtype, a.shape, dense.strides)
    block.release()
    return result
