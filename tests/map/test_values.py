"""What a kernel gets of an array: the scalars that indexing gives, each an object of its own if it is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ndshare

_CODES = (*np.typecodes["AllInteger"], *np.typecodes["AllFloat"], "?", ">f8", ">i4", "M8[s]", "S3", "U2")


def _mapped(array: npt.NDArray[Any]) -> list[Any]:
    """Return the values that a kernel gets; all of them are kept."""
    found: list[Any] = [None] * len(array)

    def kernel(_worker_id: int, index: int, value: Any) -> None:
        found[index] = value

    ndshare.SerialContext().map(kernel, array)
    return found


def _same(found: list[Any], array: npt.NDArray[Any]) -> None:
    expected = [array[index] for index in range(len(array))]
    assert [type(value) for value in found] == [type(value) for value in expected]
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    assert found == expected


@pytest.mark.parametrize("code", _CODES)
def test_values_are_those_of_indexing(code: str) -> None:
    """Of every dtype, in order and with steps of either sign."""
    numbers = np.arange(40, dtype=np.int8).astype(code)
    for array in (numbers, numbers[::3], numbers[::-1], np.asfortranarray(numbers.reshape(8, 5))[:, 2]):
        _same(_mapped(array), array)


def test_values_with_fields_are_views() -> None:
    """A record, an object, a row."""
    records = np.zeros(5, [("a", int), ("b", float)])
    _same(_mapped(records), records)
    objects = np.array([[1], None, "x"], object)
    assert [value is objects[index] for index, value in enumerate(_mapped(objects))] == [True] * 3
    rows = np.arange(6.0).reshape(3, 2)
    assert all(np.shares_memory(row, rows) for row in _mapped(rows))


def test_value_that_is_kept_does_not_change() -> None:
    """Every third is kept, by itself or in something else; the others may be made in the same place."""
    array = np.arange(300.0)
    kept: dict[int, Any] = {}

    def kernel(_worker_id: int, index: int, value: np.float64) -> None:
        if index % 3 == 0:
            kept[index] = value if index % 2 else (memoryview(value), value.conjugate())

    ndshare.SerialContext().map(kernel, array)
    for index, value in kept.items():
        found = value if index % 2 else np.frombuffer(value[0], float)[0]
        assert found == index


def test_kernel_may_change_the_array() -> None:
    """Values are read when their item begins; an array that was made shorter ends the map by an error."""
    array = np.arange(10)
    found = []

    def count_up(_worker_id: int, index: int, value: int) -> None:
        found.append(int(value))
        array[index + 1 :] += 1

    ndshare.SerialContext().map(count_up, array)
    assert found == list(range(0, 20, 2))

    def shorten(_worker_id: int, _index: int, _value: int) -> None:
        array.resize(3, refcheck=False)

    with pytest.raises(IndexError):
        ndshare.SerialContext().map(shorten, array)
