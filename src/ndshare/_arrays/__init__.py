"""Shared arrays: the constructors of NumPy, with memory that every process sees.

An array made here is a plain `numpy.ndarray`. That it is shared is a property of its memory, found by
address, so views, slices, transposes and reshapes of it are shared as well, and libraries keep what they
are given. It travels by reference::

    this process                                    another process
    a = ndshare.zeros(n)   ── (segment, offset, ──▶  the same pages, mapped
    a[3] = 1                  shape, strides, dtype)  sees a[3] == 1

Guarantees
----------
* Shape, dtype, strides and content are what NumPy's function of that name gives.
* A request that does not fit raises `CapacityError` before anything is taken.

Not guaranteed
--------------
* More than one item, or an item of more than 8 bytes, may be seen half written: nothing here locks.
* Arrays of Python objects are refused.
"""

from __future__ import annotations

from ndshare._arrays.creation import (
    array,
    empty,
    empty_like,
    full,
    full_like,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from ndshare._arrays.equals import share_array
from ndshare._arrays.filed import filed_arrays, flush, in_file

__all__ = [
    "array",
    "empty",
    "empty_like",
    "filed_arrays",
    "flush",
    "full",
    "full_like",
    "in_file",
    "ones",
    "ones_like",
    "share_array",
    "zeros",
    "zeros_like",
]
