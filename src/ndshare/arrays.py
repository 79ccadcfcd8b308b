"""Shared arrays: the constructors of NumPy, with memory that every process sees.

An array made here is a plain `numpy.ndarray`. That it is shared is a property of its memory, found by
address, so views, slices, transposes and reshapes of it are shared as well, and libraries keep what they
are given. It travels by reference: whoever receives it sees the same memory, and every write to it.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, cast

import numpy as np

from ndshare import segments
from ndshare.copying import copy_array
from ndshare.segments import is_shared, shared_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    ShapeLike = SupportsIndex | Sequence[SupportsIndex]
    Order = Literal["C", "F"]
    LikeOrder = Literal["C", "F", "A", "K"]

__all__ = [
    "array",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "is_shared",
    "ones",
    "ones_like",
    "share_array",
    "shared_memory",
    "zeros",
    "zeros_like",
]


def _checked(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
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
    block = segments.allocate(nbytes, zero=zero)
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


def _create(shape: ShapeLike, dtype: DTypeLike, order: str, what: str, *, zero: bool) -> NDArray[Any]:
    if order not in ("C", "F"):
        raise ValueError(f"{what}: order is {order!r}; allowed are 'C' and 'F'")
    kind = _checked(np.dtype(dtype), what)
    dimensions = _dimensions(shape) + kind.shape
    kind = kind.base
    if kind.itemsize == 0 and kind.char in "SU":
        kind = np.dtype(f"{kind.char}1")  # as NumPy does: a string of no length gets room for one
    strides = (
        _dense_strides(dimensions, kind.itemsize, range(len(dimensions))[::-1]) if order == "F" else None
    )
    return _make(dimensions, kind, strides, zero)


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
    return _create(shape, dtype, order, "ndshare.empty", zero=False)


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
    return _create(shape, dtype, order, "ndshare.zeros", zero=True)


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
    result = _create(shape, dtype, order, "ndshare.ones", zero=False)
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
    result = _create(shape, kind, order, "ndshare.full", zero=False)
    np.copyto(result, cast("Any", fill_value), casting="unsafe")
    return result


def _like(
    prototype: ArrayLike,
    dtype: DTypeLike | None,
    order: str,
    shape: ShapeLike | None,
    what: str,
    *,
    zero: bool = False,
) -> NDArray[Any]:
    model = np.asanyarray(prototype)
    kind = _checked(model.dtype if dtype is None else np.dtype(dtype), what)
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
    return _like(prototype, dtype, order, shape, "ndshare.empty_like")


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
    return _like(prototype, dtype, order, shape, "ndshare.zeros_like", zero=True)


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
    result = _like(prototype, dtype, order, shape, "ndshare.ones_like")
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
    result = _like(prototype, dtype, order, shape, "ndshare.full_like")
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
    result = _like(source, None, order, None, "ndshare.array")
    copy_array(result, source)
    return result


def share_array(a: NDArray[Any], mode: Literal["rw", "r"] = "rw") -> NDArray[Any]:
    """Return the shared equal of an array; the array itself if it is that already.

    Parameters
    ----------
    a : numpy.ndarray
        Any array without Python objects.
    mode : {"rw", "r"}
        With "r" the result is read-only for every process, the maker included, and the kernel enforces it. A
        writable shared array is copied for it.

    Raises
    ------
    TypeError
        For object dtypes, or if `a` is no array.
    CapacityError
        If the memory cannot be had.

    Notes
    -----
    One copy. Read-only memory is never recycled: it costs fresh pages each time, and one file descriptor per
    array while it lives. Code that ignores NumPy's flags and writes to it (``torch.from_numpy(a)[0] = 1``)
    is ended by the kernel with SIGSEGV.
    """
    if mode not in ("rw", "r"):
        raise ValueError(f"share: mode is {mode!r}; allowed are 'rw' and 'r'")
    if not isinstance(a, np.ndarray):
        raise TypeError(f"share_array: got {type(a).__name__}, need a numpy.ndarray")
    _checked(a.dtype, "ndshare.share")
    found = segments.block_of(a)
    kind = found[0].kind if found is not None else None
    if found is not None:
        found[0].release()
    if mode == "rw":
        return a if kind == segments.SHARED and a.flags.writeable else array(a)
    if kind == segments.SEALED:
        return a
    dense = a.copy(order="K")
    flat = dense.ravel(order="K")
    block = segments.seal(flat.view(np.uint8).data if flat.nbytes else b"")
    result = block.array(a.dtype, a.shape, dense.strides)
    block.release()
    return result
