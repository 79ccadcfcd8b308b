"""Large copies by several threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ndshare._memory import _heap
from ndshare._system import processors

_PART_MIN = 4 << 20  # bytes that are worth a thread: a millisecond's copy, against 30 microseconds


def copy_array(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
    """Copy an array into another one of its shape and dtype.

    Large ones that lie dense in the same order are copied by as many threads as this process has
    processors, at most eight; they live as long as the call.
    """
    threads = source.nbytes // _PART_MIN
    if threads < 2 or not _heap.copy(target, source, min(threads, processors())):
        np.copyto(target, source)
