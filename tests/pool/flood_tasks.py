"""Tasks that return many arrays, or hand arrays on."""

from __future__ import annotations

from typing import Any

import numpy as np

import ndshare
from tests.pool.semantics_tasks import pattern


def nothing() -> None:
    """Serve as an initializer: its workers are not shared with other executors."""


def many(sizes: list[int], seed: int) -> list[np.ndarray]:
    """Make many arrays."""
    return [pattern(n, seed + i) for i, n in enumerate(sizes)]


def sealed(count: int) -> list[np.ndarray]:
    """Make many shared arrays, each a segment of its own."""
    return [ndshare.share(np.full(3, i), mode="r") for i in range(count)]


def first_items(arrays: list[np.ndarray]) -> list[int]:
    """Look into each of many arrays."""
    return [int(a[0]) for a in arrays]


def share_pattern(nbytes: int, seed: int) -> np.ndarray:
    """Make a shared array."""
    return ndshare.share(pattern(nbytes, seed))


def add_one(a: np.ndarray) -> None:
    """Add in place."""
    a += 1


def added_one(a: np.ndarray) -> np.ndarray:
    """Add in place and return the argument."""
    a += 1
    return a


def array_and_view(nbytes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an array and a view of it."""
    a = pattern(nbytes, seed)
    return a, a[::2]


def go_down(levels: int, shared: np.ndarray, plain: np.ndarray) -> tuple[Any, ...]:
    """Add one to both arrays and hand them on to an executor of this worker."""
    shared += 1
    plain += 1
    if levels == 0:
        return shared, plain, share_pattern(plain.nbytes, 7)
    with ndshare.ProcessPoolExecutor(1) as executor:
        return executor.submit(go_down, levels - 1, shared, plain).result()
