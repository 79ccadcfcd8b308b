"""What `alloc` is to make: shape, dtype and order, as they are given or as another object has them."""

from __future__ import annotations

import array as arrays
import operator
from collections.abc import Iterable
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

Shape = int | Iterable[int]

_SEQUENCES = (list, tuple, range, int, float, complex, memoryview, bytearray, arrays.array)


def resolved(
    shape: Shape | None, dtype: npt.DTypeLike | None, order: str | None, like: Any, *, objects: bool = False
) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    """Return shape, dtype and order of an array, with what is not given taken from `like`.

    Parameters
    ----------
    shape, dtype, order, like
        As of `ndshare.alloc`.
    objects : bool, optional
        Whether an array may be of objects because `like` is.
    """
    given = like
    if isinstance(like, _SEQUENCES) or (_has_no_shape(like) and hasattr(like, "__array__")):
        like = _as_array(like)
    if shape is None:
        if like is None:
            raise TypeError("alloc: give a shape, or an array that the new one is to be like")
        shape = _shape_of(like)
    try:
        dimensions: tuple[int, ...] = (operator.index(cast("int", shape)),)
    except TypeError:
        dimensions = tuple(operator.index(number) for number in cast("Iterable[Any]", shape))
    if dtype is not None:
        kind = np.dtype(dtype)
    else:
        kind = np.dtype(np.float64) if like is None else _dtype_of(like, given, objects)
    if order is None:
        order = "F" if _is_in_fortran_order(like) else "C"
    if order not in ("C", "F"):
        raise ValueError(f"alloc: order is {order!r}; allowed are 'C' and 'F'")
    return dimensions, kind, order


def _refuse(like: Any, lack: str, remedy: str) -> NoReturn:
    kind = f"{type(like).__module__}.{type(like).__qualname__}".removeprefix("builtins.")
    raise TypeError(f"alloc: like is of class {kind}, {lack}; {remedy}") from None


def _has_no_shape(like: Any) -> bool:
    return like is not None and getattr(like, "shape", None) is None


def _as_array(like: Any) -> Any:
    try:
        return np.asarray(like)
    except (TypeError, ValueError) as error:
        _refuse(like, f"of which NumPy makes no array ({error})", "give shape= and dtype=")


def _shape_of(like: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(number) for number in like.shape)
    except (AttributeError, TypeError):
        _refuse(like, "which has no shape", "give shape=, or an array")


def _dtype_of(like: Any, given: Any, objects: bool) -> np.dtype[Any]:
    """Return the dtype of NumPy that values of an object have."""
    found = _declared(like)
    told = getattr(like, "dtype", found)
    if found is None:
        lack = "which has no dtype" if told is None else f"whose dtype {told} NumPy does not have"
        _refuse(given, lack, "give dtype=")
    if found.hasobject and not objects:
        lack = f"of dtype {told}, whose values are Python objects and cannot be shared"
        _refuse(given, lack, "give dtype=, such as float, or like= an array of numbers")
    return found


def _declared(like: Any) -> np.dtype[Any] | None:
    columns = getattr(like, "dtypes", None)
    dtype = getattr(like, "dtype", None)
    if dtype is None and columns is not None:  # a DataFrame: all of its columns, as an array would have them
        kinds = [_numpy_dtype(column) for column in columns]
        if any(kind is None or kind.hasobject for kind in kinds):
            return np.dtype(object)
        mixed = len(set(kinds)) > 1 and not all(kind.kind in "iufc" for kind in kinds if kind is not None)
        return np.dtype(object) if mixed else np.result_type(*kinds) if kinds else np.dtype(object)
    return None if dtype is None else _numpy_dtype(dtype)


def _numpy_dtype(dtype: Any) -> np.dtype[Any] | None:
    """Return a dtype of any library as one of NumPy; None if there is none."""
    if isinstance(dtype, np.dtype):
        return dtype
    for name in ("numpy_dtype", "as_numpy_dtype"):  # pandas' nullable ones, TensorFlow
        if (found := getattr(dtype, name, None)) is not None:
            numpy_dtype: np.dtype[Any] = np.dtype(found)
            return numpy_dtype
    # torch.float32, and Float64 of polars. np.dtype() itself takes a class that it does not know for object.
    scalar = np.sctypeDict.get(str(dtype).rpartition(".")[2].lower())
    return np.dtype(scalar) if scalar is not None and np.dtype(scalar).kind in "biufc" else None


def _is_in_fortran_order(like: Any) -> bool:
    """Whether the elements lie in Fortran order and not in C's, where anything says so."""
    if isinstance(like, np.ndarray):
        return like.flags.fnc
    strides = getattr(like, "stride", None)
    if callable(strides) and callable(getattr(like, "is_contiguous", None)):  # torch
        reverse = like.permute(*reversed(range(like.ndim)))
        return not like.is_contiguous() and reverse.is_contiguous()
    data = getattr(getattr(like, "variable", None), "_data", None)  # of a DataArray: `data` would load it
    flags = getattr(data if data is not None else like, "flags", None)
    return bool(getattr(flags, "f_contiguous", False)) and not getattr(flags, "c_contiguous", True)
