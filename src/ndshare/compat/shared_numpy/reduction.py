"""How arrays go through what multiprocessing sends: by reference, through a queue of their own."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any

import ndshare
from ndshare.compat.shared_numpy.shared_numpy import SharedNDArray

__all__ = ["init_reduction", "rebuild_shared_ndarray", "reduce_shared_ndarray"]


def rebuild_shared_ndarray(queue: ndshare.Queue) -> Any:
    """Return the array that `reduce_shared_ndarray` was given."""
    try:
        return queue.get()
    finally:
        queue.close()


def reduce_shared_ndarray(arr: SharedNDArray) -> Any:
    """Return what an array is rebuilt from."""
    arr._carrier = queue = ndshare.Queue()  # open until the child has been started
    queue.put(arr)
    return rebuild_shared_ndarray, (queue,)


def init_reduction() -> None:
    """Have multiprocessing send arrays so; done when the package is imported."""
    ForkingPickler.register(SharedNDArray, reduce_shared_ndarray)
