"""Ordinary arrays that go to worker after worker: copied once, mapped copy-on-write by each task.

::

    first message    array ──copy──▶ its receiver, as always       (most arrays are sent once)
    second message   array ──copy──▶ shared memory ──┐
    third message    ────────────────────────────────┴──▶ by reference; the receiver's own, until it writes

Guarantees
----------
* A receiver's array is private and writable, as of every ordinary array.
* The copy lives as long as this object and the memory it was made of; nothing is kept of arrays that
  were sent once.

Not guaranteed
--------------
* What is written to an array after it was sent twice does not reach later receivers.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np

from ndshare import segments
from ndshare.arrays import share_array
from ndshare.layout import encode_dtype
from ndshare.pickling import Placed

#: Smaller arrays are copied each time: to map one costs as much as to copy some 100 kB.
_LEAST_BYTES = 1 << 20

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
            None if it is to be copied: it is small, or was not sent before.

        Raises
        ------
        CapacityError
            If a copy does not fit.
        """
        if array.nbytes < _LEAST_BYTES:
            return None
        code = encode_dtype(array.dtype)
        place = array.__array_interface__["data"][0], code, array.shape, array.strides
        with self._lock:
            seen = self._seen.get(place)
            if seen is None or seen.root() is None:
                root = _root(array)
                self._seen[place] = _Seen(weakref.ref(root, lambda _: self._seen.pop(place, None)))
                return None
            if seen.copy is None:
                seen.copy = share_array(array)
            copy = seen.copy
        found = segments.block_of(copy)
        if found is None:
            return None
        block, low = found
        return Placed(block, low, code, copy.itemsize, copy.shape, copy.strides, True, private=True)


def _root(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array whose memory an array looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
