"""The constructors of NumPy, from a shape, from content, or like another array; in shared memory."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from ndshare._arrays.making import create, create_like
from ndshare._memory import copy_array

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ndshare._arrays.making import LikeOrder, Order, ShapeLike

F = TypeVar("F", bound="Callable[..., NDArray[Any]]")

_SHAPE = """
shape : int or sequence of int
    Its shape; may be ``()`` or contain zeros.
"""
_FILL = """
fill_value : scalar or array-like
    What to fill it with; broadcasts to its shape.
"""
_DTYPE = """
dtype : dtype-like
    Any dtype without Python objects.
"""
_ORDER = """
order : {"C", "F"}
    Memory layout.
"""
_PROTOTYPE = """
prototype : array-like
    The shape, dtype and layout to take where nothing else is said.
"""
_LIKE = """
dtype : dtype-like, optional
    Any dtype without Python objects.
order : {"K", "A", "C", "F"}
    Memory layout; ``"K"`` keeps the order of the axes in memory.
shape : int or sequence of int, optional
    Another shape.
"""
_REST = """
Returns
-------
numpy.ndarray
    A plain array in shared memory.

See Also
--------
empty : errors, and who sees the array.
"""


def _documented(*parameters: str) -> Callable[[F], F]:
    """Complete a docstring of one line by what the constructors have in common."""

    def complete(function: F) -> F:
        if function.__doc__ is not None:  # as it is under python -OO
            listed = "".join(text.lstrip("\n") for text in parameters)
            first = inspect.cleandoc(function.__doc__)
            function.__doc__ = f"{first}\n\nParameters\n----------\n{listed}{_REST}"
        return function

    return complete


def empty(shape: ShapeLike, dtype: DTypeLike = float, order: Order = "C") -> NDArray[Any]:
    """Make a shared array without setting its content.

    Page: docs/arrays.md.

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


@_documented(_SHAPE, _DTYPE, _ORDER)
def zeros(shape: ShapeLike, dtype: DTypeLike = float, order: Order = "C") -> NDArray[Any]:
    """Make a shared array of zeros.

    Page: docs/arrays.md.

    Unlike NumPy's, its pages are taken at once: it costs what it will use.
    """
    return create(shape, dtype, order, "ndshare.zeros", zero=True)


@_documented(_SHAPE, _DTYPE, _ORDER)
def ones(shape: ShapeLike, dtype: DTypeLike = float, order: Order = "C") -> NDArray[Any]:
    """Make a shared array of ones.

    Page: docs/arrays.md.
    """
    result = create(shape, dtype, order, "ndshare.ones", zero=False)
    result.fill(1)
    return result


@_documented(_SHAPE, _FILL, _DTYPE.replace("objects.", "objects. By default that of `fill_value`."), _ORDER)
def full(
    shape: ShapeLike, fill_value: ArrayLike, dtype: DTypeLike | None = None, order: Order = "C"
) -> NDArray[Any]:
    """Make a shared array filled with one value.

    Page: docs/arrays.md.
    """
    kind = np.asarray(fill_value).dtype if dtype is None else dtype
    result = create(shape, kind, order, "ndshare.full", zero=False)
    np.copyto(result, cast("Any", fill_value), casting="unsafe")
    return result


@_documented(_PROTOTYPE, _LIKE)
def empty_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array shaped like another, without setting its content.

    Page: docs/arrays.md.
    """
    return create_like(prototype, dtype, order, shape, "ndshare.empty_like")


@_documented(_PROTOTYPE, _LIKE)
def zeros_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array of zeros shaped like another.

    Page: docs/arrays.md.
    """
    return create_like(prototype, dtype, order, shape, "ndshare.zeros_like", zero=True)


@_documented(_PROTOTYPE, _LIKE)
def ones_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array of ones shaped like another.

    Page: docs/arrays.md.
    """
    result = create_like(prototype, dtype, order, shape, "ndshare.ones_like")
    result.fill(1)
    return result


@_documented(_PROTOTYPE, _FILL, _LIKE)
def full_like(
    prototype: ArrayLike,
    fill_value: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: ShapeLike | None = None,
) -> NDArray[Any]:
    """Make a shared array filled with one value, shaped like another.

    Page: docs/arrays.md.
    """
    result = create_like(prototype, dtype, order, shape, "ndshare.full_like")
    np.copyto(result, cast("Any", fill_value), casting="unsafe")
    return result


def array(object: ArrayLike, dtype: DTypeLike | None = None, order: LikeOrder = "K") -> NDArray[Any]:  # noqa: A002  -- NumPy's name
    """Copy anything array-like into a new shared array.

    Page: docs/arrays.md.

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
