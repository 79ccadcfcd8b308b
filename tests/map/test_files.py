"""Arrays from `alloc` that are files: every context writes them, and they may be larger than memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._map import mapping


@pytest.fixture(params=["serial", "threads", "pool", "fork", pytest.param("cluster", marks=pytest.mark.once)])
def context(request: pytest.FixtureRequest) -> Iterator[ndshare.MapContext]:
    """Yield each kind of context."""
    if request.param == "cluster":
        with ProcessPoolExecutor(1) as engine, ndshare.ClusterContext(engine, workers_per_node=2) as cluster:
            yield cluster
    elif request.param in ("serial", "threads"):
        yield ndshare.SerialContext() if request.param == "serial" else ndshare.ThreadContext(2)
    else:
        yield ndshare.ProcessContext(2, start=request.param)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", ["a.npy", "a.bin"])
def test_every_context_writes_the_file(
    context: ndshare.MapContext, order: Any, name: str, tmp_path: Path
) -> None:
    """NumPy reads what kernels wrote; a second map, and a second array on the file, go on with it."""
    path = tmp_path / name
    out = context.alloc((50, 3), np.float32, order=order, path=path)
    assert out.flags[f"{order}_CONTIGUOUS"]
    assert not out.any()
    for first in (1, 100):

        def kernel(_w: int, i: int, v: int, first: int = first) -> None:
            out[i] = v + first

        context.map(kernel, range(50))
        read = (
            np.load(path) if name == "a.npy" else np.fromfile(path, np.float32).reshape((50, 3), order=order)
        )
        assert np.array_equal(read, out)
        assert read[:, 2].tolist() == list(range(first, first + 50))
    again = context.alloc((50, 3), np.float32, order=order, path=path, mode="r+")
    again[3] = -1
    assert out[3].tolist() == [-1, -1, -1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [name]


def test_file_is_sparse_until_it_is_written(tmp_path: Path) -> None:
    """A file of a gigabyte takes a few pages after a map that writes to a few items."""
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 2 << 30:
        pytest.skip("the disk is too full")
    context = ndshare.ProcessContext(2)
    out = context.alloc((1024, 1 << 17), path=tmp_path / "out.npy")

    def kernel(_w: int, i: int, _v: int) -> None:
        if i % 500 == 7:
            out[i, 5] = i

    context.map(kernel, range(1024))
    assert (tmp_path / "out.npy").stat().st_blocks * 512 < 16 << 20
    assert out[507, 5] == 507


def test_map_over_three_times_the_memory_limit(run_script, tmp_path: Path) -> None:
    """Input and output are files, each three times of what the program may use, which refuses as much memory."""
    run_script(
        f"""
import numpy as np, ndshare
source = np.lib.format.open_memmap({str(tmp_path / "in.npy")!r}, "w+", np.float64, (96, 1 << 17))
for row in range(96):
    source[row] = row
try:
    ndshare.alloc(source.shape)
except ndshare.CapacityError:
    pass
else:
    raise AssertionError("there was room")
context = ndshare.ProcessContext(2)
out = context.alloc(like=source, path={str(tmp_path / "out.npy")!r})
def kernel(worker_id, index, row):
    out[index] = row * 2
context.map(kernel, source)
assert (np.load({str(tmp_path / "out.npy")!r}, mmap_mode="r")[:, ::1000].T == np.arange(96) * 2).all()
""",
        NDSHARE_MEMORY_LIMIT="32M",
    )


def test_modes(tmp_path: Path) -> None:
    """What exists is refused unless the mode says what is to become of it."""
    path = tmp_path / "a.npy"
    with pytest.raises(FileNotFoundError):
        ndshare.alloc(3, path=path, mode="r+")
    first = ndshare.alloc(3, int, path=path, fill=7, mode="a")
    with pytest.raises(FileExistsError, match="mode='a' goes on with it"):
        ndshare.alloc(3, int, path=path)
    assert ndshare.alloc(3, int, path=path, fill=9, mode="a").tolist() == [7, 7, 7]
    same = ndshare.alloc(path=path, mode="r+")
    assert (same.dtype, same.tolist()) == (np.dtype(int), [7, 7, 7])
    for wrong in ({"shape": 4, "dtype": int}, {"shape": 3, "dtype": float}):
        with pytest.raises(ValueError, match=r"holds an array of shape \(3,\), dtype int64"):
            ndshare.alloc(**wrong, path=path, mode="a")
    other = ndshare.alloc(4, path=path, mode="w", fill=1)
    assert first.tolist() == [7, 7, 7]  # what was mapped stays what it was
    assert np.load(path).tolist() == other.tolist() == [1, 1, 1, 1]
    (tmp_path / "b.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"is no \.npy file"):
        ndshare.alloc(3, path=tmp_path / "b.npy", mode="r+")
    (tmp_path / "c.bin").write_bytes(bytes(23))
    with pytest.raises(ValueError, match=r"has 23 bytes, and .* take 24"):
        ndshare.alloc(3, path=tmp_path / "c.bin", mode="r+")


def test_refusals(tmp_path: Path) -> None:
    """A sentence for what cannot be; nothing is left of it."""
    with pytest.raises(ValueError, match="allowed are 'x', 'w', 'r\\+' and 'a'"):
        ndshare.alloc(3, path=tmp_path / "a", mode="c")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give its path as well"):
        ndshare.alloc(3, mode="a")
    with pytest.raises(TypeError, match="Python objects"):
        ndshare.alloc(3, object, path=tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        ndshare.alloc(3, path=tmp_path / "nowhere" / "a")
    with pytest.raises(ndshare.CapacityError, match="file system of"):
        ndshare.alloc(1 << 56, np.uint8, path=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_layouts_that_numpy_reads(tmp_path: Path) -> None:
    """No elements, one, fields, times, text, subarrays, rows per worker and per block."""
    context = ndshare.ProcessContext(2)
    fields = [("a", "u1"), ("b", ">f8", (2,))]
    for number, (shape, dtype) in enumerate(
        [(0, "f8"), ((), "f8"), ((2, 0), "i4"), (3, fields), (3, "M8[s]"), (3, "U5"), (3, ("f4", (2, 2)))]
    ):
        path = tmp_path / f"{number}.npy"
        made = context.alloc(shape, dtype, path=path)
        plain = np.zeros(shape, dtype)
        assert (made.shape, made.dtype) == (plain.shape, plain.dtype)
        assert np.array_equal(np.load(path), plain)
        opened = context.alloc(shape, dtype, path=path, mode="r+")
        assert (opened.shape, opened.dtype) == (plain.shape, plain.dtype)
    rows = context.alloc(3, int, order="F", per_worker=True, path=tmp_path / "rows.npy")
    blocks = context.alloc((20, 2), int, per_block=5, path=tmp_path / "blocks.npy")

    def kernel(w: int, i: int, _v: int) -> None:
        rows[:, w] += 1
        blocks[i // 5] += 1

    context.map(kernel, range(20))
    assert (
        np.load(tmp_path / "rows.npy").sum(axis=1).tolist() == [20, 20, 20] == context.reduce(rows).tolist()
    )
    assert (np.load(tmp_path / "blocks.npy") == 5).all()


def test_files_are_flushed_at_the_end_of_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the kernel uses, after an error as well."""
    flushed: list[Any] = []
    monkeypatch.setattr(mapping, "flush", flushed.append)
    out, other = (ndshare.alloc(9, path=tmp_path / name) for name in ("a", "b"))

    def kernel(_w: int, i: int, _v: int) -> None:
        out[i] = 1 / (i - 8)

    context = ndshare.SerialContext()
    context.map(kernel, range(8))
    with pytest.raises(ZeroDivisionError):
        context.map(kernel, range(9))
    assert [array is out for array in flushed] == [True, True]
    assert not other.any()


def test_deleted_file_is_gone_with_its_arrays(tmp_path: Path) -> None:
    """Nobody keeps a mapping of it for later: the disk has its room again."""
    context = ndshare.ProcessContext(1)
    path = tmp_path / "out"
    out = context.alloc(1 << 20, np.uint8, path=path)

    def kernel(out: Any, _w: int, i: int, v: int) -> None:
        out[i] = v

    context.map(functools.partial(kernel, out), [1] * 9)
    path.unlink()
    assert out[:10].tolist() == [1] * 9 + [0]
    context.map(functools.partial(kernel, out), [2] * 9)  # it has no name, and is still the same
    assert out[:10].tolist() == [2] * 9 + [0]
    del out, context
    ndshare.shutdown()
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read()
