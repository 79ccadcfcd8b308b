"""Shares respect the chunks of files: no two workers write rows of one chunk."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import ndshare
from ndshare._map.alignment import block_of_items

pytestmark = pytest.mark.once


def _plain(w, i, v):
    pass


def _borders(report: ndshare.MapReport) -> set[int]:
    """Return where shares began."""
    return {start for worker in report.workers for start, _, _, _ in worker.timeline}


@pytest.mark.parametrize("start", ["pool", "fork"])
def test_shares_begin_at_multiples(start):
    """Of a number, of chunks, of several; whatever size shares would have."""
    h5py = pytest.importorskip("h5py")
    context = ndshare.ProcessContext(2, start=start)
    with h5py.File("unused", "w", driver="core", backing_store=False) as file:
        chunked = file.create_dataset("a", (50, 4), "f8", chunks=(6, 2))
        plain = file.create_dataset("b", (50, 4), "f8")
        for align, step in ((7, 7), (np.int64(7), 7), (chunked, 6), ([chunked, 4], 12), (plain, 1)):
            for options in ({}, {"shares": 9}):
                report = context.map(_plain, range(50), align=align, trace=True, **options)
                assert report.done.all()
                assert all(border % step == 0 for border in _borders(report))


def test_items_along_another_axis_have_its_chunks():
    """And of shards, not of the chunks in them; irregular chunks are refused."""
    array = SimpleNamespace(shape=(50, 40), chunks=(6, 8), shards=None)
    assert block_of_items(_plain, array, 40) == 8
    assert block_of_items(_plain, array, 50) == 6
    assert block_of_items(_plain, array, 13) == 6
    assert block_of_items(_plain, SimpleNamespace(shape=(50,), chunks=(5,), shards=(10,)), 50) == 10
    assert block_of_items(_plain, SimpleNamespace(shape=(10,), chunks=((4, 4, 2),)), 10) == 4
    with pytest.raises(ValueError, match="chunks of different lengths"):
        block_of_items(_plain, SimpleNamespace(shape=(10,), chunks=((4, 1, 5),)), 10)


@pytest.mark.parametrize(
    "context", [ndshare.SerialContext(), ndshare.ThreadContext(2), ndshare.ProcessContext(2)]
)
def test_generators_are_cut_at_multiples_as_well(context):
    """Batches hold whole ones."""
    report = context.map(_plain, (n for n in range(100)), align=8, trace=True)
    assert report.items == 100
    assert all(border % 8 == 0 for border in _borders(report))


class _Shares(ndshare.Functor):
    def split(self, _):
        return [0, 1]

    def iterate(self, share):
        yield share, share


@pytest.mark.parametrize(
    ("align", "error"),
    [("abc", TypeError), (1.5, TypeError), (0, ValueError), ([3, None], TypeError), (np.zeros(3), TypeError)],
)
def test_what_says_nothing_about_chunks_is_refused(align, error):
    """By what was got and what is allowed."""
    with pytest.raises(error, match="align"):
        ndshare.SerialContext().map(_plain, range(3), align=align)


def test_functor_with_shares_of_its_own_cannot_be_aligned():
    """Its items have no numbers."""
    with pytest.raises(ValueError, match="_Shares does not say how many items it has"):
        ndshare.SerialContext().map(_plain, _Shares(), align=4)


_ZARR = """
import sys, time
import numpy as np, ndshare, zarr

def made(name, **options):
    return zarr.create_array(f"{sys.argv[1]}/{name}", shape=(40, 3), dtype="f8", **options)

plain, sharded, listed = made("a", chunks=(7, 3)), made("b", chunks=(2, 3), shards=(10, 3)), [made("c", chunks=(16, 1))]

def to_plain(w, i, v):
    time.sleep(0.002)
    plain[i] = i + 1

def to_sharded(w, i, v):
    sharded[i] = i + 1

def to_listed(w, i, v):
    listed[0][i] = i + 1

group = zarr.open_group(f"{sys.argv[1]}/g", mode="w")
grouped = group.create_array("d", shape=(40, 3), dtype="f8", chunks=(9, 3))
group.create_array("other", shape=(5,), dtype="f8", chunks=(2,))

def to_group(w, i, v):
    group["d"][i] = i + 1

class Writer:
    def __init__(self, target):
        self.target = target
    def write(self, w, i, v):
        self.target[i] = i + 1

expected = np.repeat(np.arange(1.0, 41.0)[:, None], 3, axis=1)
for context in (ndshare.ThreadContext(4), ndshare.ProcessContext(4)):
    for target, kernel in ((plain, to_plain), (sharded, to_sharded), (listed[0], to_listed), (grouped, to_group), (plain, Writer(plain).write)):
        target[:] = 0
        context.map(kernel, range(40))
        assert np.array_equal(target[:], expected), (context, kernel, target[:, 0])
        target[:] = 0
        context.map(kernel, (n for n in range(40)))
        assert np.array_equal(target[:], expected), (context, kernel, target[:, 0])
path = f"{sys.argv[1]}/a"
def by_name(w, i, v):
    time.sleep(0.002)
    zarr.open_array(path, mode="r+")[i] = i + 1
plain[:] = 0
ndshare.ProcessContext(4).map(by_name, range(40), align=plain)
assert np.array_equal(plain[:], expected)
print("ok")
"""


_IN_MEMORY = """
import warnings
import numpy as np, ndshare, zarr
array = zarr.create_array({}, shape=(8,), chunks=(2,), dtype="f8")
array[:] = 0
def writes(w, i, v):
    array[i] = i + 1
def reads(w, i, v):
    array[i]
for start in ("pool", "fork"):
    for kernel in (writes, reads):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ndshare.ProcessContext(2, start=start).map(kernel, range(8))
        print(start, kernel.__name__, sorted({(w.message.name.partition(".")[0], w.message.what) for w in seen}))
"""


def test_writes_to_a_zarr_array_in_memory_are_told(run_script):
    """Each worker has a copy; one that is only read is not named."""
    pytest.importorskip("zarr", reason="not installable on this Python")
    assert run_script(_IN_MEMORY).stdout.splitlines() == [
        "pool writes [('array', 'MemoryStore')]",
        "pool reads []",
        "fork writes [('array', 'MemoryStore')]",
        "fork reads []",
    ]


def test_rows_of_zarr_arrays_are_all_kept(run_script, tmp_path):
    """Captured, in a list, in a group, behind ``self``; sharded; opened by name in the kernel and given as `align`."""
    pytest.importorskip("zarr", reason="not installable on this Python")
    assert run_script(_ZARR, str(tmp_path)).stdout.endswith("ok\n")
