"""What `alloc` is to make: shape, dtype and order."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Shape = int | Iterable[int]


def resolved(
    shape: Shape | None, dtype: npt.DTypeLike | None, order: str | None, like: Any
) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    """Return shape, dtype and order of an array, with what is not given taken from `like`."""
    if shape is None:
        if like is None:
            raise TypeError("alloc: give a shape, or an array that the new one is to be like")
        shape = like.shape
    try:
        dimensions: tuple[int, ...] = (operator.index(cast("int", shape)),)
    except TypeError:
        dimensions = tuple(operator.index(number) for number in cast("Iterable[Any]", shape))
    if dtype is None:
        dtype = like.dtype if like is not None else np.float64
    if order is None:
        order = "F" if like is not None and like.flags.f_contiguous and not like.flags.c_contiguous else "C"
    if order not in ("C", "F"):
        raise ValueError(f"alloc: order is {order!r}; allowed are 'C' and 'F'")
    return dimensions, np.dtype(dtype), order
