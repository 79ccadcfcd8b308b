"""What the workers compute. Importable by name, so that every library can send it."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL_SIZES = (1, 10, 100, 1000, 8000)  # elements: below every threshold of a recycling allocator


def add_one(x: Any) -> Any:
    """Return ``x + 1``: a new array or number."""
    return x + 1


def total(x: npt.NDArray[np.float64], _task: int = 0) -> float:
    """Return the sum of `x`, which reads every page."""
    return float(x.sum())


def small_arrays(repeats: int, cpu: int) -> float:
    """Return the seconds that ordinary code with small arrays takes.

    Parameters
    ----------
    repeats
        How often the block of statements runs for each size.
    cpu
        Number of the processor it runs on.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        start = time.perf_counter()
        for size in _SMALL_SIZES:
            a = np.arange(size, dtype=np.float64)
            for _ in range(repeats):
                b = a * 2.0 + 1.0
                c = np.concatenate((a, b))
                d = c[::2].copy()
                d -= d.mean()
        return time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, allowed)


def triple(value: Any) -> Any:
    """Return three times a number."""
    return 3 * value


def spin(seconds: float) -> float:
    """Keep a processor busy for so long; returns the argument."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def pick(index: int, values: npt.NDArray[np.float64]) -> float:
    """Return one element of an array."""
    return float(values[index])


def loop_alone(start: int, end: int) -> None:
    """Call a kernel for some numbers, in a plain loop into an array of its own."""
    out = np.zeros(end, np.int64)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        out[index] = 3 * value

    for index, value in enumerate(range(start, end), start):
        kernel(0, index, value)


def slice_sum(x: npt.NDArray[np.float64], number: int, count: int) -> float:
    """Return the sum of one of `count` equal parts of an array."""
    length = len(x) // count
    return float(x[number * length : (number + 1) * length].sum())


def filled(length: int, value: float) -> npt.NDArray[np.float64]:
    """Return an array of one value."""
    return np.full(length, value)
