"""Functor of EXtra-data's objects, on files of its own making.

Each test runs in a process of its own: EXtra-data raises the limit of open files when it is imported.
"""

from __future__ import annotations

import importlib.util

import pytest

import ndshare
from ndshare.functors import ExtraDataFunctor

pytestmark = pytest.mark.once

_FILES = """
import gc, os, sys
import h5py
import numpy as np
import extra_data
from extra_data.tests import make_examples
import ndshare
from tests.functors.functor_tasks import entries, sums, travelled
from ndshare.functors import find

os.mkdir("run")
"""

_RUN = """
make_examples.make_fxe_run("run", raw=True)
for n in range(2, 16):
    os.remove(f"run/RAW-R0450-LPD{n:02}-S00000.h5")
with h5py.File("run/RAW-R0450-DA01-S00000.h5", "r+") as file:
    pixels = file["INSTRUMENT/FXE_XAD_GEC/CAM/CAMERA:daqOutput/data/image/pixels"]
    pixels[:, 0, 0] = np.arange(len(pixels))
    file["CONTROL/SA1_XTD2_XGM/DOOCS/MAIN/beamPosition/ixPos/value"][:400] = np.arange(400)
run = extra_data.RunDirectory("run", parallelize=False)
pixels = run["FXE_XAD_GEC/CAM/CAMERA:daqOutput", "data.image.pixels"]
position = run["SA1_XTD2_XGM/DOOCS/MAIN", "beamPosition.ixPos.value"]
"""


def _run(run_script, script: str) -> str:
    if importlib.util.find_spec("extra_data") is None:
        pytest.skip("EXtra-data is not installed")
    output: str = run_script(_FILES + script).stdout
    return output


def test_key_data_entries_are_those_of_extra_data(run_script):
    """Index, train id and data of every train, over the border of two files, here and in workers."""
    script = """
functor = find(position)
assert type(functor) is ndshare.ExtraDataFunctor and functor.n_trains == len(functor) == 480
expected = [(i, int(tid), data) for i, (tid, data) in enumerate(position.trains())]
assert len(expected) == 480
assert entries(functor) == expected
assert entries(functor, 395, 405) == expected[395:405]
assert list(functor.iterate(slice(0, 480, 100))) == expected[::100]
assert entries(functor, 7, 7) == []
assert all(type(train_id) is int for _, train_id, _ in entries(functor, 0, 3))

functor = find(pixels[10:20])
for index, train_id, data in entries(functor):
    assert train_id == 10010 + index and data.shape == pixels.entry_shape and data[0, 0] == 10 + index

with ndshare.ProcessPoolExecutor(2) as executor:
    futures = [executor.submit(entries, find(position), share.start, share.stop) for share in find(position).split(5)]
    assert [entry for future in futures for entry in future.result()] == expected
    got = executor.submit(sums, functor, 2, 4).result()
    assert [entry[:2] for entry in got] == [(2, 12), (3, 13)] and got[0][2] != os.getpid()
"""
    _run(run_script, _RUN + script)


def test_data_collection_entries_are_those_of_extra_data(run_script):
    """The data of a collection is a dict of dicts, for each train."""
    script = """
selection = run.select([("SA1_XTD2_XGM/DOOCS/MAIN", "beamPosition.*"), ("*CAMERA:daqOutput", "data.image.pixels")])
chosen = selection.select_trains(np.s_[390:410])

def simple(entry):
    index, train_id, data = entry
    return index, train_id, sorted(data), float(data["SA1_XTD2_XGM/DOOCS/MAIN"]["beamPosition.ixPos.value"]), \\
        int(data["FXE_XAD_GEC/CAM/CAMERA:daqOutput"]["data.image.pixels"].sum())

def simple_entries(functor, start, stop):
    return [simple(entry) for entry in functor.iterate(slice(start, stop))]

functor = find(chosen)
assert len(functor) == 20
expected = [simple((i, tid, data)) for i, (tid, data) in enumerate(chosen.trains())]
assert [entry[1] for entry in expected] == list(range(10390, 10410))
assert simple_entries(functor, 0, 20) == expected
with ndshare.ProcessPoolExecutor(2) as executor:
    assert executor.submit(simple_entries, functor, 0, 9).result() == expected[:9]
    assert executor.submit(simple_entries, functor, 9, 20).result() == expected[9:]
"""
    _run(run_script, _RUN + script)


def test_trains_without_data_keep_their_index(run_script):
    """Trains that a source lacks have None, and those behind them keep index and id."""
    script = """
empty = run["FXE_XAD_GEC/CAM/CAMERA_NODATA:daqOutput", "data.image.pixels"]
assert entries(find(empty[398:402])) == [(i, 10398 + i, None) for i in range(4)]

os.mkdir("gap")
make_examples.make_lpd_run_mini_missed_train("gap")
gap = extra_data.RunDirectory("gap", parallelize=False)
key = gap["FXE_DET_LPD1M-1/DET/1CH0:xtdf", "image.data"]
for functor in (find(key), travelled(find(key))):
    got = [(i, tid, data is None or int(data[8, 0, 0, 0])) for i, tid, data in entries(functor)]
    assert got == [(0, 10000, 1), (1, 10001, 2), (2, 10002, True), (3, 10003, 3), (4, 10004, 4)], got
assert entries(find(key), 2, 3) == [(2, 10002, None)]
whole = [(i, tid, sorted(len(keys) > 1 for keys in data.values())) for i, tid, data in entries(find(gap))]
assert whole == [(i, 10000 + i, [i != 2, True]) for i in range(5)], whole
nobody = find(key[:0])
assert len(nobody) == 0 and entries(nobody) == [] and entries(find(gap.select_trains(np.s_[:0]))) == []
"""
    _run(run_script, _RUN + script)


def test_trains_listed_out_of_order_are_found(run_script):
    """A file that lists its trains out of order loses none."""
    script = """
for file in run.files:
    file.close()
del run, pixels, position, file
gc.collect()  # a FileAccess that is still there would be found again, with the old index
os.remove("run/RAW-R0450-DA01-S00001.h5")
with h5py.File("run/RAW-R0450-DA01-S00000.h5", "r+") as file:
    ids = file["INDEX/trainId"]
    ids[3], ids[4] = ids[4], ids[3]
run = extra_data.RunDirectory("run", parallelize=False)
pixels = run["FXE_XAD_GEC/CAM/CAMERA:daqOutput", "data.image.pixels"]
got = [(i, tid, int(data[0, 0])) for i, tid, data in entries(find(pixels), 0, 7)]
assert got == [(i, 10000 + i, [0, 1, 2, 4, 3, 5, 6][i]) for i in range(7)], got
"""
    _run(run_script, _RUN + script)


def test_forked_child_opens_the_files_itself(run_script):
    """A child of a fork closes what it has inherited, once, and reads right."""
    script = """
functor = find(position[:50])
first = entries(functor)
files = functor.obj.files
functor.close()
assert files[0]._file is None and entries(functor) == first
opened = files[0]._file
pid = os.fork()
if pid == 0:
    status = 1
    try:
        right = entries(functor) == first
        anew = files[0]._file
        entries(functor, 0, 5)
        status = 0 if right and anew is not opened and files[0]._file is anew else 2
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert files[0]._file is opened and entries(functor) == first
"""
    _run(run_script, _RUN + script)


def test_functor_of_something_else_is_refused():
    """A list has no trains."""
    with pytest.raises(
        TypeError, match="needs a DataCollection, SourceData, KeyData or detector component, got list"
    ):
        ndshare.ExtraDataFunctor([1])
    assert ExtraDataFunctor.wrap([1]) is None


def test_sources_detectors_and_their_keys_are_mapped_by_trains(run_script):
    """SourceData, a detector component and one of its keys: what each has of a train, here and in workers."""
    script = """
import warnings
from extra_data.components import LPD1M
run = run.select_trains(np.s_[:8])
source = run["SA1_XTD2_XGM/DOOCS/MAIN"]
for functor in (find(source), travelled(find(source))):
    got = entries(functor)
    assert [entry[:2] for entry in got] == [(i, 10000 + i) for i in range(8)]
    for key in source.keys():
        expected = dict(source[key].trains())
        assert all(np.array_equal(data[key], expected[train]) for _, train, data in got)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the data are raw
    detector = LPD1M(run, min_modules=1)
expected = dict(detector.trains(require_all=False))
for functor in (find(detector), travelled(find(detector))):
    got = entries(functor, 2, 5)
    assert [entry[:2] for entry in got] == [(i, 10000 + i) for i in (2, 3, 4)]
    for _, train, data in got:
        assert data.keys() == expected[train].keys()
        assert all(data[key].identical(expected[train][key]) for key in data)
    functor.close()

images = detector["image.data"]
for functor in (find(images), travelled(find(images))):
    assert len(functor) == 8
    (entry,) = entries(functor, 3, 4)
    assert entry[:2] == (3, 10003) and entry[2].identical(images[3:4].xarray())
    functor.close()

few = images.select_pulses(np.s_[1:4])
for functor in (find(few), travelled(find(few))):
    (entry,) = entries(functor, 3, 4)
    assert entry[2].identical(few[3:4].xarray()) and entry[2].sizes["train_pulse"] == 3
    functor.close()

sizes = ndshare.alloc((3, 8))
with ndshare.ProcessPoolExecutor(1):
    context = ndshare.ProcessContext(2)
    context.map(lambda w, i, t, data: sizes.__setitem__((0, i), len(data)), source)
    context.map(lambda w, i, t, data: sizes.__setitem__((1, i), data["image.data"].size), detector)
    context.map(lambda w, i, t, data: sizes.__setitem__((2, i), data.size), images)
assert (sizes[0] == len(source.keys())).all() and (sizes[1] == sizes[2]).all() and sizes[2].min() > 0
"""
    _run(run_script, _RUN + script)
