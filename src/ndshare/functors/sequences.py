"""Functors of what has a length and takes an index: sequences and NumPy arrays.

Guarantees
----------
* Nothing is copied: values of an array are views of it (scalars of a one-dimensional one excepted),
  and a shared array stays shared on its way to a worker, swapped axes included.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Self

import numpy as np

from ndshare.functors.base import Functor, indices_of, is_instance

__all__ = ["NdarrayFunctor", "SequenceFunctor", "TensorFunctor", "numbers_of", "values_of"]


def values_of(functor: Functor) -> Any:
    """Return the object whose item *i* is the value of entry *i*, or None if there is none.

    Parameters
    ----------
    functor : Functor
        What `find` returned.

    Returns
    -------
    object or None
        If it is not None, item *i* is exactly ``(i, values[i])`` for every *i* below ``len(functor)``, and
        the functor itself need not be asked. None for subclasses that iterate in their own way.
    """
    if not isinstance(functor, SequenceFunctor):
        return None
    kind = type(functor)
    is_plain = (
        kind.iterate is SequenceFunctor.iterate
        and kind.split is Functor.split
        and kind.__len__ is SequenceFunctor.__len__
    )
    return functor.sequence if is_plain else None


def numbers_of(functor: Functor) -> Any:
    """Return the range or the array without objects that is all there is to a functor, or None.

    A `SequenceFunctor` of it maps the same items.
    """
    values = values_of(functor)
    if type(values) is not range and (type(values) is not np.ndarray or values.dtype.hasobject):
        return None
    if not type(functor).__module__.startswith("ndshare."):  # those of others may pickle in their own way
        return None
    return values if len(vars(functor)) == 1 else None


class _Values:
    """`values_of` as an attribute that instances of subclasses may still set to their own ends."""

    def __get__(self, functor: Functor | None, owner: type | None = None) -> Any:
        if functor is None:
            return self
        values = values_of(functor)
        if values is None:
            raise AttributeError(f"{type(functor).__name__} has no values: it iterates in its own way")
        return values


class SequenceFunctor(Functor):
    """Functor of a sequence: the kernel gets ``(worker_id, index, sequence[index])``.

    Page: docs/functors.md.

    Parameters
    ----------
    sequence : sequence or array-like
        Anything that has a length and takes an index. Instances of `collections.abc.Sequence` (lists,
        tuples, ranges, strings, ...) are wrapped by themselves.

    Raises
    ------
    TypeError
        If it has no length or takes no index.

    Notes
    -----
    A sequence that is sent to workers is pickled once for all of them; arrays in it are copied once.

    Examples
    --------
    >>> import ndshare
    >>> list(ndshare.SequenceFunctor("abc").iterate(slice(1, 3)))
    [(1, 'b'), (2, 'c')]
    """

    sequence: Any
    values = _Values()

    def __init__(self, sequence: Any) -> None:
        kind = type(sequence)
        if kind is range:
            self.sequence = sequence
            return
        if isinstance(sequence, Mapping | AbstractSet) or not (
            hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
        ):
            raise TypeError(
                f"{type(self).__name__}: needs a sequence, which has a length and takes an index, got "
                f"{kind.__name__}; pass list(...) of it"
            )
        if getattr(sequence, "shape", None) == ():
            raise ValueError(
                f"{type(self).__name__}: got a {kind.__name__} of no dimensions, which has no items; "
                "give it an axis, as by np.atleast_1d"
            )
        self.sequence = sequence

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept instances of `collections.abc.Sequence`."""
        return cls(value) if isinstance(value, Sequence) else None

    def __len__(self) -> int:
        return len(self.sequence)

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, sequence[index])`` for the indices of a slice."""
        sequence = self.sequence
        for index in indices_of(share, len(sequence)):
            yield index, sequence[index]


class NdarrayFunctor(SequenceFunctor):
    """Functor of an array along one axis: the kernel gets views of it.

    Page: docs/functors.md.

    Parameters
    ----------
    array : numpy.ndarray or array-like
        Of at least one dimension.
    axis : int, optional
        The axis to map over, the first by default. It is *swapped* with the first one: for shape
        (2, 3, 4) and ``axis=2`` each of the 4 values has shape (3, 2). Something that is not an array is
        converted if this is given.

    Raises
    ------
    ValueError
        If the array has no such axis.

    Examples
    --------
    >>> import ndshare, numpy as np
    >>> functor = ndshare.NdarrayFunctor(np.zeros((2, 3, 4)), axis=2)
    >>> len(functor), functor.values[0].shape
    (4, (3, 2))
    """

    def __init__(self, array: Any, axis: int | None = None) -> None:
        if axis is not None:
            array = np.swapaxes(array, 0, _checked_axis(axis, np.ndim(array)))
        super().__init__(array)

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept NumPy arrays."""
        return cls(value) if isinstance(value, np.ndarray) else None


class TensorFunctor(SequenceFunctor):
    """Functor of a `torch.Tensor` along its first dimension: the kernel gets views, ``tensor[index]``.

    Parameters
    ----------
    tensor : torch.Tensor
        Of at least one dimension. One over shared memory (``torch.from_numpy(ndshare.zeros(...))``) is the
        same memory in a worker; others on the CPU are copied once for all workers.
    """

    def __init__(self, tensor: Any) -> None:
        if not is_instance(tensor, "torch", "Tensor"):
            raise TypeError(f"TensorFunctor: needs a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim == 0:
            raise ValueError("TensorFunctor: the tensor has no dimensions, and so no items; reshape it")
        self.sequence = tensor

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept tensors."""
        return cls(value) if is_instance(value, "torch", "Tensor") else None


def _checked_axis(axis: Any, ndim: int) -> int:
    try:
        number = operator.index(axis)
    except TypeError:
        raise TypeError(
            f"NdarrayFunctor: axis is {axis!r} ({type(axis).__name__}); give an integer or None"
        ) from None
    if not -ndim <= number < ndim:
        raise np.exceptions.AxisError(
            f"NdarrayFunctor: axis is {number}, but the array has {ndim} dimensions; allowed are {-ndim} to "
            f"{ndim - 1}"
        )
    return number
