"""shared_numpy 1.1.1 on ndshare: arrays in shared memory, and a queue that hands them to other processes.

::

    a = snp.array(...)      an array of ndshare, with `close` and `unlink`
    q.put(a)                ndshare.Queue: one descriptor, no copy
    connection.send(a)      by reference, too, and as an argument of a Process

A program says ``from ndshare.compat import shared_numpy as snp`` instead of ``import shared_numpy as snp``.

Guarantees
----------
- The memory is freed when nobody has the array any more, whoever calls `close` or `unlink`, and whoever dies.
- An array can be read and written after `close` and `unlink`, until it is let go.
"""

from __future__ import annotations

from ndshare.compat.shared_numpy import shared_memory
from ndshare.compat.shared_numpy.queue import Queue
from ndshare.compat.shared_numpy.reduction import init_reduction
from ndshare.compat.shared_numpy.shared_memory import ShareableList, SharedMemory
from ndshare.compat.shared_numpy.shared_numpy import SharedNDArray, array, from_array, ndarray

__version__ = "1.1.1"

__all__ = [
    "Queue",
    "ShareableList",
    "SharedMemory",
    "SharedNDArray",
    "array",
    "from_array",
    "ndarray",
    "shared_memory",
]

init_reduction()
