"""What wraps arrays comes through a worker equal and of the same type, its bytes through segments."""

from __future__ import annotations

import array
import datetime as dt
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ndshare
from tests import array_tasks
from tests.array_tasks import echo, fingerprint, type_name

pytestmark = pytest.mark.once

_MESSAGES_MAX_BYTES = 60_000  # for both ways, of objects of some megabytes


@pytest.fixture
def executor():
    """Return an executor with one worker that has done something."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(echo, 0).result()
        yield executor


def _both_ways(executor: ndshare.ProcessPoolExecutor, obj: Any) -> tuple[Any, int]:
    """Echo an object; return it and the bytes that went through sockets."""
    before = executor._pool.delivery.bytes_sent
    assert executor.submit(type_name, obj).result() == type_name(obj)
    got = executor.submit(echo, obj).result()
    assert type(got) is type(obj)
    return got, executor._pool.delivery.bytes_sent - before


# ---- subclasses of ndarray


def _masked(n: int, **options: Any) -> np.ma.MaskedArray:
    data = np.arange(n, dtype="f8")
    return np.ma.masked_array(data, mask=data % 3 == 0, **options)


_MASKED: dict[str, Callable[[int], np.ma.MaskedArray]] = {
    "plain": lambda n: _masked(n),
    "fill value and hard": lambda n: _masked(n, fill_value=-5.0, hard_mask=True),
    "no mask": lambda n: np.ma.masked_array(np.arange(n)),
    "one for all": lambda n: np.ma.masked_array(np.arange(n), mask=True),
    "2d in F order": lambda n: _masked(n).reshape(4, -1).T,
    "view": lambda n: _masked(2 * n)[::-2],
    "structured": lambda n: np.ma.masked_array(
        np.zeros(n, "i4, f8"), mask=[(i % 2 == 0, i % 3 == 0) for i in range(n)]
    ),
    "of a matrix": lambda n: np.ma.masked_array(
        np.arange(n)[None].view(np.matrix), mask=np.arange(n)[None] % 2 == 0
    ),
    "with info": lambda n: _with_info(_masked(n)),
}


def _with_info(a: np.ma.MaskedArray) -> np.ma.MaskedArray:
    a._optinfo["unit"] = "m"
    return a


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # np.matrix is not recommended
@pytest.mark.parametrize("n", [0, 8, 40_000])
def test_masked_array_arrives_with_data_mask_and_facts(executor, n):
    """Masked arrays keep data, mask, fill value, hardness, base class and info."""
    for make in _MASKED.values():
        a = make(n)
        got, nbytes = _both_ways(executor, a)
        assert nbytes < _MESSAGES_MAX_BYTES
        assert fingerprint(np.asarray(got.data)) == fingerprint(np.asarray(a.data))
        assert (got.mask is np.ma.nomask) == (a.mask is np.ma.nomask)
        assert np.array_equal(got.mask, a.mask)
        assert got.mask.dtype == a.mask.dtype
        assert np.array_equal(got.fill_value, a.fill_value)
        assert got.hardmask == a.hardmask
        assert got.baseclass is a.baseclass
        assert type(got.data) is type(a.data)
        assert got._optinfo == a._optinfo
        if n:
            got[...] = np.ma.masked  # the mask is its own, and writable
            assert np.ma.getmaskarray(got).tobytes().strip(b"\1") == b""
            assert not np.shares_memory(got.data, a.data)


def test_masked_constant_is_itself(executor):
    """`np.ma.masked` is the one object on both sides."""
    assert executor.submit(echo, np.ma.masked).result() is np.ma.masked


@pytest.mark.parametrize("n", [0, 8, 40_000])
def test_subclass_arrives_as_itself(executor, n):
    """matrix, recarray, chararray and a subclass of the user's keep type, dtype and content."""
    rows = np.zeros(n, [("a", "f8"), ("b", "i4", (2,))])
    rows["a"] = np.arange(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy would like these to be used no more
        several = [
            np.arange(n)[None].view(np.matrix),
            np.arange(2 * n).reshape(2, n).view(np.matrix)[::-1, ::2],
            rows.view(np.recarray),
            rows.view(np.recarray).b,
            np.rec.fromarrays([np.arange(n), np.ones(n)], names="x,y"),
            np.arange(n).view(array_tasks.Tagged),
            np.arange(n).astype("S6").view(np.char.chararray),
        ]
        for a in several:
            got, nbytes = _both_ways(executor, a)
            assert nbytes < _MESSAGES_MAX_BYTES
            assert fingerprint(got) == fingerprint(a)
            assert got.dtype.type is a.dtype.type
            assert got.flags.writeable
            shared = ndshare.share(a)
            assert type(shared) is type(a)
            got = executor.submit(echo, shared).result()
            assert type(got) is type(a)
            assert np.shares_memory(got, shared) or not a.size


def test_recarray_gives_attributes_after_the_journey(executor):
    """A recarray's rows and columns work as before."""
    a = np.rec.fromarrays([np.arange(50_000), np.ones(50_000)], names="x,y")
    got = executor.submit(echo, a).result()
    assert got.x[7] == 7
    assert got[7].y == 1


def test_scalars_and_odd_dtypes_arrive_equal(executor):
    """NumPy scalars, items of no size, metadata and object arrays arrive as NumPy's pickle brings them."""
    for scalar in (np.float32(3), np.longdouble("1.25"), np.datetime64("2020-01-01", "D"), np.bytes_(b"a"),
                   np.void(b"abc"), np.zeros((), "i4, f8")[()], np.complex64(1j)):  # fmt: skip
        got = executor.submit(echo, scalar).result()
        assert type(got) is type(scalar)
        assert got.dtype == scalar.dtype
        assert got == scalar
    for dtype in ("V0", [], "S0", "U0"):
        empty = np.zeros(3, dtype)
        got = executor.submit(echo, empty).result()
        assert (got.shape, got.dtype) == (empty.shape, empty.dtype)
    objects = np.array([1, "two", None, np.arange(3)], object)
    got = executor.submit(echo, objects).result()
    assert got.dtype == object
    assert got[:3].tolist() == [1, "two", None]
    assert np.array_equal(got[3], np.arange(3))


def test_bare_time_units_arrive_equal(executor):
    """Times without a unit keep having none."""
    for code in ("M8", "m8"):
        a = np.full(3, np.iinfo("i8").min).view(code)
        got = executor.submit(echo, a).result()
        assert got.dtype == a.dtype
        assert got.tobytes() == a.tobytes()


def test_string_dtype_arrives_equal(executor):
    """`numpy.dtypes.StringDType`, whose text is not in the array, arrives equal."""
    words = np.array(["a", "much longer than what fits in sixteen bytes", ""] * 2000, np.dtypes.StringDType())
    got = executor.submit(echo, words).result()
    assert got.dtype == words.dtype
    assert (got == words).all()
    with pytest.raises(TypeError):
        ndshare.share(words)


# ---- libraries


def _frame(pd: Any, n: int) -> Any:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "f": rng.random(n),
            "g": rng.random(n).astype("f4"),
            "i": np.arange(n),
            "b": np.arange(n) % 2 == 0,
            "text": [f"row {i % 100}" for i in range(n)],
            "category": pd.Categorical.from_codes(np.arange(n) % 3, ["a", "b", "c"]),
            "when": pd.date_range("2020", periods=n, freq="s"),
            "zone": pd.date_range("2020", periods=n, freq="s", tz="Europe/Berlin"),
            "span": pd.to_timedelta(np.arange(n), "s"),
            "period": pd.period_range("2000", periods=n, freq="h"),
            "nullable": pd.array(np.arange(n), dtype="Int64"),
        },
        index=pd.date_range("1990", periods=n, freq="min", name="time"),
    )


@pytest.mark.parametrize("n", [0, 10, 30_000])
def test_dataframe_arrives_equal(executor, n):
    """A DataFrame with strings, categories, times, periods and nullable integers arrives equal."""
    pd = pytest.importorskip("pandas")
    frame = _frame(pd, n)
    before = frame.copy(deep=True)
    got, _ = _both_ways(executor, frame)
    pd.testing.assert_frame_equal(got, frame)
    assert got.index.freq == frame.index.freq
    if n:
        got.loc[got.index[0], "f"] = -1.0
        got["i"] += 1
    pd.testing.assert_frame_equal(frame, before)


def test_dataframe_without_text_goes_through_segments(executor):
    """Of a DataFrame's numbers, times and categories next to nothing goes through the socket."""
    pd = pytest.importorskip("pandas")
    frame = _frame(pd, 30_000).drop(columns="text")
    got, nbytes = _both_ways(executor, frame)
    assert nbytes < _MESSAGES_MAX_BYTES
    pd.testing.assert_frame_equal(got, frame)
    for index in (frame.index, pd.MultiIndex.from_product([range(300), range(100)]), pd.RangeIndex(10**6),
                  pd.interval_range(0, 20_000)):  # fmt: skip
        got, nbytes = _both_ways(executor, index)
        assert nbytes < _MESSAGES_MAX_BYTES
        pd.testing.assert_index_equal(got, index)


def test_dataframe_shared_is_seen_by_worker_and_caller(executor):
    """A shared DataFrame is equal, and its numbers are the same memory in worker and caller."""
    pd = pytest.importorskip("pandas")
    frame = _frame(pd, 1000)
    shared = ndshare.share(frame)
    pd.testing.assert_frame_equal(shared, frame)
    assert ndshare.is_shared(shared["f"].to_numpy())
    got = executor.submit(echo, shared).result()
    pd.testing.assert_frame_equal(got, frame)
    assert np.shares_memory(got["f"].to_numpy(), shared["f"].to_numpy())
    assert not np.shares_memory(shared["f"].to_numpy(), frame["f"].to_numpy())


def test_xarray_arrives_equal(executor):
    """A Dataset with coordinates, times and attributes arrives equal."""
    xr = pytest.importorskip("xarray")
    pd = pytest.importorskip("pandas")
    data = xr.Dataset(
        {
            "t": (("time", "x"), np.random.default_rng(0).random((1000, 60)), {"unit": "K"}),
            "flag": ("time", np.arange(1000) % 2 == 0),
        },
        coords={"time": pd.date_range("2020", periods=1000), "x": np.arange(60.0), "run": 7},
        attrs={"who": "me", "when": dt.date(2020, 1, 1)},
    )
    got, nbytes = _both_ways(executor, data)
    xr.testing.assert_identical(got, data)
    assert nbytes < _MESSAGES_MAX_BYTES
    got["t"][0, 0] = 5
    shared = ndshare.share(data)
    xr.testing.assert_identical(shared, data)
    got = executor.submit(echo, shared).result()
    assert np.shares_memory(got["t"].data, shared["t"].data)
    array, _ = _both_ways(executor, data["t"][::2, ::-1])
    xr.testing.assert_identical(array, data["t"][::2, ::-1])


@pytest.mark.filterwarnings("ignore:Constructing a DIA matrix")
@pytest.mark.parametrize("size", [20, 400])
def test_sparse_arrives_equal(executor, size):
    """Sparse matrices and arrays of every format arrive equal."""
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.where(np.random.default_rng(0).random((size, size)) < 0.05, 1.5, 0)
    forms = ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")
    for form, kind in itertools.product(forms, ("matrix", "array")):
        a = getattr(sparse, f"{form}_{kind}")(dense)
        got, nbytes = _both_ways(executor, a)
        assert got.format == form
        assert np.array_equal(got.toarray(), dense)
        if form not in ("lil", "dok"):  # those are lists and dicts
            assert nbytes < _MESSAGES_MAX_BYTES
            shared = ndshare.share(a)
            assert ndshare.is_shared(shared.data)
            assert np.shares_memory(executor.submit(echo, shared).result().data, shared.data)
            assert np.array_equal(shared.toarray(), dense)


def test_torch_tensor_arrives_equal(executor):
    """Tensors on the CPU arrive equal, with stride, grad flag and type."""
    torch = pytest.importorskip("torch")
    for a in (
        torch.arange(300_000.0),
        torch.arange(12.0).reshape(3, 4).T,
        torch.nn.Parameter(torch.ones(40_000)),
        torch.tensor(3),
        torch.ones(4, dtype=torch.bfloat16),
        torch.ones(60_000, dtype=torch.bfloat16)[::2],
        torch.ones(9, dtype=torch.float8_e4m3fn).view(3, 3),
        torch.ones(4, dtype=torch.complex64).conj(),
        torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], check_invariants=True).coalesce(),
    ):
        got, nbytes = _both_ways(executor, a)
        assert nbytes < _MESSAGES_MAX_BYTES
        assert a.is_sparse or not a.is_shared()  # it is a copy that arrives
        plain = [one.to_dense().float() if a.is_sparse or a.element_size() == 1 else one for one in (got, a)]
        assert torch.equal(*plain)
        assert got.dtype == a.dtype
        assert got.requires_grad == a.requires_grad


def test_storage_of_torch_is_copied(executor):
    """Its reducer for processes of torch would have sender and receiver share it from now on."""
    torch = pytest.importorskip("torch")
    storage = torch.eye(3).untyped_storage()
    assert list(executor.submit(echo, storage).result()) == list(storage)
    assert not storage.is_shared()


def test_other_buffers_go_through_segments(executor):
    """bytes, bytearray, array.array, memoryview-holding objects and big pickles leave the sockets free."""
    n = 3_000_000
    for obj in (b"x" * n, bytearray(b"y") * n, array.array("d", range(n // 8)), "z" * n, list(range(n // 8))):
        got, nbytes = _both_ways(executor, obj)
        assert got == obj
        assert nbytes < _MESSAGES_MAX_BYTES
    got = executor.submit(echo, bytearray(n)).result()
    got += b"more"  # writable and resizable like any other
    assert len(got) == n + 4


# ---- files


@pytest.fixture
def npy(tmp_path):
    """Return the path and the content of an array in a file."""
    content = np.random.default_rng(0).random((500, 1000))
    path = tmp_path / "a file.npy"
    np.save(path, content)
    return str(path), content


def test_mapped_file_travels_as_file_and_offset(executor, npy):
    """`np.load(mmap_mode="r")` and views of it are mapped by the worker and by the caller again."""
    path, content = npy
    mapped = np.load(path, mmap_mode="r")
    before = executor._pool.delivery.bytes_copied
    for view in (
        np.s_[:],
        np.s_[100:200, ::-2],
        np.s_[::-1],
        np.s_[7],
        np.s_[3:3],
        np.s_[..., None],
    ):
        a, plain = mapped[view], content[view]
        kind, seen, in_file, writeable = executor.submit(array_tasks.look_at_file, a, path).result()
        assert kind is type(a)
        assert seen == fingerprint(plain)
        if plain.size:
            assert in_file
            assert not writeable
        got = executor.submit(echo, a).result()
        assert type(got) is type(a)
        assert np.array_equal(got, plain)
        assert array_tasks.maps_file(got, path) or not plain.size
    as_array = np.asarray(mapped)[::2]
    kind, _, in_file, _ = executor.submit(array_tasks.look_at_file, as_array, path).result()
    assert kind is np.ndarray
    assert in_file
    assert executor._pool.delivery.bytes_copied == before
    assert executor._pool.delivery.bytes_sent < _MESSAGES_MAX_BYTES


def test_writable_mapped_file_is_written_by_the_worker(executor, npy):
    """A worker writes through to a file mapped for writing; a copy-on-write map is private."""
    path, content = npy
    mapped = np.load(path, mmap_mode="r+")
    executor.submit(array_tasks.write_first, mapped[3], -5.0).result()
    assert mapped[3, 0] == -5
    assert np.load(path)[3, 0] == -5
    private = np.load(path, mmap_mode="c")
    private[4, 0] = -6
    executor.submit(array_tasks.write_first, private[4], -7.0).result()
    assert private[4, 0] == -6
    assert executor.submit(echo, private).result()[4, 0] == -6
    assert np.load(path)[4, 0] == content[4, 0]


def test_mapped_file_with_offset_arrives_equal(executor, tmp_path):
    """A raw memmap with an odd offset, dtype and order arrives equal."""
    path = tmp_path / "raw"
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    for order in "CF":
        a = np.memmap(path, ">i2", "r", offset=4099, shape=(30, 40), order=order)
        kind, seen, in_file, _ = executor.submit(array_tasks.look_at_file, a, str(path)).result()
        assert (kind, seen, in_file) == (np.memmap, fingerprint(np.asarray(a)), True)


def test_mapped_file_that_was_replaced_goes_by_value(executor, npy, tmp_path):
    """What the caller sees is what arrives, whatever lies under the name by now."""
    path, content = npy
    mapped = np.load(path, mmap_mode="r")
    np.save(tmp_path / "other.npy", content + 1)
    (tmp_path / "other.npy").rename(path)
    got = executor.submit(echo, mapped).result()
    assert np.array_equal(got, content)
    (tmp_path / "a file.npy").unlink()
    assert np.array_equal(executor.submit(echo, mapped).result(), content)


def test_mapped_file_shared_is_in_memory(executor, npy):
    """`share` of a mapped file reads it into shared memory."""
    path, content = npy
    shared = ndshare.share(np.load(path, mmap_mode="r"))
    assert type(shared) is np.ndarray
    assert ndshare.is_shared(shared)
    assert np.shares_memory(executor.submit(echo, shared).result(), shared)
    assert np.array_equal(shared, content)
