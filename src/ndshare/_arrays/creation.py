"""Arrays from a shape or from content: `empty`, `zeros`, `ones`, `full`, `array`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ndshare._arrays.making import create, create_like
from ndshare._memory import copy_array

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ndshare._arrays.making import LikeOrder, Order, ShapeLike


def empty(shape: ShapeLike, dtype: DTypeLike = float, order: Order = "C") -> NDArray[Any]:
    """Make a shared array without setting its content.

    Parameters
    ----------
    shape : int or sequence of int
        Its shape; may be ``()`` or contain zeros.
    dtype : dtype-like
        Any dtype without Python objects.
    order : {"C", "F"}
        Memory layout.

    Returns
    -------
    numpy.ndarray
        A plain array; `is_shared` tells what it is.

    Raises
    ------
    TypeError
        For object dtypes.
    CapacityError
        If the memory cannot be had; nothing is taken then.

    Notes
    -----
    All processes that are sent the array, or a view of it, see the same memory, without any lock: an aligned
    item of up to 8 bytes is never seen half written, more than one item may be. A forked child sees it too.
    Recycled memory is used where there is any, so the content is arbitrary.

    Examples
    --------
    >>> import ndshare
    >>> a = ndshare.empty((2, 3))
    >>> a.shape, ndshare.is_shared(a), ndshare.is_shared(a.T[1])
    ((2, 3), True, True)
    """
    return create(shape, dtype, order, "ndshare.empty", zero=False)


def zeros(shape: ShapeLike, dtype: DTypeLike = float, order: Order = "C") -> NDArray[Any]:
    """Make a shared array of zeros.

    Unlike NumPy's, its pages are taken at once: it costs what it will use.

    Parameters
    ----------
    shape : int or sequence of int
        Its shape; may be ``()`` or contain zeros.
    dtype : dtype-like
        Any dtype without Python objects.
    order : {"C", "F"}
        Memory layout.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    See Also
    --------
    empty : errors, and who sees the array.
    """
    return create(shape, dtype, order, "ndshare.zeros", zero=True)


def ones(shape: ShapeLike, dtype: DTypeLike = float, order: Order = "C") -> NDArray[Any]:
    """Make a shared array of ones.

    Parameters
    ----------
    shape : int or sequence of int
        Its shape; may be ``()`` or contain zeros.
    dtype : dtype-like
        Any dtype without Python objects.
    order : {"C", "F"}
        Memory layout.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    See Also
    --------
    empty : errors, and who sees the array.
    """
    result = create(shape, dtype, order, "ndshare.ones", zero=False)
    result.fill(1)
    return result


def full(
    shape: ShapeLike, fill_value: ArrayLike, dtype: DTypeLike | None = None, order: Order = "C"
) -> NDArray[Any]:
    """Make a shared array filled with one value.

    Parameters
    ----------
    shape : int or sequence of int
        Its shape; may be ``()`` or contain zeros.
    fill_value : scalar or array-like
        What to fill it with; broadcasts to its shape.
    dtype : dtype-like, optional
        Any dtype without Python objects. By default that of `fill_value`.
    order : {"C", "F"}
        Memory layout.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    See Also
    --------
    empty : errors, and who sees the array.
    """
    kind = np.asarray(fill_value).dtype if dtype is None else dtype
    result = create(shape, kind, order, "ndshare.full", zero=False)
    np.copyto(result, cast("Any", fill_value), casting="unsafe")
    return result


def array(object: ArrayLike, dtype: DTypeLike | None = None, order: LikeOrder = "K") -> NDArray[Any]:  # noqa: A002  -- NumPy's name
    """Copy anything array-like into a new shared array.

    Parameters
    ----------
    object : array-like
        What `numpy.array` takes. An ndarray is copied once.
    dtype : dtype-like, optional
        The dtype of the result.
    order : {"K", "A", "C", "F"}
        Memory layout.

    Returns
    -------
    numpy.ndarray
        A plain array in shared memory.

    Raises
    ------
    TypeError
        If the result would hold Python objects.

    See Also
    --------
    share_array : returns what is shared already as it is.
    """
    source = np.asarray(object, dtype=dtype)
    result = create_like(source, None, order, None, "ndshare.array")
    copy_array(result, source)
    return result
