"""Messages with one large array: the same rules as for any other message."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._memory import segments
from ndshare._transport import transport
from ndshare._transport.parcel import ALONE, COPIED_BELOW
from ndshare._transport.settling import settle_alone
from ndshare._transport.staging import OWN_MIN
from ndshare.errors import TransportError

pytestmark = pytest.mark.once

_SIDE = 512  # squares of float64 of so many are two megabytes
_RECORD = np.dtype([("a", "u1"), (("title", "b"), ">f8"), ("c", "i4", (2,))], align=True)


def _layouts() -> dict[str, np.ndarray]:
    square = np.random.default_rng(8).normal(size=(_SIDE, _SIDE))
    wide = np.random.default_rng(9).normal(size=(_SIDE, 2 * _SIDE))
    record = np.zeros(_SIDE * _SIDE // 2, _RECORD)
    record["b"] = square.ravel()[: len(record)]
    return {
        "C": square,
        "F": np.asfortranarray(square),
        "reversed": square[::-1],
        "transposed cube": square.reshape(8, 64, -1).transpose(2, 0, 1),
        "every other column": wide[:, ::2],
        "broadcast": np.broadcast_to(square[0], (_SIDE, _SIDE)),
        "structured": record,
        "dates": square.view("i8").view("M8[us]"),
        "strings": np.full(50_000, "äöü", "U8"),
        "big-endian": square.astype(">f4"),
        "with metadata": square.view(np.dtype("f8", metadata={"unit": "mm"})),
        "at the limit": np.arange(OWN_MIN // 8, dtype=np.int64),
        "just below": np.arange(OWN_MIN // 8 - 1, dtype=np.int64),
    }


def _again(x: np.ndarray) -> np.ndarray:
    """A new array with the layout of its argument."""
    return x.copy("K")


def _first_of(x: np.ndarray) -> Any:
    return x.flags.writeable, x.flags.owndata, x.strides, x.dtype, x.copy("K")


@pytest.mark.parametrize("name", list(_layouts()))
def test_argument_and_result_are_what_a_copy_is(name: str) -> None:
    """Values, dtype and order of axes; writable and the receiver's own."""
    x = _layouts()[name]
    wanted = x.copy("K")
    with ndshare.ProcessPoolExecutor(1) as executor:
        writeable, _, strides, dtype, seen = executor.submit(_first_of, x).result()
        result = executor.submit(_again, x).result()
    assert writeable
    assert strides == wanted.strides
    assert dtype == x.dtype
    assert (dtype.metadata or None) == x.dtype.metadata  # NumPy 2.0 makes an empty one for dates
    for arrived in (seen, result):
        assert arrived.dtype == x.dtype
        assert arrived.strides == wanted.strides
        assert np.array_equal(arrived, x)
        arrived.flat[0] = arrived.flat[1]
    assert np.array_equal(x, wanted)


_kept: list[np.ndarray] = []


def _keep(x: np.ndarray) -> np.ndarray:
    y = x + 1
    _kept.append(y)
    return y


def _change_kept(value: float) -> float:
    _kept[0][:] = value
    return float(_kept[0][0])


def test_result_that_the_worker_keeps_is_copied() -> None:
    """What the worker writes there later does not show."""
    x = np.zeros(OWN_MIN // 8)
    with ndshare.ProcessPoolExecutor(1) as executor:
        result = executor.submit(_keep, x).result()
        assert executor.submit(_change_kept, 7.0).result() == 7
        assert result.min() == result.max() == 1


def _argument(x: np.ndarray) -> np.ndarray:
    x += 1
    return x


def test_argument_that_comes_back() -> None:
    """The caller's own stays as it was; the one that comes back is nobody else's."""
    x = np.zeros(OWN_MIN // 8)
    with ndshare.ProcessPoolExecutor(1) as executor:
        first, second = (executor.submit(_argument, x).result() for _ in range(2))
    first[:] = 5
    assert x.max() == 0
    assert second.min() == second.max() == 1


def test_shared_arrays_go_by_reference_alone_too() -> None:
    """The short way is for by-value memory."""
    shared = ndshare.zeros(OWN_MIN)
    with ndshare.ProcessPoolExecutor(1) as executor:
        back = executor.submit(_argument, shared).result()
    assert np.shares_memory(back, shared)
    assert shared.max() == 1


def _settled(obj: Any) -> transport.Parcel:
    return transport.pack(obj).settle()


def test_message_is_a_short_one() -> None:
    """For one array, in whatever it lies; not for two, nor for a small one."""
    large, small = np.zeros(OWN_MIN // 8), np.zeros(OWN_MIN // 8 - 1)
    for obj, alone in (({"x": [large]}, True), ((large, large.copy()), False), (small, False), ([1], False)):
        parcel = _settled(obj)
        try:
            assert (parcel.data[0] == ALONE) is alone
        finally:
            parcel.release()


def test_descriptor_that_got_lost() -> None:
    """A clear error, and nothing stays open."""
    parcel = _settled(np.zeros(OWN_MIN // 8))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TransportError, match="descriptors"):
        transport.unpack(parcel.data, [])
    assert len(os.listdir("/proc/self/fd")) == before
    parcel.release()


def test_memory_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft can be settled later."""
    x = np.arange(float(OWN_MIN // 8))
    draft = transport.pack(x)

    def refuse(_nbytes: int) -> segments.Block:
        raise ndshare.CapacityError(8, 0, "a test")

    with monkeypatch.context() as patch:
        patch.setattr("ndshare._transport.settling.stage", refuse)
        with pytest.raises(ndshare.CapacityError):
            draft.settle()
    parcel = draft.settle()
    assert np.array_equal(transport.unpack(parcel.data, parcel.descriptors()), x)
    parcel.release()


def test_results_too_small_or_too_sparse_go_the_general_way() -> None:
    """One that would keep much more memory than it fills is copied."""
    with segments.recycled_memory():
        table = np.zeros(COPIED_BELOW)
        row = transport.pack(table[: COPIED_BELOW // 3], lend_values=True)
        parcel = row.settle()
        assert parcel.nbytes_copied
        parcel.release()
        little = np.zeros(COPIED_BELOW // 8 - 1)
        assert settle_alone(little, b"", frozenset()) is None


@pytest.mark.filterwarnings("ignore:Setting the strides:DeprecationWarning")
def test_result_whose_elements_overlap_is_copied() -> None:
    """As pickle does: each element of what arrives is an element of its own."""
    with segments.recycled_memory():
        x = np.ones(COPIED_BELOW)
        x.strides = (0,)
        draft = transport.pack(x, lend_values=True)
        del x
        parcel = draft.settle()
        arrived = transport.unpack(parcel.data, parcel.descriptors())
        parcel.release()
        assert arrived.strides == (8,)
        arrived[0] = 2
        assert arrived[1] == 1
