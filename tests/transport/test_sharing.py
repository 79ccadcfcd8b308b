"""Moving the _arrays of anything into shared memory."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("scipy")
pytest.importorskip("xarray")

import pandas as pd
import scipy.sparse
import xarray as xr

from ndshare import _arrays
from ndshare._memory.segments import is_shared
from ndshare._transport.sharing import share


@dataclasses.dataclass
class Run:
    """A typical holder of _arrays."""

    name: str
    data: Any
    function: Callable[[Any], Any] = abs
    parts: list[Any] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize("mode", ["rw", "r"])
def test_share_array_moves_it(mode: Any) -> None:
    """Equal, shared, in the same layout; the second time it is the same object."""
    for array in (np.arange(6.0), np.array(3), np.zeros((0, 5)), np.asfortranarray(np.ones((3, 4)))[:, ::2]):
        shared = share(array, mode)
        assert is_shared(shared) or not array.size
        assert (shared == array).all()
        assert shared.dtype == array.dtype
        assert shared.flags.writeable == (mode == "rw") or not array.size
        assert share(shared, mode) is shared or not array.size
    with pytest.raises(TypeError, match="object"):
        share(np.array([None]), mode)


@pytest.mark.parametrize("mode", ["rw", "r"])
def test_share_container_moves_every_array(mode: Any) -> None:
    """Small and large, nested, the same array twice; the rest is what it was."""
    local = lambda x: x  # noqa: E731 - found by no name
    small, large = np.arange(3), np.zeros(100_000)
    objects = np.array([None, "x"], object)
    objects[1] = small
    run = Run("a", {"small": small, "large": [large, large], "objects": objects}, local, [1, "x"])
    shared = share(run, mode)
    assert type(shared) is Run
    assert shared.function is local
    assert (shared.name, shared.parts) == ("a", [1, "x"])
    one, two = shared.data["large"]
    assert one is two
    for array in (shared.data["small"], one, shared.data["objects"][1]):
        assert is_shared(array)
        assert array.flags.writeable == (mode == "rw")
    assert not is_shared(shared.data["objects"])
    assert not is_shared(large)
    assert share(shared, mode) is shared
    assert share({"a": 1}, mode) == {"a": 1}


def test_share_keeps_what_is_shared_and_moves_the_rest() -> None:
    """An array that is shared already is taken over as it is; read-only means a copy."""
    old = _arrays.ones(10)
    pair = share([old, np.zeros(10)])
    assert pair[0] is old
    assert is_shared(pair[1])
    frozen = share(pair, mode="r")
    assert not np.shares_memory(frozen[0], old)
    assert not frozen[0].flags.writeable
    again = share(frozen, mode="rw")
    assert again[0].flags.writeable
    assert share([old, old])[0] is old


def test_share_pandas_xarray_and_sparse() -> None:
    """Same type, equal, with the data in shared memory; strings and objects stay ordinary."""
    frame = pd.DataFrame(
        {"x": np.arange(100.0), "s": [str(i) for i in range(100)], "k": pd.Categorical(["a"] * 100)}
    )
    frame.index = pd.date_range("2000", periods=100, name="when")
    shared = share(frame)
    pd.testing.assert_frame_equal(shared, frame)
    assert is_shared(shared["x"].to_numpy())
    assert is_shared(shared["k"].array._codes)
    dataset = xr.Dataset({"a": (("x",), np.arange(5.0))}, {"x": np.arange(5)})
    moved = share(dataset, mode="r")
    xr.testing.assert_identical(moved, dataset)
    assert is_shared(moved["a"].data)
    assert not moved["a"].data.flags.writeable
    matrix = scipy.sparse.random_array((50, 50), density=0.2, format="csr", rng=np.random.default_rng(1))
    sparse = share(matrix)
    assert type(sparse) is type(matrix)
    assert is_shared(sparse.data)
    assert is_shared(sparse.indices)
    assert (sparse != matrix).nnz == 0
    masked = share(np.ma.MaskedArray([1.0, 2.0], [True, False]))
    assert type(masked) is np.ma.MaskedArray
    assert is_shared(masked.data)
    assert masked.mask.tolist() == [True, False]


def test_share_memmap_reads_it_into_memory(tmp_path: Path) -> None:
    """A mapped file becomes a shared array."""
    np.arange(10.0).tofile(tmp_path / "f")
    mapped = np.memmap(tmp_path / "f", float, "r")
    for shared in (share(mapped), share([mapped])[0]):
        assert type(shared) is np.ndarray
        assert is_shared(shared)
        assert (shared == mapped).all()


def test_share_hands_functions_classes_and_modules_over() -> None:
    """They are the very same objects afterwards."""

    class Local:
        pass

    cached = functools.lru_cache(lambda x: x)
    holder = share([np.zeros(3), Local, Local(), np, cached, len, functools.partial(cached, 1)])
    assert holder[1] is Local
    assert type(holder[2]) is Local
    assert holder[3] is np
    assert holder[4] is cached
    assert holder[5] is len
    assert holder[6].func is cached


def test_share_refuses_clearly() -> None:
    """Unknown modes and what pickle cannot copy."""
    with pytest.raises(ValueError, match="mode is 'w'; allowed are 'rw' and 'r'"):
        share([1], mode="w")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lock"):
        share([np.zeros(3), threading.Lock()])
