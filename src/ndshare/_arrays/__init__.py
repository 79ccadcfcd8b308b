"""Shared arrays: the constructors of NumPy, with memory that every process sees.

An array made here is a plain `numpy.ndarray`. That it is shared is a property of its memory, found by
address, so views, slices, transposes and reshapes of it are shared as well, and libraries keep what they
are given. It travels by reference: whoever receives it sees the same memory, and every write to it.
"""

from __future__ import annotations

from ndshare._arrays.creation import array, empty, full, ones, zeros
from ndshare._arrays.equals import share_array
from ndshare._arrays.likes import empty_like, full_like, ones_like, zeros_like

__all__ = [
    "array",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "share_array",
    "zeros",
    "zeros_like",
]
