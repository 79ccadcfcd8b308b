"""Small arrays are part of the pickle while all of a message stay short."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pytest

import ndshare
from ndshare._pickling import pickler
from tests.peer import to_oneself

_ROOM = 24 * 1024


class Unwilling:
    """Does not let itself be pickled."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("unwilling")


@pytest.mark.parametrize("nbytes", [4096, 4097, 10_000, _ROOM, _ROOM + 1, 40_000, 60_000])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_arrays_arrive_whatever_the_room(nbytes: int, count: int) -> None:
    """As the receiver's own, writable, with the same bytes, beside a long string too."""
    arrays = [np.arange(nbytes, dtype=np.uint8) + np.uint8(number) for number in range(count)]
    for more in ("", "x" * 30_000, "x" * 70_000):
        arrived, text = to_oneself((arrays, more))
        assert text == more
        for one, other in zip(arrays, arrived, strict=True):
            assert np.array_equal(one, other)
            assert not np.shares_memory(one, other)
            other[:] = 0


def test_layouts_are_those_of_a_copy() -> None:
    """Order of axes, steps, one object sent twice."""
    table = np.asfortranarray(np.arange(1500.0).reshape(30, 50))
    stepped = np.arange(3000.0)[::2]
    first, again, other = to_oneself([table, table, stepped])
    assert first is again
    assert first.strides == table.strides
    assert np.array_equal(first, table)
    assert np.array_equal(other, stepped)


def test_room_is_for_one_message() -> None:
    """What does not fit is noted; the next message, after an error too, has all of it."""
    ten = [np.zeros(10_000, np.uint8) for _ in range(10)]
    for _ in range(3):
        assert len(pickler.record(ten).notes) == 8
        with pytest.raises(ValueError, match="unwilling"):
            pickler.record([*ten, Unwilling()])
    assert not pickler.record(ten[:2]).notes


def test_results_of_tasks_arrive() -> None:
    """Of every size around the limits, from memory of the worker's own."""
    sizes = [1, 4096, 4100, 9_000, _ROOM, _ROOM + 8, 50_000, 70_000]

    def made(nbytes: int) -> list[Any]:
        return [np.full(nbytes, 7, np.uint8) for _ in range(4)]

    with ndshare.ProcessPoolExecutor(2) as executor:
        for nbytes, arrays in zip(sizes, executor.map(made, sizes), strict=True):
            assert [array.nbytes for array in arrays] == [nbytes] * 4
            assert all((array == 7).all() for array in arrays)
