"""Classes that pickle in their own way, with their arrays through segments; other libraries' buffers."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._pickling import wrappers
from ndshare._pickling.pickler import record
from ndshare._transport import transport
from tests.array_tasks import echo
from tests.pickling.wrapper_tasks import Frozen, Image, Locked, Private, Thumbnail, add_one

pytestmark = pytest.mark.once

N = 50_000
_PICKLE_MAX = 2000

_CASES: list[tuple[Any, str]] = [
    (lambda a: Image(a, "one"), "pixels"),
    (lambda a: Thumbnail(a, "two"), "pixels"),
    (Locked, "data"),
    (lambda a: Frozen(a, "m"), "data"),
    (Private, "data"),
]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the classes, and forget them."""
    for cls, name in ((Image, "pixels"), (Locked, "data"), (Frozen, "data"), (Private, "data")):
        ndshare.register_wrapper(cls, name)
    yield
    wrappers.registered.clear()


def _through(obj: Any) -> Any:
    parcel = transport.pack(obj).settle()
    back = transport.unpack(parcel.data, parcel.descriptors())
    parcel.release()
    return back


@pytest.mark.parametrize(("make", "name"), _CASES, ids=lambda case: getattr(case, "__name__", None))
def test_wrapper_keeps_its_type_and_its_array_goes_through_segments(make: Any, name: str) -> None:
    """Ordinary arrays arrive as copies, shared ones as the same memory, views with their strides."""
    shared = ndshare.share(np.arange(float(N)))
    for array in (np.arange(float(N)), shared, shared[::-2], shared.reshape(-1, 100).T, np.arange(3.0)):
        obj = make(array)
        assert sum(map(len, record(obj).parts)) < _PICKLE_MAX
        back = _through(obj)
        assert type(back) is type(obj)
        found = getattr(back, name)
        np.testing.assert_array_equal(found, array)
        assert found.flags.writeable
        assert np.shares_memory(found, array) == ndshare.is_shared(array)
        assert getattr(obj, name) is array  # what was sent is as before


def test_wrapper_goes_to_a_worker_and_back() -> None:
    """Workers learn of the class with the first instance; its result comes back without pickling."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        for make, name in _CASES:
            obj = make(np.zeros(N))
            back, was_shared = executor.submit(add_one, obj, name).result()
            assert type(back) is type(obj)
            assert not was_shared
            assert (getattr(back, name) == 1).all()
            assert (getattr(obj, name) == 0).all()
            shared = make(ndshare.zeros(N))
            _, was_shared = executor.submit(add_one, shared, name).result()
            assert was_shared
            assert (getattr(shared, name) == 1).all()
        before = executor._pool.delivery.bytes_sent
        executor.submit(echo, Locked(np.ones(N))).result()
        assert executor._pool.delivery.bytes_sent - before < _PICKLE_MAX


def test_share_moves_the_array_of_a_wrapper() -> None:
    """`share` gives an equal object on shared memory, and the object itself the second time."""
    for make, name in _CASES:
        obj = make(np.arange(float(N)))
        shared = ndshare.share(obj)
        assert type(shared) is type(obj)
        assert ndshare.is_shared(getattr(shared, name))
        assert not ndshare.is_shared(getattr(obj, name))
        np.testing.assert_array_equal(getattr(shared, name), getattr(obj, name))
        assert ndshare.share(shared) is shared


def test_what_the_class_adds_arrives() -> None:
    """Names, locks made anew, references to itself, several references to one object."""
    locked = Locked(np.ones(N))
    first, second, image = _through([locked, locked, Image(np.ones(N), "name")])
    assert first is second
    assert first.me is first
    assert first.lock.acquire(blocking=False)
    assert image.name == "name"


def test_other_content_is_pickled_as_ever() -> None:
    """An attribute that holds no array, or is missing, changes nothing."""
    empty = Image([1, 2, 3])  # type: ignore[arg-type]
    empty.pixels = np.float64(3)  # type: ignore[assignment]
    assert _through(empty).pixels == 3
    bare = Private.__new__(Private)
    with pytest.raises(AttributeError):
        _through(bare)


def test_plain_pickle_and_copy_do_not_know_of_it() -> None:
    """The registration is ndshare's alone."""
    image = Image(ndshare.ones(10), "x")
    assert len(pickle.dumps(image)) > 100
    assert not ndshare.is_shared(pickle.loads(pickle.dumps(image)).pixels)
    assert not ndshare.is_shared(copy.deepcopy(image).pixels)


def test_unregistered_class_is_pickled_in_its_own_way() -> None:
    """Without registration all bytes are in the pickle; registered later, picklers in use notice."""
    wrappers.registered.clear()

    def parts() -> int:
        return sum(map(len, record([Image(np.ones(N))]).parts))

    record(None)
    ndshare.register_wrapper(Image, "name")
    assert isinstance(_through(Image(np.ones(5), "text")).name, str)
    ndshare.register_wrapper(Image, "pixels")
    assert parts() < _PICKLE_MAX


@pytest.mark.parametrize(
    ("cls", "name"), [(3, "a"), (Image(np.ones(1)), "pixels"), (Image, 3), (Image, "a b")]
)
def test_register_wrapper_refuses_what_is_no_class_or_name(cls: Any, name: Any) -> None:
    """The message says what was got."""
    with pytest.raises(TypeError, match=r"register_wrapper: .* must be .*, got"):
        ndshare.register_wrapper(cls, name)


# ---- buffers of other libraries


class Holder:
    """Pickles a buffer out of band."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return Holder, (pickle.PickleBuffer(self.data),)


def test_foreign_buffers_are_shared() -> None:
    """`share` moves them; they go by reference then, and read-only ones stay so."""
    holder = Holder(bytearray(b"x" * N))
    shared = ndshare.share(holder)
    assert bytes(shared.data) == bytes(holder.data)
    assert ndshare.is_shared(np.frombuffer(shared.data, np.uint8))
    assert ndshare.share(shared) is shared
    back = _through(shared)
    assert transport.pack(shared).settle().nbytes_copied == 0
    back.data[0] = 7
    assert shared.data[0] == 7
    assert _through(holder).data[0] == ord("x")
    sealed = _through(ndshare.share(holder, mode="r"))
    assert sealed.data.readonly
    assert bytes(sealed.data) == bytes(holder.data)


def test_arrow_tables_go_by_reference() -> None:
    """Tables, slices, strings and missing values of PyArrow."""
    pa = pytest.importorskip("pyarrow")
    n = 20_000
    table = pa.table(
        {"a": np.arange(n), "s": [f"row {i}" for i in range(n)], "m": pa.array([None, 1.5] * (n // 2))}
    )
    with ndshare.ProcessPoolExecutor(1) as executor:
        for obj in (table, table.slice(7, 1000), table.to_batches()[0], table["s"], pa.array(np.arange(n))):
            assert sum(map(len, record(obj).parts)) < _PICKLE_MAX
            back = executor.submit(echo, obj).result()
            assert type(back) is type(obj)
            assert back.equals(obj)
        shared = ndshare.share(table)
        assert shared.equals(table)
        assert transport.pack(shared).settle().nbytes_copied == 0
        assert executor.submit(echo, shared).result().equals(table)
    column = shared["a"].chunk(0)
    assert ndshare.is_shared(column.to_numpy())
    del shared
    gc.collect()
    assert column.to_pylist() == list(range(n))


def test_awkward_arrays_go_by_reference() -> None:
    """Lists of different lengths, records, strings."""
    ak = pytest.importorskip("awkward")
    n = 5000
    with ndshare.ProcessPoolExecutor(1) as executor:
        for obj in (
            ak.Array([[1.0, 2.0], [], [3.0]] * n),
            ak.Array([[1.0, 2.0], [], [3.0]] * n)[5:500],
            ak.Array([{"x": 1, "y": [1, 2]}] * n),
            ak.Array(["abc", "d"] * n),
        ):
            assert sum(map(len, record(obj).parts)) < _PICKLE_MAX
            assert ak.array_equal(executor.submit(echo, obj).result(), obj)
        shared = ndshare.share(ak.Array([[1.0, 2.0], [], [3.0]] * n))
        assert ndshare.is_shared(shared.layout.content.data)
        back = executor.submit(echo, shared).result()
        assert np.shares_memory(back.layout.content.data, shared.layout.content.data)


# ---- views by protocol


class _Interface:
    """Shows memory by ``__array_interface__``."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
        self.array = array


@pytest.mark.parametrize(
    "make", [np.from_dlpack, lambda a: np.asarray(_Interface(a)), lambda a: np.asarray(memoryview(a))]
)
def test_view_by_protocol_stays_valid_and_shared(make: Any) -> None:
    """DLPack, ``__array_interface__`` and buffers: the memory lives as long as the view, and travels."""
    array = ndshare.share(np.arange(float(N)))
    view = make(array)
    assert ndshare.is_shared(view)
    assert np.shares_memory(view, array)
    back = _through(view)
    assert np.shares_memory(back, array)
    del array, back
    gc.collect()
    junk = [ndshare.full(N, -1.0) for _ in range(4)]
    assert (view == np.arange(float(N))).all()
    received = _through(view)
    del view, junk
    gc.collect()
    junk = [ndshare.full(N, -1.0) for _ in range(4)]
    other = make(received)
    del received
    gc.collect()
    assert (other == np.arange(float(N))).all()
    del junk
