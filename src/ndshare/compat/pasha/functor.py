"""pasha's functors: those of ndshare, in a registry of their own.

What a program registers by subclassing `Functor` here is asked first and alone, as pasha does; whatever
ndshare knows beyond (DataFrames, HDF5 datasets, generators, ...) is mapped if nobody here claims it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

import ndshare
from ndshare import functors
from ndshare.functors import gen_split_slices

__all__ = [
    "DataArrayFunctor",
    "ExtraDataFunctor",
    "Functor",
    "NdarrayFunctor",
    "SequenceFunctor",
    "gen_split_slices",
]


class Functor(ndshare.Functor):
    """Something that can be mapped over; subclassing registers, see `ndshare.Functor`.

    Notes
    -----
    Subclasses that define `split` and `iterate` only are mapped share by share. With a ``__len__`` and an
    `iterate` for any slice they are dealt out as workers ask for items.
    """

    _functor_types: ClassVar[list[type[Functor]]] = []  # type: ignore[assignment]

    @classmethod
    def try_wrap(cls, value: Any) -> Any:
        """Return the functor of an object.

        Parameters
        ----------
        value : object
            A functor; something with a method ``_pasha_functor_()`` that returns one; or what the `wrap` of
            exactly one registered class accepts.

        Returns
        -------
        Functor

        Raises
        ------
        ValueError
            If there is none, or more than one.
        """
        if isinstance(value, cls):
            return value
        kind = _OF_BUILTINS.get(id(type(value)))
        if kind is not None and Functor._functor_types == _OWN:  # what most maps are over
            return kind(value)
        if not isinstance(value, type) and hasattr(value, "_pasha_functor_"):
            return value._pasha_functor_()
        claimed = functors.claimed(value, Functor._functor_types)
        return functors.find(value) if claimed is None else claimed


class SequenceFunctor(ndshare.SequenceFunctor, Functor):
    """Functor of a sequence: the kernel gets ``(worker_id, index, value)``."""

    @classmethod
    def wrap(cls, value: Any) -> Any:
        """Accept instances of `collections.abc.Sequence`, strings and ranges among them."""
        return super().wrap(value)


class NdarrayFunctor(ndshare.NdarrayFunctor, SequenceFunctor):
    """Functor of an array along one axis, which is swapped with the first one."""

    @classmethod
    def wrap(cls, value: Any) -> Any:
        """Accept NumPy arrays."""
        return super().wrap(value)


class DataArrayFunctor(ndshare.DataArrayFunctor, NdarrayFunctor):
    """Functor of an `xarray.DataArray` along a dimension, by ``transpose(dim, ...)``."""

    @classmethod
    def wrap(cls, value: Any) -> Any:
        """Accept DataArrays."""
        return super().wrap(value)


class ExtraDataFunctor(ndshare.ExtraDataFunctor, Functor):
    """Functor of EXtra-data objects: the kernel gets ``(worker_id, index, train_id, data)``."""

    @classmethod
    def wrap(cls, value: Any) -> Any:
        """Accept DataCollection and KeyData."""
        return super().wrap(value)


_OF_BUILTINS: dict[int, Any] = {  # by id: a class may have no hash
    id(np.ndarray): NdarrayFunctor,
    **dict.fromkeys(map(id, (list, tuple, range)), SequenceFunctor),
}
_OWN = list(Functor._functor_types)  # nobody else has registered any
