"""What the tests of functors run in workers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import ndshare
from ndshare._transport import transport


def entries(functor: Any, start: int | None = None, stop: int | None = None) -> list[tuple[Any, ...]]:
    """Return the entries of a share."""
    return list(functor.iterate(slice(start, stop)))


def sums(functor: Any, start: int | None = None, stop: int | None = None) -> list[tuple[Any, ...]]:
    """Return index and sum of the values of a share, and the process."""
    return [
        (entry[0], float(np.sum(entry[-1])), os.getpid()) for entry in functor.iterate(slice(start, stop))
    ]


def write_everywhere(functor: Any) -> None:
    """Write 10 times the index into every value."""
    for index, value in functor.iterate(slice(None)):
        value[...] = 10 * index


def all_shared(functor: Any) -> bool:
    """Tell whether the values of a functor are in shared memory."""
    return all(ndshare.is_shared(np.asarray(value)) for _, value in functor.iterate(slice(None)))


def travelled(obj: Any) -> Any:
    """Return what a receiver in this process makes of an object."""
    parcel = transport.pack(obj).settle()
    return transport.unpack(parcel.data, parcel.descriptors())
