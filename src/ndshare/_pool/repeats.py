"""Notices that a large ordinary array is sent again and again, where sharing it would send it once.

Nothing here keeps the array, or a weak reference to it, which would make ``ndarray.resize`` refuse.
An array is taken for one that was seen before if it lies at the same address with the same layout and
a sample of its items is the same: a buffer that is filled anew each time is another array. A temporary
array may come to lie where the last one was, with the same items. So before anything is said, the program is
searched for somebody who keeps the array: a variable of a function that runs, or an object that holds it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import types
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


class Repeats:
    """Counts the large ordinary arrays that one executor sends."""

    def __init__(self) -> None:
        self.told = False  # once is enough
        self._seen: dict[tuple[object, ...], int] = {}
        self._next = _TIMES  # a search costs up to a few ms: of temporaries ever fewer are searched for

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
            if (
                isinstance(value, np.ndarray)
                and value.nbytes >= _LEAST_BYTES
                and not value.dtype.hasobject
                and not is_shared(value)
                and find_memmap(value) is None
                and (times := self._count(value)) >= self._next
            ):
                if not _is_kept(value, args):
                    self._next = 2 * times
                    continue
                self.told = True
                return (
                    f"an ordinary array of shape {value.shape} and dtype {value.dtype} is sent to a "
                    f"worker for the {_ordinal(times)} time: {times * value.nbytes:,} bytes are copied so "
                    "far. Put it in shared memory once, x = ndshare.share(x), and send that."
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
            with contextlib.suppress(KeyError, RuntimeError):  # another thread was at it just then
                del self._seen[next(iter(self._seen))]
        return times


def _ordinal(times: int) -> str:
    return "third" if times == _TIMES else f"{times}th"


def _is_kept(array: np.ndarray[Any, Any], args: tuple[Any, ...]) -> bool:
    """Tell whether anybody but the call itself has an array, or the array that it is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    frame = sys._getframe(1).f_back
    while frame is not None:
        if frame.f_globals.get("__package__") != __package__:
            for names in (frame.f_locals, frame.f_globals):
                for value in list(names.values()):
                    if value is array or (type(value) is dict and id(array) in map(id, list(value.values()))):
                        return True  # the collector does not see dicts of arrays
        frame = frame.f_back
    for holder in gc.get_referrers(array):
        if holder is not args and not isinstance(holder, (np.ndarray, types.FrameType)):
            return True
    return False
