"""Every kind of collection, mapped in every context: the same entries as when it is iterated over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare.functors import find

pytestmark = pytest.mark.once

_CONTEXTS: dict[str, Callable[[], ndshare.MapContext]] = {
    "serial": ndshare.SerialContext,
    "threads": lambda: ndshare.ThreadContext(2),
    "pool": lambda: ndshare.ProcessContext(2),
    "fork": lambda: ndshare.ProcessContext(2, start="fork"),
}


def _structured(_tmp: Path) -> Any:
    table = np.zeros(13, [("id", "i8"), ("position", "f4", (2,))])
    table["id"] = np.arange(13) ** 2
    return table


def _fortran(_tmp: Path) -> Any:
    return np.asfortranarray(np.arange(60.0).reshape(12, 5))


def _along_axis(_tmp: Path) -> Any:
    return ndshare.NdarrayFunctor(np.arange(24.0).reshape(2, 3, 4), axis=2)


def _shared(_tmp: Path) -> Any:
    return ndshare.share(np.arange(40.0).reshape(20, 2))


def _text(_tmp: Path) -> Any:
    return ["a.h5", "bb.h5", "ccc.h5"]


def _data_array(_tmp: Path) -> Any:
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(np.arange(24.0).reshape(2, 3, 4), dims=("x", "y", "z"))
    return ndshare.DataArrayFunctor(array, dim="z")


def _dataset(_tmp: Path) -> Any:
    xarray = pytest.importorskip("xarray")
    return xarray.Dataset({"a": ("t", np.arange(7)), "b": (("t", "y"), np.ones((7, 2)))})


def _frame(_tmp: Path) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"n": np.arange(9), "x": np.arange(9) / 2})


def _groups(_tmp: Path) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"n": np.arange(9) % 4, "x": np.arange(9) / 2}).groupby("n")


def _hdf5(tmp: Path) -> Any:
    h5py = pytest.importorskip("h5py")
    file = h5py.File(tmp / "images.h5", "w")
    return file.create_dataset("images", data=np.arange(90.0).reshape(15, 3, 2))


_COLLECTIONS = (
    _structured, _fortran, _along_axis, _shared, _text, _data_array, _dataset, _frame, _groups, _hdf5,
)  # fmt: skip


def _number(value: Any) -> float:
    """Something that depends on all of a value."""
    if isinstance(value, str):
        return float(len(value))
    if isinstance(value, np.void):
        return float(value["id"])
    if hasattr(value, "data_vars"):
        return sum(float(value[name].sum()) for name in value.data_vars)
    return float(np.asarray(value, float).sum())


@pytest.mark.parametrize("where", sorted(_CONTEXTS))
@pytest.mark.parametrize("make", _COLLECTIONS, ids=lambda make: make.__name__.strip("_"))
def test_entries_are_those_of_the_functor(make: Callable[[Path], Any], where: str, tmp_path: Path) -> None:
    """Index and value of each item, in serial, threads and processes."""
    collection = make(tmp_path)
    functor = find(collection)
    expected = [(entry[0], _number(entry[-1])) for entry in functor.iterate(slice(0, len(functor)))]
    context = _CONTEXTS[where]()
    out = context.alloc((len(expected), 2))

    def kernel(_worker_id: int, index: int, *entry: Any) -> None:
        out[index] = index, _number(entry[-1])

    context.map(kernel, collection)
    assert [tuple(row) for row in out] == expected
    if hasattr(collection, "file"):
        collection.file.close()


_TRAINS = """
import sys
from pathlib import Path
import numpy as np, ndshare, extra_data
from extra_data.tests import make_examples
folder = Path(sys.argv[1])
make_examples.make_fxe_run(str(folder))
run = extra_data.RunDirectory(str(folder))
source, key = "SA1_XTD2_XGM/DOOCS/MAIN:output", "data.intensityTD"
one = run[source, key]
selection = run.select([(source, key), ("SPB_XTD9_XGM/DOOCS/MAIN", "beamPosition.ixPos.value")])
contexts = [ndshare.SerialContext(), ndshare.ThreadContext(2), ndshare.ProcessContext(2),
            ndshare.ProcessContext(2, start="fork")]
for context in contexts:
    n = len(run.train_ids)
    trains, sums = context.alloc(n, np.uint64), context.alloc(n)
    def of_key(worker_id, index, train_id, data):
        trains[index] = train_id
        sums[index] = data.sum()
    context.map(of_key, one)
    expected = [(train_id, data.sum()) for train_id, data in one.trains()]
    assert trains.tolist() == [int(train_id) for train_id, _ in expected], context
    assert np.array_equal(sums, [total for _, total in expected]), context
    trains[:] = sums[:] = 0
    def of_run(worker_id, index, train_id, data):
        trains[index] = train_id
        sums[index] = data[source][key].sum()
    context.map(of_run, selection)
    assert trains.tolist() == [int(train_id) for train_id in run.train_ids], context
    assert np.array_equal(sums, [total for _, total in expected]), context
    assert len(np.unique(trains)) == n
print("ok")
"""


def test_trains_of_extra_data_are_mapped_in_processes(run_script, tmp_path: Path) -> None:
    """KeyData and DataCollection of files that EXtra-data itself has made: right train ids and data."""
    pytest.importorskip("extra_data", reason="not installable on this Python")
    (tmp_path / "run").mkdir()
    assert run_script(_TRAINS, str(tmp_path / "run")).stdout.endswith("ok\n")


_ZARR = """
import sys
import numpy as np, ndshare, zarr
array = zarr.create_array(sys.argv[1], shape=(30, 4), chunks=(7, 4), dtype="f8")
array[:] = np.arange(120.0).reshape(30, 4)
for context in (ndshare.SerialContext(), ndshare.ThreadContext(2), ndshare.ProcessContext(2)):
    sums = context.alloc(30)
    def kernel(worker_id, index, value):
        sums[index] = value.sum()
    context.map(kernel, array)
    assert np.array_equal(sums, array[:].sum(axis=1)), context
print("ok")
"""


def test_zarr_arrays_are_mapped_in_processes(run_script, tmp_path: Path) -> None:
    """Workers open the store themselves. In a process of its own, as zarr keeps threads."""
    pytest.importorskip("zarr", reason="not installable on this Python")
    assert run_script(_ZARR, str(tmp_path / "store.zarr")).stdout.endswith("ok\n")
