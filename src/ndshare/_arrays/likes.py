"""Arrays like others: `empty_like`, `zeros_like`, `ones_like`, `full_like`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ndshare._arrays.making import create_like

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ndshare._arrays.making import LikeOrder, ShapeLike


def empty_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array shaped like another, without setting its content.

    Parameters
    ----------
    prototype : array-like
        The shape, dtype and layout to take where nothing else is said.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {"K", "A", "C", "F"}
        Memory layout; ``"K"`` keeps the order of the axes in memory.
    shape : int or sequence of int, optional
        Another shape.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    See Also
    --------
    empty : errors, and who sees the array.
    """
    return create_like(prototype, dtype, order, shape, "ndshare.empty_like")


def zeros_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array of zeros shaped like another.

    Parameters
    ----------
    prototype : array-like
        The shape, dtype and layout to take where nothing else is said.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {"K", "A", "C", "F"}
        Memory layout; ``"K"`` keeps the order of the axes in memory.
    shape : int or sequence of int, optional
        Another shape.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    See Also
    --------
    empty : errors, and who sees the array.
    """
    return create_like(prototype, dtype, order, shape, "ndshare.zeros_like", zero=True)


def ones_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array of ones shaped like another.

    Parameters
    ----------
    prototype : array-like
        The shape, dtype and layout to take where nothing else is said.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {"K", "A", "C", "F"}
        Memory layout; ``"K"`` keeps the order of the axes in memory.
    shape : int or sequence of int, optional
        Another shape.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    See Also
    --------
    empty : errors, and who sees the array.
    """
    result = create_like(prototype, dtype, order, shape, "ndshare.ones_like")
    result.fill(1)
    return result


def full_like(
    prototype: ArrayLike,
    fill_value: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array filled with one value, shaped like another.

    Parameters
    ----------
    prototype : array-like
        The shape, dtype and layout to take where nothing else is said.
    fill_value : scalar or array-like
        What to fill it with; broadcasts to its shape.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {"K", "A", "C", "F"}
        Memory layout; ``"K"`` keeps the order of the axes in memory.
    shape : int or sequence of int, optional
        Another shape.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    See Also
    --------
    empty : errors, and who sees the array.
    """
    result = create_like(prototype, dtype, order, shape, "ndshare.full_like")
    np.copyto(result, cast("Any", fill_value), casting="unsafe")
    return result
