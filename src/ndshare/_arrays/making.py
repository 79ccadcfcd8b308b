"""New arrays in shared memory: dtype checked, shape and layout worked out, memory taken."""

from __future__ import annotations

import operator
import sys
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, cast

import numpy as np

from ndshare._memory import allocate
from ndshare.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    ShapeLike = SupportsIndex | Sequence[SupportsIndex]
    Order = Literal["C", "F"]
    LikeOrder = Literal["C", "F", "A", "K"]


def checked(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """Return the dtype; a `TypeError` if arrays of it cannot be shared."""
    if dtype.hasobject:
        raise TypeError(
            f"{what}: an array of dtype {dtype} cannot be shared, because its items are Python objects (or "
            "point to memory) of one process; use a numeric, string (S or U) or structured dtype"
        )
    return dtype


def _dimensions(shape: ShapeLike) -> tuple[int, ...]:
    try:
        return (operator.index(cast("SupportsIndex", shape)),)
    except TypeError:
        return tuple(map(operator.index, cast("Sequence[SupportsIndex]", shape)))


def _make(
    shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None, zero: bool
) -> NDArray[Any]:
    if any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape} was asked for; no dimension can be negative")
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    if nbytes > sys.maxsize:
        raise CapacityError(nbytes, sys.maxsize, "address space")
    block = allocate(nbytes, zero=zero)
    result = block.array(dtype, shape, strides)
    block.release()
    return result


def _dense_strides(shape: tuple[int, ...], itemsize: int, axes: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense array whose axes follow each other in memory as in `axes`, slowest first."""
    strides = [0] * len(shape)
    step = itemsize
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def create(shape: ShapeLike, dtype: DTypeLike, order: str, what: str, *, zero: bool) -> NDArray[Any]:
    """Make an array of that shape, dtype and order; `what` was asked for it."""
    if order not in ("C", "F"):
        raise ValueError(f"{what}: order is {order!r}; allowed are 'C' and 'F'")
    kind = checked(np.dtype(dtype), what)
    dimensions = _dimensions(shape) + kind.shape
    kind = kind.base
    if kind.itemsize == 0 and kind.char in "SU":
        kind = np.dtype(f"{kind.char}1")  # as NumPy does: a string of no length gets room for one
    strides = (
        _dense_strides(dimensions, kind.itemsize, range(len(dimensions))[::-1]) if order == "F" else None
    )
    return _make(dimensions, kind, strides, zero)


def create_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None,
    order: str,
    shape: ShapeLike | None,
    what: str,
    *,
    zero: bool = False,
) -> NDArray[Any]:
    """Make an array that is like another where nothing else is said; `what` was asked for it."""
    model = np.asanyarray(prototype)
    kind = checked(model.dtype if dtype is None else np.dtype(dtype), what)
    if order not in ("C", "F", "A", "K"):
        raise ValueError(f"{what}: order is {order!r}; allowed are 'C', 'F', 'A' and 'K'")
    dimensions = model.shape if shape is None else _dimensions(shape)
    if order == "A":
        order = "F" if model.flags.fnc else "C"
    axes: Sequence[int] = range(len(dimensions))
    keep = order == "K" and len(dimensions) == model.ndim and not model.flags.c_contiguous
    if order == "F" or (keep and model.flags.f_contiguous):
        axes = axes[::-1]
    elif keep:
        # Stable, so that axes of equal stride stay in order: the layout of `copy(order="K")`.
        axes = sorted(axes, key=lambda axis: -abs(model.strides[axis]))
    dimensions += kind.shape
    axes = [*axes, *range(len(axes), len(dimensions))]
    return _make(dimensions, kind.base, _dense_strides(dimensions, kind.base.itemsize, axes), zero)
