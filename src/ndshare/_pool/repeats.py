"""Notices that a large ordinary array is sent again and again, where sharing it would send it once.

Nothing here keeps the array, or a weak reference to it, which would make ``ndarray.resize`` refuse.
An array is taken for one that was seen before if it lies at the same address with the same layout and
a sample of its items is the same: a buffer that is filled anew each time is another array.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from ndshare._memory import is_shared
from ndshare._pickling import find_memmap
from ndshare._system import warn_caller
from ndshare.errors import RepeatedCopyWarning

_LEAST_BYTES = 1 << 20  # smaller ones cost less than the trouble of sharing them
_TIMES = 3
_SAMPLE = 64  # items, about
_SEEN_MAX = 64
_REFERENCES = 3  # to an array that only the call has: the tuple, the loop, getrefcount itself


class Repeats:
    """Counts the large ordinary arrays that one executor sends."""

    def __init__(self) -> None:
        self.told = False  # once is enough
        self._seen: dict[tuple[object, ...], int] = {}

    def warn(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the arguments of a task; say once that an array is copied again and again."""
        if (text := self.look(fn, args, kwargs)) is not None:
            warn_caller(RepeatedCopyWarning(text))

    def look(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Count the arguments of a task; return what to say when one is sent for the third time."""
        if isinstance(fn, functools.partial):
            args = (*args, *fn.args, *fn.keywords.values())
        if kwargs:
            args = (*args, *kwargs.values())
        for value in args:
            # What nobody else refers to cannot be sent again, whatever comes to lie there next.
            if (
                isinstance(value, np.ndarray)
                and value.nbytes >= _LEAST_BYTES
                and (value.base is not None or sys.getrefcount(value) > _REFERENCES)
                and not value.dtype.hasobject
                and not is_shared(value)
                and find_memmap(value) is None
                and self._count(value) == _TIMES
            ):
                self.told = True
                return (
                    f"an ordinary array of shape {value.shape} and dtype {value.dtype} is sent to a "
                    f"worker for the third time: {_TIMES * value.nbytes:,} bytes are copied so far. "
                    "Put it in shared memory once, x = ndshare.share(x), and send that."
                )
        return None

    def _count(self, value: np.ndarray[Any, Any]) -> int:
        each = max(1, round(_SAMPLE ** (1 / value.ndim)))
        sample = value[tuple(slice(None, None, max(1, n // each)) for n in value.shape)]
        key = (
            value.__array_interface__["data"][0],
            value.dtype,
            value.shape,
            value.strides,
            np.asarray(sample).tobytes(),
        )
        times = self._seen[key] = self._seen.pop(key, 0) + 1  # the latest last
        if len(self._seen) > _SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        return times
