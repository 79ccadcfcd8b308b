"""Functors of xarray's DataArray and Dataset: along one dimension, by groups, by windows."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Self

from ndshare.functors.base import Functor, indices_of, is_instance
from ndshare.functors.sequences import NdarrayFunctor, SequenceFunctor

__all__ = ["DataArrayFunctor", "DatasetFunctor", "RollingFunctor", "XarrayGroupByFunctor"]


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


class XarrayGroupByFunctor(Functor):
    """Functor of xarray's ``groupby``, ``groupby_bins`` and ``resample``, group by group.

    Parameters
    ----------
    groups : DataArrayGroupBy, DatasetGroupBy, DataArrayResample or DatasetResample
        The kernel gets ``(worker_id, index, key, group)``. Keys, groups and their order are those of a loop.

    Notes
    -----
    What is grouped travels whole, by reference where it is shared, and each group is taken from it where it
    is needed: a view if the group is one stretch, else a copy of the group.
    """

    def __init__(self, groups: Any) -> None:
        if not _is_grouped(groups):
            raise TypeError(f"XarrayGroupByFunctor: needs a groupby of xarray, got {type(groups).__name__}")
        positions = groups.groups
        self.keys = list(positions)
        self.positions = [_as_slice(where) for where in positions.values()]
        self.grouped = groups._obj
        self.dim = groups._group_dim

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept groupby and resample objects."""
        return cls(value) if _is_grouped(value) else None

    def __len__(self) -> int:
        return len(self.keys)

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, key, group)``."""
        for index in indices_of(share, len(self.keys)):
            yield index, self.keys[index], self.grouped.isel({self.dim: self.positions[index]})


class RollingFunctor(Functor):
    """Functor of xarray's ``rolling`` over one dimension, window by window.

    Parameters
    ----------
    rolling : DataArrayRolling or DatasetRolling
        The kernel gets ``(worker_id, index, label, window)``, as a loop does: windows at the ends are
        shorter, and what has fewer than `min_periods` values is NaN. One with enough values is a view.

    Raises
    ------
    ValueError
        If it rolls over several dimensions.
    """

    def __init__(self, rolling: Any) -> None:
        if not _is_rolling(rolling):
            raise TypeError(f"RollingFunctor: needs a rolling of xarray, got {type(rolling).__name__}")
        if len(rolling.dim) != 1:
            raise ValueError(f"RollingFunctor: windows over {tuple(rolling.dim)}; roll over one dimension")
        self.dim = rolling.dim[0]
        self.rolled = rolling.obj
        self.window = int(rolling.window[0])
        self.ahead = (self.window + 1) // 2 if rolling.center[0] else 1
        self.least = rolling.min_periods

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept the results of ``rolling``."""
        return cls(value) if _is_rolling(value) else None

    def __len__(self) -> int:
        return int(self.rolled.sizes[self.dim])

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, label, window)``."""
        labels = self.rolled[self.dim]
        for index in indices_of(share, len(self)):
            stop = index + self.ahead
            window = self.rolled.isel({self.dim: slice(max(0, stop - self.window), stop)})
            counts = window.count(dim=[self.dim])
            enough = counts >= self.least
            complete = enough.all() if is_instance(enough, "xarray", "DataArray") else enough.to_array().all()
            yield index, labels[index], window if bool(complete) else window.where(enough)


def _is_grouped(value: Any) -> bool:
    return is_instance(value, "xarray.core.groupby", "GroupBy")  # that of `resample` is one, too


def _is_rolling(value: Any) -> bool:
    return any(
        is_instance(value, module, "DataArrayRolling", "DatasetRolling")
        for module in ("xarray.computation.rolling", "xarray.core.rolling")  # where it was before
    )


def _as_slice(positions: Any) -> Any:
    """Return positions that are one stretch as a slice: xarray gives views for these."""
    if isinstance(positions, slice) or not len(positions):
        return positions
    first, last = positions[0], positions[-1]
    is_stretch = last - first == len(positions) - 1 and list(positions) == list(range(first, last + 1))
    return slice(first, last + 1) if is_stretch else positions


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
