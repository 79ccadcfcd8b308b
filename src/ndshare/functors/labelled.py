"""Functors of xarray's DataArray and Dataset, along one dimension."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Self

from ndshare.functors.base import Functor, indices_of, is_instance
from ndshare.functors.sequences import NdarrayFunctor, SequenceFunctor

__all__ = ["DataArrayFunctor", "DatasetFunctor"]


class DataArrayFunctor(NdarrayFunctor):
    """Functor of an `xarray.DataArray`: the kernel gets DataArrays with labels and coordinates.

    Page: docs/functors.md.

    Parameters
    ----------
    array : xarray.DataArray
        Of at least one dimension.
    dim : hashable, optional
        The dimension to map over, the first by default. It is moved to the front by a transpose: for
        dimensions (x, y, z) and ``dim="z"`` each value has dimensions (x, y).

    Raises
    ------
    ValueError
        If the array has no such dimension.
    """

    def __init__(self, array: Any, dim: Hashable | None = None) -> None:
        if not is_instance(array, "xarray", "DataArray"):
            raise TypeError(f"DataArrayFunctor: needs an xarray.DataArray, got {type(array).__name__}")
        if dim is not None:
            if dim not in array.dims:
                raise ValueError(
                    f"DataArrayFunctor: dim is {dim!r}, but the array has the dimensions {tuple(array.dims)}"
                )
            array = array.transpose(dim, ...)
        SequenceFunctor.__init__(self, array)

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept DataArrays."""
        return cls(value) if is_instance(value, "xarray", "DataArray") else None


class DatasetFunctor(Functor):
    """Functor of an `xarray.Dataset`: the kernel gets the Dataset at one position of a dimension.

    Parameters
    ----------
    dataset : xarray.Dataset
        Variables without that dimension are in every value.
    dim : hashable, optional
        The dimension to map over. By default the one that all variables with dimensions have first.

    Raises
    ------
    ValueError
        If there is no such dimension, or the variables begin with different ones and `dim` is not given.

    Examples
    --------
    >>> import xarray, numpy as np
    >>> from ndshare.functors import DatasetFunctor
    >>> runs = xarray.Dataset({"image": (("run", "x"), np.zeros((3, 5))), "dose": ("run", [1.0, 2.0, 3.0])})
    >>> [(i, float(run.dose)) for i, run in DatasetFunctor(runs).iterate(slice(1, 3))]
    [(1, 2.0), (2, 3.0)]
    """

    def __init__(self, dataset: Any, dim: Hashable | None = None) -> None:
        if not is_instance(dataset, "xarray", "Dataset"):
            raise TypeError(f"DatasetFunctor: needs an xarray.Dataset, got {type(dataset).__name__}")
        if dim is None:
            dim = _leading_dim(dataset)
        elif dim not in dataset.sizes:
            raise ValueError(
                f"DatasetFunctor: dim is {dim!r}, but the Dataset has the dimensions {tuple(dataset.sizes)}"
            )
        self.dataset = dataset
        self.dim = dim

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept Datasets."""
        return cls(value) if is_instance(value, "xarray", "Dataset") else None

    def __len__(self) -> int:
        return int(self.dataset.sizes[self.dim])

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, dataset.isel({dim: index}))``; its variables are views."""
        for index in indices_of(share, len(self)):
            yield index, self.dataset.isel({self.dim: index})


def _leading_dim(dataset: Any) -> Hashable:
    variables = dataset.data_vars if len(dataset.data_vars) else dataset.coords
    leading: list[Hashable] = list(dict.fromkeys(v.dims[0] for v in variables.values() if v.dims))
    if len(leading) == 1:
        return leading[0]
    if not leading:
        raise ValueError("DatasetFunctor: the Dataset has no dimension to map over")
    raise ValueError(
        f"DatasetFunctor: the variables begin with different dimensions, {leading}; choose one by "
        f"DatasetFunctor(dataset, dim={leading[0]!r})"
    )
