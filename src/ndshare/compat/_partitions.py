"""How SHMArrays groups arrays that are updated together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["partition_sizes", "split_dicts"]


def partition_sizes(sizes: Any, min_size: int = 20000) -> list[np.ndarray[Any, Any]]:
    """Return how arrays are grouped: indices, from the largest down, no group above the largest array.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of elements.
    min_size : int, optional
        All are one group if none has so many.

    Returns
    -------
    list of ndarray of int

    Examples
    --------
    >>> [part.tolist() for part in partition_sizes([30000, 10000, 25000, 4000, 100])]
    [[0], [2], [1, 3, 4]]
    """
    sizes = np.asarray(sizes)
    order = np.argsort(sizes, kind="stable")[::-1]
    if not order.size or sizes[order[0]] < min_size:
        return [order]
    largest, parts = sizes[order[0]], []
    while order.size:
        fitting = max(1, int(np.searchsorted(np.cumsum(sizes[order]), largest, side="right")))
        parts.append(order[:fitting])
        order = order[fitting:]
    return parts


def split_dicts(ordered_dict: Mapping[Any, Any], partitioning: Sequence[Any]) -> list[OrderedDict[Any, Any]]:
    """Return one dict per group of indices."""
    pairs = list(ordered_dict.items())
    return [OrderedDict(pairs[i] for i in part) for part in partitioning]
