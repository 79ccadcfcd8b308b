"""Ordinary arrays that go to worker after worker: copied once, mapped copy-on-write by each task.

::

    whole array, first message    array ──copy──▶ shared memory ──┐
                 further messages ────────────────────────────────┴──▶ by reference; the receiver's own,
    view         first message    copied for its receiver, as always    until it writes
                 second message   as a whole array

Guarantees
----------
* A receiver's array is private and writable, as of every ordinary array.
* A copy lives as long as this object and the memory it was made of; of arrays that were sent once, the
  last few copies are kept.

Not guaranteed
--------------
* What is written to an array after it was sent may not reach later receivers.
"""

from __future__ import annotations

import collections
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._arrays import share_array
from ndshare._memory import block_of, encode_dtype
from ndshare._pickling import Placed
from ndshare.errors import CapacityError

#: Smaller arrays are copied each time: to map one costs as much as to copy some 100 kB.
_LEAST_BYTES = 1 << 20
#: Copies that are kept for a second use. Most second uses come with the next message or the one after.
_ONCE_MOST = 4

_Place = tuple[int, str | bytes, tuple[int, ...], tuple[int, ...]]


class _Seen:
    """An array that was sent, found again by where it lies and how."""

    __slots__ = ("copy", "root")

    def __init__(self, root: weakref.ref[np.ndarray[Any, Any]]) -> None:
        self.root = root
        self.copy: np.ndarray[Any, Any] | None = None


class Inputs:
    """The arrays that were sent while this object lives. Thread-safe."""

    def __init__(self) -> None:
        self._seen: dict[_Place, _Seen] = {}
        self._once: collections.deque[_Seen] = collections.deque()  # copied, and used once
        self._lock = threading.RLock()  # the garbage collector may take an array out while it is held

    def place(self, array: np.ndarray[Any, Any]) -> Placed | None:
        """Say where in shared memory the content of an array lies.

        Parameters
        ----------
        array : numpy.ndarray
            Of a dtype without Python objects, not shared.

        Returns
        -------
        Placed or None
            None if it is to be copied for its receiver: it is small, a view that was not sent before, or
            there is no room for a copy that stays.
        """
        if array.nbytes < _LEAST_BYTES:
            return None
        code = encode_dtype(array.dtype)
        place = array.__array_interface__["data"][0], code, array.shape, array.strides
        with self._lock:
            seen = self._seen.get(place)
            if seen is None or seen.root() is None:
                root = _root(array)
                seen = self._seen[place] = _Seen(weakref.ref(root, self._forgetter(place)))
                if root is not array:  # one of many parts of it, most likely
                    return None
            copy = self._copy(seen, array)
        found = block_of(copy)
        if found is None:
            return None
        block, low = found
        return Placed(block, low, code, copy.itemsize, copy.shape, copy.strides, True, private=True)

    def _forgetter(self, place: _Place) -> Callable[[object], None]:
        """Return what takes an array out when its memory is gone; it does not keep this object alive."""
        reference = weakref.ref(self)

        def forget(_: object) -> None:
            if (inputs := reference()) is not None and (seen := inputs._seen.pop(place, None)) is not None:
                seen.copy = None

        return forget

    def _copy(self, seen: _Seen, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        copy = seen.copy
        if copy is not None:
            if seen in self._once:
                self._once.remove(seen)
            return copy
        try:
            seen.copy = copy = share_array(array)
        except CapacityError:
            return array
        self._once.append(seen)
        if len(self._once) > _ONCE_MOST:
            self._once.popleft().copy = None
        return copy


def _root(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array whose memory an array looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
