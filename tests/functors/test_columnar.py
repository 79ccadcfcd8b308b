"""Functors of columnar data and of tensors: Arrow, Parquet, polars, Awkward, torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare.functors import (
    ArrowFunctor,
    AwkwardFunctor,
    ParquetFunctor,
    PolarsFunctor,
    TensorFunctor,
    find,
)
from tests.functors.functor_tasks import entries, travelled

pytestmark = pytest.mark.once

TABLE = {"n": list(range(3000)), "text": [None, "b"] * 1500, "list": [[1], [], [2, 3]] * 1000}


def _check(obj: Any, kind: type, expected: list[Any]) -> None:
    """Compare entries with what is expected, here and at a receiver, in shares."""
    assert type(find(obj)) is kind
    for functor in (find(obj), travelled(find(obj))):
        assert len(functor) == len(expected)
        for start, stop in ((0, len(expected)), (1, 2), (2, 2)):
            assert entries(functor, start, stop) == list(enumerate(expected[start:stop], start))
        assert list(functor.iterate(slice(0, 9, 2))) == list(enumerate(expected))[0:9:2]


def test_arrow_tables_give_rows_and_arrays_scalars():
    """Rows are dicts of Python values."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table(TABLE)
    _check(table, ArrowFunctor, table.to_pylist())
    _check(table.to_batches()[0], ArrowFunctor, table.to_pylist())
    _check(table["text"], ArrowFunctor, list(table["text"]))
    _check(pa.array([1, None, 3]), ArrowFunctor, list(pa.array([1, None, 3])))
    _check(table.slice(5, 20), ArrowFunctor, table.to_pylist()[5:25])


def test_parquet_files_give_row_groups(tmp_path):
    """By path, or by an open file whose path is found."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    parquet.write_table(pa.table(TABLE), path, row_group_size=700)
    with parquet.ParquetFile(path) as file:
        groups = [file.read_row_group(number) for number in range(5)]
        _check(file, ParquetFunctor, groups)
        sums = ndshare.alloc(5)
        ndshare.ProcessContext(2).map(lambda w, i, t: sums.__setitem__(i, sum(t["n"].to_pylist())), file)
        assert sums.sum() == sum(TABLE["n"])
    (entry,) = entries(travelled(ParquetFunctor(path, ["n"])), 4, 5)
    assert entry[1].to_pydict() == {"n": TABLE["n"][2800:]}
    with pytest.raises(TypeError, match=r"give the path: ParquetFunctor\(path\)"):
        ParquetFunctor(parquet.ParquetFile(pa.BufferReader(path.read_bytes())))


def test_polars_frames_give_rows_and_series_values():
    """Rows are dicts; with pyarrow installed and without."""
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(TABLE, strict=False)
    _check(frame, PolarsFunctor, frame.rows(named=True))
    _check(frame["text"], PolarsFunctor, list(frame["text"]))
    assert travelled(find(frame["text"])).data.name == "text"


def test_awkward_arrays_give_entries():
    """Lists, records and numbers, by reference where they are shared."""
    ak = pytest.importorskip("awkward")
    lists = ak.Array([[1.5, 2.5], [], [3.5]] * 20)
    for functor in (find(lists), travelled(find(lists))):
        assert type(functor) is AwkwardFunctor
        assert [entry[1].tolist() for entry in entries(functor, 1, 3)] == [[], [3.5]]
    records = ak.Array([{"x": 1, "y": [1]}, {"x": 2, "y": []}])
    assert [entry[1].tolist() for entry in entries(travelled(find(records)))] == records.tolist()
    _check(ak.Array([1, 2, 3, 4, 5, 6, 7, 8, 9]), AwkwardFunctor, list(range(1, 10)))
    shared = ndshare.share(ak.Array(np.arange(30.0).reshape(10, 3)))
    assert all(ndshare.is_shared(ak.to_numpy(value)) for _, value in entries(travelled(find(shared))))
    counts = ndshare.alloc(60)
    ndshare.ProcessContext(2).map(lambda w, i, v: counts.__setitem__(i, len(v)), lists)
    assert counts.tolist() == [2, 0, 1] * 20


def test_tensors_of_torch_give_views():
    """Of shared memory where they are; a worker writes into it."""
    torch = pytest.importorskip("torch")
    array = ndshare.array(np.arange(12.0).reshape(4, 3))
    tensor = torch.from_numpy(array)
    functor = travelled(find(tensor))
    assert type(functor) is TensorFunctor
    assert all(torch.equal(value, tensor[index]) for index, value in entries(functor))
    ndshare.ProcessContext(2).map(lambda w, i, row: row.fill_(i), tensor)
    assert array[:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="the tensor has no dimensions"):
        find(torch.tensor(1.0))
