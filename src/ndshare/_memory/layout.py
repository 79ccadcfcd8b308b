"""How an array lies in memory: its dtype and strides as plain values that a message can carry.

The piece table of a message (see `ndshare._transport.parcel`) describes every array by a *dtype code*, a
shape and strides. All of these are marshal-able, because building a thousand descriptions must cost less
than copying a thousand small arrays.

Guarantees
----------
* ``decode_dtype(encode_dtype(d)) == d`` for every dtype `is_movable` accepts, with byte order,
  titles, alignment, metadata and ``np.record`` kept.
* `dense_strides` gives the strides of ``a.copy(order="K")`` without making the copy.

Not guaranteed
--------------
* ``np.longlong`` may come back as ``np.int64`` where both are eight bytes: they compare equal, and
  NumPy's own pickling does the same.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

_FIRST_USER_DTYPE = 24  # NumPy's numbers of built-in dtypes end at 23; beyond are StringDType and users'
_VOID = 20

_decoded: dict[str, np.dtype[Any]] = {}
_DECODED_MAX = 1024


def is_movable(dtype: np.dtype[Any]) -> bool:
    """Tell whether the bytes of such an array are its whole value.

    Object arrays hold pointers, `numpy.dtypes.StringDType` keeps long strings in an arena of its
    own, and NumPy cannot make arrays of zero-sized items from a buffer: those are pickled by NumPy.
    """
    return dtype.num < _FIRST_USER_DTYPE and not dtype.hasobject and dtype.itemsize > 0


def encode_dtype(dtype: np.dtype[Any]) -> str | bytes:
    """Return a dtype as a short string, or pickled where a string cannot say everything."""
    if dtype.num != _VOID and dtype.metadata is None:
        return dtype.str
    if dtype.type is np.void and dtype.fields is None and dtype.metadata is None:
        return dtype.str
    return pickle.dumps(dtype, 5)


def decode_dtype(code: str | bytes) -> np.dtype[Any]:
    """Return the dtype of a code made by `encode_dtype`."""
    if isinstance(code, bytes):
        dtype: np.dtype[Any] = pickle.loads(code)
        return dtype
    found = _decoded.get(code)
    if found is None:
        if len(_decoded) >= _DECODED_MAX:  # strings of every length are dtypes of their own
            _decoded.clear()
        found = _decoded[code] = np.dtype(code)
    return found


def dense_strides(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the strides, in bytes, that ``copy(order="K")`` gives an array.

    Axes keep their order in memory, gaps close, negative strides turn positive. Ties are broken as
    NumPy's ``PyArray_CreateSortedStridePerm`` breaks them.
    """
    dense = [0] * len(shape)
    step = itemsize
    for axis in sorted(range(len(shape)), key=lambda i: (abs(strides[i]), -i)):
        dense[axis] = step
        step *= shape[axis]
    return tuple(dense)


def lead_in(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many bytes the first element lies above the lowest byte of an array."""
    return sum(-stride * (n - 1) for n, stride in zip(shape, strides, strict=True) if stride < 0 and n > 0)


def span(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """Return the bytes between the lowest and the highest address of an array; 0 if it is empty."""
    reach = itemsize
    for n, stride in zip(shape, strides, strict=True):
        if n == 0:
            return 0
        reach += abs(stride) * (n - 1)
    return reach


def may_overlap_itself(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Tell whether two elements may lie on the same bytes (broadcast, sliding windows).

    The exact question is a Diophantine problem; this errs on the side of yes, which costs a copy.
    """
    reach = itemsize
    for stride, n in sorted((abs(stride), n) for n, stride in zip(shape, strides, strict=True)):
        if n == 0:
            return False
        if n > 1:
            if stride < reach:
                return True
            reach += stride * (n - 1)
    return False


def view_of(
    buffer: Any,
    lowest: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
) -> np.ndarray[Any, Any]:
    """Return an array on a buffer, placed by its lowest byte rather than by its first element."""
    if strides is None:
        return np.ndarray(shape, dtype, buffer, lowest)
    return np.ndarray(shape, dtype, buffer, lowest + lead_in(shape, strides), strides)
