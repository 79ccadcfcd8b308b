"""Types that wrap arrays: same type, equal, and their large buffers outside the pickle."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections.abc import Iterator
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
from ndshare._memory import segments
from ndshare._pickling import memmaps
from ndshare._pickling.pickler import record
from ndshare._transport import transport
from ndshare.errors import TransportError
from tests.peer import Peer, to_oneself

pytestmark = pytest.mark.once

N = 40_000  # rows: more bytes per column than a message takes in band
PICKLE_MAX = 8_000  # bytes of the pickle itself


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """Start one peer for the module."""
    with Peer() as started:
        yield started


def give_back(obj: Any) -> Any:
    """Return the argument."""
    return obj


def unpacked(obj: Any) -> Any:
    """Send to oneself, and check that the pickle is small."""
    assert sum(map(len, record(obj).parts)) < PICKLE_MAX
    return to_oneself(obj)


# ---- subclasses of ndarray


class Plain(np.ndarray):  # type: ignore[type-arg]
    """A subclass without ways of its own."""


class Quantity(np.ndarray):  # type: ignore[type-arg]
    """A subclass that pickles what it adds."""

    unit = ""

    def __reduce__(self) -> Any:
        """Add the unit to the state."""
        make, args, state = super().__reduce__()  # type: ignore[misc]
        return make, args, (state, self.unit)

    def __setstate__(self, state: Any) -> None:
        """Take the unit out of the state."""
        super().__setstate__(state[0])  # type: ignore[misc]
        self.unit = state[1]


def masked(**kwargs: Any) -> Any:
    """Return a large masked array."""
    return np.ma.MaskedArray(np.arange(float(N)), np.arange(N) % 3 == 0, **kwargs)


def hard() -> Any:
    """Return a masked array with a hard mask and a fill value."""
    array = masked(fill_value=-1.0)
    array.harden_mask()
    return array


@pytest.mark.parametrize(
    "make",
    [
        masked,
        hard,
        lambda: np.ma.MaskedArray(np.arange(float(N))),
        lambda: np.ma.MaskedArray(np.ones(N, [("a", "f8"), ("b", "i4")]), mask=(True, False)),
        lambda: np.ones((N, 2)).view(np.matrix),
        lambda: np.zeros(N, [("x", "f8"), ("y", "M8[s]")]).view(np.recarray),
        lambda: np.rec.fromarrays([np.arange(N), np.arange(N) * 0.5], names="i,f"),
        lambda: np.arange(float(N)).view(Plain),
        lambda: np.asfortranarray(np.ones((200, 300))).view(Plain)[:, ::2],
    ],
    ids=[
        "masked",
        "hard",
        "unmasked",
        "structured mask",
        "matrix",
        "recarray",
        "fromarrays",
        "plain",
        "sliced",
    ],
)
def test_subclass_keeps_type_and_travels_in_segments(peer: Peer, make: Any) -> None:
    """Large buffers go through segments, ordinary and shared alike."""
    array = make()
    for back in (unpacked(array), peer.call(give_back, array)):
        assert type(back) is type(array)
        assert back.dtype == array.dtype
        assert (np.asarray(back) == np.asarray(array)).all()
        if isinstance(array, np.ma.MaskedArray):
            assert (back.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
            assert np.array_equal(back.mask, array.mask)
            assert back.hardmask == array.hardmask
            assert np.array_equal(back.fill_value, array.fill_value)
        if isinstance(array, np.recarray):
            assert back.dtype.type is array.dtype.type
            assert (back[array.dtype.names[0]] == array[array.dtype.names[0]]).all()
    shared = _arrays.ones((N, 2)).view(np.matrix if type(array) is np.matrix else Plain)
    back = peer.call(give_back, shared)
    assert type(back) is type(shared)
    assert np.shares_memory(back, shared)


def test_subclass_with_its_own_pickling_is_left_alone(peer: Peer) -> None:
    """What a class adds to its state arrives."""
    array = np.arange(float(N)).view(Quantity)
    array.unit = "m/s"
    back = peer.call(give_back, array)
    assert type(back) is Quantity
    assert back.unit == "m/s"
    assert (back == array).all()
    assert peer.call(give_back, np.ma.masked) is np.ma.masked


def test_object_and_string_arrays_are_pickled_by_numpy(peer: Peer) -> None:
    """Python objects go by value, and large arrays inside them still through segments."""
    array = np.array([np.arange(float(N)), "text", None], object)
    back = unpacked(array)
    assert back.dtype == object
    assert (back[0] == array[0]).all()
    assert list(back[1:]) == ["text", None]
    strings = np.array(["a", "b" * 1000], np.dtypes.StringDType())
    assert (peer.call(give_back, strings) == strings).all()
    empty_items = np.zeros(3, "V0")
    assert peer.call(give_back, empty_items).dtype == empty_items.dtype


# ---- pandas, xarray, scipy


def frame() -> Any:
    """Return a DataFrame with columns of many kinds."""
    index = np.arange(N)
    return pd.DataFrame(
        {
            "floats": index * 0.5,
            "more": index * 2.0,
            "ints": index,
            "small": index.astype("i2"),
            "bools": index % 2 == 0,
            "kind": pd.Categorical.from_codes(index % 3, ["a", "b", "c"]),
            "when": pd.date_range("2020-01-01", periods=N, freq="min"),
            "zoned": pd.date_range("2020-01-01", periods=N, freq="min", tz="Europe/Berlin"),
            "lasting": pd.to_timedelta(index, unit="s"),
            "nullable": pd.array(np.where(index % 5, index, 0), "Int64"),
        }
    )


def with_strings() -> Any:
    """Return a DataFrame with a column of strings."""
    return pd.DataFrame({"names": [f"name {i}" for i in range(N)], "x": np.arange(float(N))})


@pytest.mark.parametrize(
    "make",
    [
        frame,
        lambda: frame().set_index("when"),
        lambda: frame()["floats"],
        lambda: frame()["kind"],
        lambda: frame().set_index(["ints", "small"])[["floats"]],
        lambda: pd.date_range("2000-01-01", periods=N, freq="h"),
        lambda: pd.date_range("2000-01-01", periods=N, freq="h", tz="UTC", name="when"),
        lambda: pd.timedelta_range("1s", periods=N, freq="s"),
        lambda: pd.period_range("2000-01-01", periods=N, freq="D"),
        lambda: pd.Index(np.arange(float(N)), name="n"),
        lambda: pd.RangeIndex(N),
        lambda: pd.IntervalIndex.from_breaks(np.arange(N)),
        lambda: pd.Series(pd.arrays.SparseArray(np.arange(N) % 2)),
    ],
    ids=[
        "frame", "time index", "series", "categorical", "multi-index", "dates", "zoned dates", "timedeltas",
        "periods", "index", "range", "intervals", "sparse",
    ],
)  # fmt: skip
def test_pandas_object_is_equal_and_small(peer: Peer, make: Any) -> None:
    """Equal, same dtypes and frequencies; the bytes of the columns are not in the pickle."""
    obj = make()
    for back in (unpacked(obj), peer.call(give_back, obj)):
        assert type(back) is type(obj)
        if isinstance(obj, pd.Index):
            pd.testing.assert_index_equal(back, obj, exact=True)
            assert getattr(back, "freq", None) == getattr(obj, "freq", None)
        else:
            (
                pd.testing.assert_frame_equal
                if isinstance(obj, pd.DataFrame)
                else pd.testing.assert_series_equal
            )(back, obj)


def test_frame_with_strings_is_equal(peer: Peer) -> None:
    """Strings are Python objects and go by value; the other columns do not suffer."""
    obj = with_strings()
    back = peer.call(give_back, obj)
    pd.testing.assert_frame_equal(back, obj)
    back.loc[0, "x"] = 5.0
    assert obj.loc[0, "x"] == 0


def test_shared_frame_is_the_same_memory_over_there(peer: Peer) -> None:
    """A DataFrame on shared columns shares them with the peer."""
    column = _arrays.zeros(N)
    obj = pd.DataFrame({"x": column}, copy=False)
    assert np.shares_memory(obj["x"].to_numpy(), column)
    peer.call(set_first, obj)
    assert column[0] == 7


def set_first(obj: Any) -> None:
    """Write through to the memory of a DataFrame."""
    array = obj["x"].to_numpy().view()
    array.flags.writeable = True
    array[0] = 7


def test_xarray_dataset_is_equal_and_small(peer: Peer) -> None:
    """Data, coordinates and attributes arrive; shared data stays shared."""
    data = _arrays.ones((100, 200))
    obj = xr.Dataset(
        {"a": (("x", "y"), data, {"unit": "K"}), "b": ("x", np.arange(100.0))},
        {"x": np.arange(100), "t": ("y", pd.date_range("2000", periods=200))},
        {"title": "test"},
    )
    back = peer.call(give_back, obj)
    assert type(back) is xr.Dataset
    xr.testing.assert_identical(back, obj)
    assert np.shares_memory(back["a"].data, data)
    unpacked(obj)


@pytest.mark.parametrize("name", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_sparse_formats_are_equal(peer: Peer, name: str, kind: str) -> None:
    """All formats of scipy.sparse; those made of arrays through segments."""
    obj: Any = scipy.sparse.random_array((8000, 300), density=0.05, rng=np.random.default_rng(1))
    if kind == "matrix":
        obj = scipy.sparse.coo_matrix(obj)
    if name == "dia":
        obj = obj.tocsr()[:30, :60]  # every diagonal is stored whole
    obj = obj.asformat(name)
    back = peer.call(give_back, obj)
    assert type(back) is type(obj)
    assert back.format == name
    assert abs(back - obj).sum() == 0
    if name in ("csr", "csc", "coo", "bsr"):
        unpacked(obj)


def test_buffers_of_other_libraries_travel_out_of_band(peer: Peer) -> None:
    """A class that pickles with PickleBuffer of its own is served too."""
    obj = Holder(bytearray(b"x" * 500_000))
    back = peer.call(give_back, obj)
    assert bytes(back.data) == bytes(obj.data)
    unpacked(obj)


class Holder:
    """Holds a buffer and pickles it out of band."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        """Use protocol 5."""
        import pickle

        return Holder, (pickle.PickleBuffer(self.data),)


def test_tensor_goes_through_its_numpy_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense CPU tensor shares memory with its array on both sides (torch itself is not installed)."""
    torch: Any = types.ModuleType("torch")

    class Tensor:
        requires_grad = False
        is_quantized = False
        layout = torch.strided = object()
        device = types.SimpleNamespace(type="cpu")

        def __init__(self, array: Any) -> None:
            self.array = array

        def detach(self) -> Any:
            return self

        def numpy(self) -> Any:
            return self.array

        def requires_grad_(self, value: bool) -> Any:
            self.requires_grad = value
            return self

    torch.Tensor = Tensor
    torch.nn = types.SimpleNamespace(Parameter=type("Parameter", (Tensor,), {}))
    torch.from_numpy = Tensor
    monkeypatch.setitem(sys.modules, "torch", torch)
    shared = _arrays.ones(N)
    back = unpacked([Tensor(shared), Tensor(np.zeros(N))])
    assert type(back[0]) is Tensor
    assert np.shares_memory(back[0].array, shared)
    assert (back[1].array == 0).all()


# ---- mapped files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of a million floats."""
    path = tmp_path / "data.bin"
    np.arange(1e6).tofile(path)
    return path


def test_memmap_travels_as_file(peer: Peer, file: Path) -> None:
    """Path and offset, not bytes: read-only and writable, views with their strides."""
    for view in (
        np.memmap(file, float, "r"),
        np.memmap(file, float, "r", offset=80_000, shape=(100, 300)),
        np.memmap(file, float, "r", offset=8, shape=(100, 300), order="F")[::-2, 5:],
        np.memmap(file, float, "r")[123:124],
        np.asarray(np.memmap(file, float, "r"))[50:][::3],
    ):
        parcel = transport.pack(view).settle()
        assert len(parcel.data) < 2000
        assert (parcel.blocks, parcel.nbytes_copied) == ((), 0)
        back = peer.call(give_back, view)
        assert type(back) is type(view)
        assert (back.shape, back.strides) == (view.shape, view.strides)
        assert (back == view).all()
        assert not back.flags.writeable
        assert memmaps.find_memmap(back) is not None


def test_wrapped_memmap_keeps_its_wrapping(peer: Peer, file: Path) -> None:
    """A masked array over a mapped file keeps the mask; its data travel as file."""
    mapped = np.memmap(file, float, "r")
    for obj in (np.ma.MaskedArray(mapped, mapped > 5), mapped.view(Plain)):
        assert transport.pack(obj).settle().nbytes_copied <= mapped.size  # the mask
        back = peer.call(give_back, obj)
        assert type(back) is type(obj)
        assert (back == obj).all()
    assert back.sum() == mapped.sum()


def test_writable_memmap_writes_to_the_file(peer: Peer, file: Path) -> None:
    """What a worker writes is in the file, and in everybody's map of it."""
    whole = np.memmap(file, float, "r+")
    peer.call(set_all, whole[10:20])
    assert (whole[10:20] == 7).all()
    assert np.fromfile(file)[9:21].tolist() == [9.0] + [7.0] * 10 + [20.0]


def set_all(array: Any) -> None:
    """Write to an argument."""
    array[:] = 7
    array.flush()


def test_saved_array_opened_with_mmap_mode_travels_as_file(peer: Peer, tmp_path: Path) -> None:
    """``np.load(mmap_mode=...)`` is a memmap too; copy-on-write maps go by value."""
    np.save(tmp_path / "a.npy", np.arange(1e5).reshape(100, 1000))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert transport.pack(mapped).settle().nbytes_copied == 0
    assert (peer.call(give_back, mapped) == mapped).all()
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private[0] = -1
    assert transport.pack(private).settle().nbytes_copied == private.nbytes
    back = peer.call(give_back, private)
    assert (back == private).all()
    back[:] = 0
    assert (private[0] == -1).all()


def test_replaced_or_deleted_file_goes_by_value(peer: Peer, file: Path) -> None:
    """The pages the sender sees are what arrives, whatever has happened to the name."""
    mapped = np.memmap(file, float, "r")
    other = file.with_suffix(".new")
    np.zeros(1_000_000).tofile(other)
    parcel = transport.pack(mapped).settle()
    os.replace(other, file)
    with pytest.raises(TransportError, match="now another file"):
        transport.unpack(parcel.data, parcel.descriptors())
    assert (peer.call(give_back, mapped) == np.arange(1e6)).all()
    file.unlink()
    assert (peer.call(give_back, mapped)[-1]) == 999_999
    assert not segments.is_shared(peer.call(give_back, mapped))


def test_memmap_results_in_memory_go_by_value(peer: Peer, file: Path) -> None:
    """``mapped + 1`` has the type of a memmap and no file."""
    mapped = np.memmap(file, float, "r")
    total: Any = mapped[:5] + 1
    assert peer.call(give_back, total).tolist() == [1, 2, 3, 4, 5]
    empty = mapped[5:5]
    assert peer.call(give_back, empty).shape == (0,)


def test_files_that_are_open_for_writing_are_refused(tmp_path: Path) -> None:
    """What a task wrote to a copy of one would be lost; those for reading go with their content, at their place."""
    path = tmp_path / "text"
    path.write_text("first\nsecond\n")
    for mode in ("r+", "w+", "a+", "w", "a"):
        with open(path, mode) as file, pytest.raises(pickle.PicklingError, match=r"file|opened for reading"):
            record(file)
    path.write_text("first\nsecond\n")
    with open(path) as file:
        file.readline()
        assert to_oneself(file).read() == "second\n"
