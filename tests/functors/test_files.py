"""Functors of arrays in files: HDF5 and zarr."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py")

import h5py

import ndshare
from ndshare.functors import HDF5Functor, files, find
from tests.functors.functor_tasks import entries, sums, travelled

pytestmark = pytest.mark.once


@pytest.fixture
def data() -> np.ndarray:
    """Return what the files hold."""
    return np.arange(60.0).reshape(20, 3)


@pytest.fixture
def path(tmp_path: Path, data: np.ndarray) -> Path:
    """Return a file with some datasets."""
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["plain"] = data
        file.create_dataset("chunked", data=data, chunks=(7, 2), compression="gzip")
        file["deep/inside"] = data[:, 0]
        file["records"] = np.array([(1, 2.5), (3, 4.5)], "i4, f8")
        file["strings"] = ["a", "bc"]
        file.create_dataset("ragged", (3,), h5py.vlen_dtype("i4"))[:] = [
            np.arange(n, dtype="i4") for n in (2, 0, 1)
        ]
        file["empty"] = np.zeros((0, 4))
        file["one"] = [5]
        file["scalar"] = 3
        file["nothing"] = h5py.Empty("f8")
    return tmp_path / "data.h5"


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and bool(np.array_equal(a, b))


@pytest.mark.parametrize(
    "name", ["plain", "chunked", "deep/inside", "records", "strings", "ragged", "empty", "one"]
)
@pytest.mark.parametrize("slab_bytes", [1, 100, 4 << 20])
def test_dataset_entries_are_what_an_index_reads(path, name, slab_bytes, monkeypatch):
    """However much is read at once, values are those of dataset[i]."""
    monkeypatch.setattr(files, "_SLAB_BYTES", slab_bytes)
    with h5py.File(path, "r") as file:
        dataset = file[name]
        functor = find(dataset)
        assert type(functor) is HDF5Functor
        n = len(dataset)
        assert len(functor) == n
        for start, stop, step in ((0, n, 1), (1, 2, 1), (n // 2, n, 1), (3, 3, 1), (0, n, 3)):
            got = list(functor.iterate(slice(start, stop, step)))
            assert [index for index, _ in got] == list(range(*slice(start, stop, step).indices(n)))
            assert all(_same(value, dataset[index]) for index, value in got)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_dataset_travels_by_name_while_the_caller_has_it_open(path, data, mode):
    """A worker opens the file itself, also if the caller writes it, and sees what was written before."""
    with h5py.File(path, mode) as file, ndshare.ProcessPoolExecutor(1) as executor:
        dataset = file["deep"]["inside"]
        if mode == "r+":
            dataset[4] = 1000.0
            data[4, 0] = 1000.0
        functor = find(dataset)
        for start, stop in ((0, 5), (5, 20)):
            got = executor.submit(sums, functor, start, stop).result()
            assert [entry[:2] for entry in got] == [(i, data[i, 0]) for i in range(start, stop)]
            assert all(pid != os.getpid() for _, _, pid in got)


def test_dataset_is_opened_once_and_when_first_read(path):
    """Arrival opens nothing; shares after the first use what is open."""
    with h5py.File(path, "r") as file:
        functor = travelled(find(file["plain"]))
        assert functor._dataset is None
        assert len(functor) == 20
        entries(functor, 0, 1)
        opened = functor._dataset
        entries(functor, 1, 2)
        assert functor._dataset is opened
        assert opened.file.mode == "r"
        assert len(entries(travelled(functor), 0, 2)) == 2  # it travels further


def test_dataset_closed_by_its_reader_can_be_written(path):
    """A worker that gives its file back leaves no lock; it can read again later."""
    with h5py.File(path, "r") as file:
        functor = find(file["one"])
        back = travelled(functor)
        functor.close()  # the caller's file is the caller's
        assert entries(functor) == [(0, 5)]
    assert entries(back) == [(0, 5)]
    back.close()
    with h5py.File(path, "r+") as file:
        file["one"][0] = 6
    assert entries(back) == [(0, 6)]


def test_dataset_is_read_by_forked_children(run_script, path):
    """Children of a fork read what they have inherited, at the same time."""
    script = """
import os, sys
import h5py
from ndshare.functors import find

with h5py.File(sys.argv[1]) as file:
    functor = find(file["chunked"])
    expected = [value.tolist() for value in file["plain"]]
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for _ in range(50):
                    status = int([value.tolist() for _, value in functor.iterate(slice(None))] != expected)
                    if status:
                        break
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
"""
    run_script(script, str(path))


def test_dataset_of_a_file_opened_relatively_is_found_elsewhere(path, data, monkeypatch):
    """The name that travels is absolute."""
    monkeypatch.chdir(path.parent)
    with h5py.File("data.h5", "r") as file:
        functor = find(file["plain"])
        monkeypatch.chdir("/")
        assert np.array_equal([value for _, value in entries(travelled(functor))], data)


def test_dataset_read_with_another_locking_in_one_process(path):
    """Whichever way the kernel has opened the file, the functor opens it too."""
    with h5py.File(path, "r") as file:
        sent = find(file["one"])
        state = sent.__getstate__()
    for locking in (None, False):
        for opened in (None, False):
            functor = HDF5Functor.__new__(HDF5Functor)
            functor.__setstate__({**state, "_place": state["_place"]._replace(locking=locking)})
            with h5py.File(path, "r", locking=opened):
                assert entries(functor) == [(0, 5)]
            del functor


def test_dataset_in_a_link_to_another_file(path, data):
    """The file of the dataset travels, not the one it was reached through."""
    with h5py.File(path.with_name("link.h5"), "w") as file:
        file["there"] = h5py.ExternalLink(path.name, "/plain")
        assert np.array_equal([value for _, value in entries(travelled(find(file["there"])))], data)


def test_dataset_in_swmr_mode_can_be_read_meanwhile(tmp_path):
    """A writer in SWMR mode lets workers read."""
    with h5py.File(tmp_path / "swmr.h5", "w", libver="latest") as file:
        dataset = file.create_dataset("x", data=np.arange(4.0), maxshape=(None,))
        functor = find(dataset)
        with pytest.raises(TypeError, match=r"libver='latest'.*can be read by nobody else; .*swmr_mode"):
            travelled(functor)
        file.swmr_mode = True
        with ndshare.ProcessPoolExecutor(1) as executor:
            assert [entry[1] for entry in executor.submit(sums, functor).result()] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("opened", "text"),
    [
        (lambda path: h5py.File(path, "w", driver="core", backing_store=False), "driver 'core'"),
        (lambda path: h5py.File(io.BytesIO(), "w"), "driver 'fileobj'"),
    ],
    ids=["core", "fileobj"],
)
def test_dataset_in_memory_is_read_here_but_cannot_travel(tmp_path, opened, text):
    """What no other process can open is refused by name when it is pickled, not before."""
    with opened(tmp_path / "memory.h5") as file:
        file["x"] = [1, 2]
        functor = find(file["x"])
        assert entries(functor) == [(0, 1), (1, 2)]
        with pytest.raises(TypeError, match=rf"cannot send the dataset '/x' of .*{text}.*dataset\[:\]"):
            travelled(functor)


def test_dataset_that_cannot_be_found_cannot_travel(path):
    """No name, a closed file, or another file under the name."""
    with h5py.File(path, "r+") as file:
        with pytest.raises(TypeError, match="it has no name"):
            travelled(find(file.create_dataset(None, data=[1])))
        functor = find(file["plain"])
        os.replace(path, path.with_name("moved.h5"))
        with pytest.raises(TypeError, match="another file, or none, has that name now"):
            travelled(functor)
    with pytest.raises(TypeError, match="its file is closed"):
        travelled(functor)


def test_dataset_whose_file_vanishes_on_the_way(path):
    """The error in the worker names file and dataset."""
    with h5py.File(path, "r") as file:
        functor = travelled(find(file["plain"]))
    path.unlink()
    with pytest.raises(OSError, match=r"cannot open '.*data\.h5' to read '/plain': .*No such file"):
        entries(functor)


def test_dataset_bad_input_is_refused(path):
    """No dimensions, a closed file, no dataset."""
    with h5py.File(path, "r") as file:
        for name in ("scalar", "nothing"):
            with pytest.raises(ValueError, match=f"the dataset '/{name}' has no dimensions"):
                find(file[name])
        with pytest.raises(ValueError, match="no default functor"):
            find(file["deep"])
        closed = file["plain"]
    with pytest.raises(ValueError, match="the file of this dataset is closed"):
        find(closed)
    with pytest.raises(TypeError, match=r"needs an h5py.Dataset, got list"):
        HDF5Functor([1])


# ---- zarr: in a process of its own, because it starts threads and keeps them

_ZARR = """
import sys
import numpy as np
import zarr
import ndshare
from tests.functors.functor_tasks import entries, sums, travelled
from ndshare.functors import ZarrFunctor, files, find

data = np.arange(60.0).reshape(20, 3)
stores = {"file": sys.argv[1] + "/a.zarr", "memory": zarr.storage.MemoryStore()}
for store in stores.values():
    array = zarr.create_array(store, shape=data.shape, chunks=(7, 2), dtype="f8")
    array[:] = data
    functor = find(array)
    assert type(functor) is ZarrFunctor and len(functor) == 20
    for slab_bytes in (1, 100, 1 << 20):
        files._SLAB_BYTES = slab_bytes
        for some in (functor, travelled(functor)):
            assert all(np.array_equal(value, data[index]) for index, value in entries(some))
            assert [index for index, _ in entries(some, 3, 9)] == list(range(3, 9))
    with ndshare.ProcessPoolExecutor(1) as executor:
        got = executor.submit(sums, functor, 5, 8).result()
    assert [entry[:2] for entry in got] == [(i, data[i].sum()) for i in (5, 6, 7)], got

for shape, chunks in (((0, 2), (1, 2)), ((1,), (1,))):
    assert len(entries(find(zarr.zeros(shape=shape, chunks=chunks, dtype="i4")))) == shape[0]
for make, error in ((lambda: find(zarr.zeros(shape=(), dtype="i4")), ValueError), (lambda: ZarrFunctor([1]), TypeError)):
    try:
        make()
    except error as refused:
        print(refused)
"""


def test_zarr_array_entries_and_travel(run_script, tmp_path):
    """Arrays in files and in memory, here and in a worker; what has no items is refused."""
    pytest.importorskip("zarr", reason="zarr is not installed", exc_type=ImportError)
    done = run_script(_ZARR, str(tmp_path))
    assert "ZarrFunctor: the array has no dimensions" in done.stdout
    assert "ZarrFunctor: needs a zarr.Array, got list" in done.stdout
