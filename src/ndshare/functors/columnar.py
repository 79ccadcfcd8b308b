"""Functors of columnar data: tables and arrays of Arrow, Parquet files, frames of polars, Awkward arrays.

::

    caller                                        worker
    ArrowFunctor(table) ── buffers, copied once ─► views of them
    PolarsFunctor(frame) ─ as an Arrow table ────► frame over the same buffers
    ParquetFunctor(path) ─ the path ─────────────► opens the file, reads one row group at a time
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any, Self

from ndshare.functors.base import Functor, imported, indices_of, is_instance
from ndshare.functors.sequences import SequenceFunctor

__all__ = ["ArrowFunctor", "AwkwardFunctor", "ParquetFunctor", "PolarsFunctor"]

#: So many rows are turned into Python objects at once.
_ROWS = 1024


class ArrowFunctor(Functor):
    """Functor of the rows of a `pyarrow.Table` or RecordBatch, or of the values of an Arrow array.

    Parameters
    ----------
    data : pyarrow.Table, RecordBatch, Array or ChunkedArray
        The kernel gets a row as a dict of Python values by column, as `to_pylist` makes it; of an array the
        scalar ``data[index]``. Buffers are not copied here, and once for all workers if they are not shared
        (`ndshare.share`).
    """

    def __init__(self, data: Any) -> None:
        if not _is_arrow(data):
            raise TypeError(f"ArrowFunctor: needs a table or array of pyarrow, got {type(data).__name__}")
        self.data = data

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept tables, record batches and arrays."""
        return cls(value) if _is_arrow(value) else None

    def __len__(self) -> int:
        return len(self.data)

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, row)``."""
        indices = indices_of(share, len(self.data))
        if not is_instance(self.data, "pyarrow", "Table", "RecordBatch"):
            yield from ((index, self.data[index]) for index in indices)
            return
        for block in _blocks(indices):
            rows = self.data.slice(block.start, block[-1] + 1 - block.start).to_pylist()
            yield from zip(block, rows[:: block.step], strict=True)


class PolarsFunctor(Functor):
    """Functor of the rows of a `polars.DataFrame`, or of the values of a Series.

    Parameters
    ----------
    data : polars.DataFrame or polars.Series
        The kernel gets a row as a dict of Python values by column, as ``row(index, named=True)``; of a Series
        the value ``data[index]``. With pyarrow installed the columns reach all workers by one copy; without,
        each worker has its own.
    """

    def __init__(self, data: Any) -> None:
        if not is_instance(data, "polars", "DataFrame", "Series"):
            raise TypeError(
                f"PolarsFunctor: needs a DataFrame or Series of polars, got {type(data).__name__}"
            )
        self.data = data

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept DataFrames and Series."""
        return cls(value) if is_instance(value, "polars", "DataFrame", "Series") else None

    def __len__(self) -> int:
        return len(self.data)

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, row)``."""
        indices = indices_of(share, len(self.data))
        if is_instance(self.data, "polars", "Series"):
            yield from ((index, self.data[index]) for index in indices)
            return
        for block in _blocks(indices):
            rows = self.data.slice(block.start, block[-1] + 1 - block.start).rows(named=True)
            yield from zip(block, rows[:: block.step], strict=True)

    def __getstate__(self) -> tuple[Any, str | None]:
        try:
            return self.data.to_arrow(), getattr(self.data, "name", "")
        except Exception:  # no pyarrow; Python objects in a column: polars pickles them
            return self.data, None

    def __setstate__(self, state: tuple[Any, str | None]) -> None:
        data, name = state
        if name is not None:
            data = importlib.import_module("polars").from_arrow(data)
            if is_instance(data, "polars", "Series"):
                data = data.alias(name)
        self.data = data


class ParquetFunctor(Functor):
    """Functor of the row groups of a Parquet file: the kernel gets ``(worker_id, index, table)``.

    Parameters
    ----------
    file : path-like or pyarrow.parquet.ParquetFile
        Each process opens the file by its path. That of a `ParquetFile` is looked up among the files that are
        open; give the path where it is not found.
    columns : list of str, optional
        Which columns are read; all by default.
    """

    def __init__(self, file: Any, columns: list[str] | None = None) -> None:
        from pyarrow import parquet

        if is_instance(file, "pyarrow.parquet", "ParquetFile"):
            self.path = _path_of(file)
            self.count = int(file.num_row_groups)
        else:
            self.path = os.path.abspath(file)
            self.count = int(parquet.read_metadata(self.path).num_row_groups)
        self.columns = columns

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept ParquetFiles."""
        return cls(value) if is_instance(value, "pyarrow.parquet", "ParquetFile") else None

    def __len__(self) -> int:
        return self.count

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, table)``."""
        from pyarrow import parquet

        indices = indices_of(share, self.count)
        if not indices:
            return
        with parquet.ParquetFile(self.path) as file:
            for index in indices:
                # No threads of Arrow's: there is a worker for each processor, and a forked one has none.
                yield index, file.read_row_group(index, columns=self.columns, use_threads=False)


class AwkwardFunctor(SequenceFunctor):
    """Functor of an Awkward array, entry by entry: the kernel gets ``(worker_id, index, array[index])``.

    Parameters
    ----------
    array : awkward.Array
        Entries are views; buffers are copied once for all workers if they are not shared (`ndshare.share`).
    """

    def __init__(self, array: Any) -> None:
        if not is_instance(array, "awkward", "Array"):
            raise TypeError(f"AwkwardFunctor: needs an awkward.Array, got {type(array).__name__}")
        super().__init__(array)

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept Awkward arrays."""
        return cls(value) if is_instance(value, "awkward", "Array") else None


def _is_arrow(value: Any) -> bool:
    return is_instance(value, "pyarrow", "Table", "RecordBatch", "Array", "ChunkedArray")


def _blocks(indices: range) -> Iterator[range]:
    for start in range(0, len(indices), _ROWS):
        yield indices[start : start + _ROWS]


def _path_of(file: Any) -> str:
    """Return the path of a ParquetFile, which keeps none: of the open file that has its footer."""
    parquet: Any = imported("pyarrow.parquet")
    for number in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{number}")
            if os.path.isfile(path) and parquet.read_metadata(path).equals(file.metadata):
                return path
        except Exception:  # closed meanwhile, or no Parquet file
            continue
    raise TypeError(
        "ParquetFunctor: the path of this ParquetFile is not to be found, so that workers cannot open it; "
        "give the path: ParquetFunctor(path)"
    )
