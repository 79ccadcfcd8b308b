"""Functors of pandas objects: rows of a DataFrame, values of a Series or Index, groups of a ``groupby``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from ndshare.functors.base import Functor, imported, indices_of, is_instance
from ndshare.functors.sequences import SequenceFunctor

__all__ = ["DataFrameFunctor", "GroupByFunctor", "IndexFunctor", "SeriesFunctor"]


class DataFrameFunctor(Functor):
    """Functor of the rows of a `pandas.DataFrame`: the kernel gets each as a Series.

    Parameters
    ----------
    frame : pandas.DataFrame
        A row's ``name`` is its label. Rows of a frame whose columns differ in dtype are converted to
        a common one by pandas.
    """

    def __init__(self, frame: Any) -> None:
        if not is_instance(frame, "pandas", "DataFrame"):
            raise TypeError(f"DataFrameFunctor: needs a pandas.DataFrame, got {type(frame).__name__}")
        self.frame = frame

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept DataFrames."""
        return cls(value) if is_instance(value, "pandas", "DataFrame") else None

    def __len__(self) -> int:
        return len(self.frame)

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, frame.iloc[index])``."""
        rows = self.frame.iloc
        for index in indices_of(share, len(self.frame)):
            yield index, rows[index]


class SeriesFunctor(SequenceFunctor):
    """Functor of the values of a `pandas.Series`, in order; labels are left out.

    Parameters
    ----------
    series : pandas.Series
        Values are what ``series.iloc[index]`` gives.
    """

    def __init__(self, series: Any) -> None:
        if not is_instance(series, "pandas", "Series"):
            raise TypeError(f"SeriesFunctor: needs a pandas.Series, got {type(series).__name__}")
        super().__init__(_values_of(series))

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept Series."""
        return cls(value) if is_instance(value, "pandas", "Series") else None


class IndexFunctor(SequenceFunctor):
    """Functor of the labels of a `pandas.Index`, in order.

    Parameters
    ----------
    index : pandas.Index
        Values are what ``index[i]`` gives: tuples of a MultiIndex, Timestamps of a DatetimeIndex.
    """

    def __init__(self, index: Any) -> None:
        if not is_instance(index, "pandas", "Index"):
            raise TypeError(f"IndexFunctor: needs a pandas.Index, got {type(index).__name__}")
        if is_instance(index, "pandas", "RangeIndex"):
            super().__init__(range(index.start, index.stop, index.step))
        else:
            super().__init__(index if is_instance(index, "pandas", "MultiIndex") else _values_of(index))

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept every kind of Index."""
        return cls(value) if is_instance(value, "pandas", "Index") else None


def _values_of(labelled: Any) -> Any:
    """Return the values of a Series or Index as pandas itself gives them."""
    dtype = labelled.dtype
    # pandas has scalars of its own for times; others are NumPy's, and much faster from the array itself.
    plain = isinstance(dtype, np.dtype) and dtype.kind not in "mM"
    return labelled.to_numpy() if plain else labelled.array


class GroupByFunctor(Functor):
    """Functor of a pandas ``groupby`` or ``resample``: the kernel gets ``(worker_id, index, key, group)``.

    Parameters
    ----------
    groups : DataFrameGroupBy, SeriesGroupBy or Resampler
        Keys, groups and their order are those of a loop over it.

    Notes
    -----
    The data are copied once, sorted by group; groups are views of that copy. A frame in shared memory
    is therefore not shared through its groups.
    """

    def __init__(self, groups: Any) -> None:
        pandas: Any = imported("pandas")
        if not _is_groupby(groups):
            raise TypeError(
                f"GroupByFunctor: needs the result of a pandas groupby, got {type(groups).__name__}"
            )
        pairs = list(groups)
        self.keys = [key for key, _ in pairs]
        self.bounds = np.cumsum([0, *(len(group) for _, group in pairs)])
        filled = [group for _, group in pairs if len(group)]
        self.ordered: Any = pandas.concat(filled) if filled else pairs[0][1] if pairs else None

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept the results of ``groupby`` and ``resample``."""
        return cls(value) if _is_groupby(value) else None

    def __len__(self) -> int:
        return len(self.keys)

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, key, group)``."""
        for index in indices_of(share, len(self.keys)):
            start, stop = self.bounds[index : index + 2]
            yield index, self.keys[index], self.ordered.iloc[start:stop]


def _is_groupby(value: Any) -> bool:
    return is_instance(value, "pandas.api.typing", "DataFrameGroupBy", "SeriesGroupBy", "Resampler")
