"""Copies ordinary arrays into recycled segments, many to a segment.

A segment costs its receiver a descriptor, a mapping and some 12 microseconds, however small it is,
so arrays are packed together; a large one gets a segment of its own, so that the receiver can keep
it without keeping others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ndshare._memory import Block, copy_array, dense_strides, stage
from ndshare._transport.parcel import release

ALIGNMENT = 64  # bytes; a cache line, and enough for every vector instruction

OWN_MIN = 1 << 20  # an array from here on has a segment of its own
_GROUP_MAX = 4 << 20  # what one kept array may keep alive of others
_SEGMENTS_MAX = 64  # per message, about: beyond, both limits grow


class Place:
    """Where one array goes: a block, an offset in it and the strides of the copy."""

    __slots__ = ("block", "offset", "strides")

    def __init__(self, block: Block, offset: int, strides: tuple[int, ...] | None) -> None:
        self.block = block
        self.offset = offset
        self.strides = strides


def aligned(nbytes: int) -> int:
    """Round up to the alignment of arrays in a segment."""
    return (nbytes + ALIGNMENT - 1) & -ALIGNMENT


def copy_strides(array: np.ndarray[Any, Any]) -> tuple[int, ...] | None:
    """Return the strides of a copy that keeps the order of the axes; None stands for C order."""
    if array.flags.c_contiguous:
        return None
    return dense_strides(array.shape, array.strides, array.itemsize)


def copy_into(buffer: Any, offset: int, strides: tuple[int, ...] | None, array: np.ndarray[Any, Any]) -> None:
    """Copy an array into a buffer."""
    copy: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, buffer, offset, strides)
    copy_array(copy, array)


def stage_arrays(arrays: Sequence[np.ndarray[Any, Any]]) -> list[Place]:
    """Copy arrays into staged blocks.

    Returns
    -------
    list of Place
        One per array.

    Raises
    ------
    CapacityError
        If the memory does not fit. Nothing stays allocated then.
    """
    fair_share = sum(array.nbytes for array in arrays) // _SEGMENTS_MAX
    own_min = max(OWN_MIN, fair_share)
    group_max = max(_GROUP_MAX, fair_share)
    places: list[Place | None] = [None] * len(arrays)
    group: list[int] = []
    filled = 0
    try:
        for number, array in enumerate(arrays):
            nbytes = array.nbytes
            if nbytes >= own_min:
                _copy_group(arrays, [number], nbytes, places)
                continue
            if filled + nbytes > group_max:
                _copy_group(arrays, group, filled, places)
                group, filled = [], 0
            group.append(number)
            filled += aligned(nbytes)
        if group:
            _copy_group(arrays, group, filled, places)
    except BaseException:
        for place in places:
            if place is not None:
                release(place.block)
        raise
    return places  # type: ignore[return-value]  # every place is set


def _copy_group(
    arrays: Sequence[np.ndarray[Any, Any]], group: list[int], nbytes: int, places: list[Place | None]
) -> None:
    block = stage(nbytes)
    offset = 0
    for number in group:
        array = arrays[number]
        strides = copy_strides(array)
        copy_into(block, offset, strides, array)
        places[number] = Place(block, offset, strides)
        offset += aligned(array.nbytes)


def stage_bytes(parts: Sequence[Any]) -> Block:
    """Copy byte strings, one after the other, into a staged block."""
    block = stage(sum(map(len, parts)))
    target: np.ndarray[Any, Any] = np.frombuffer(memoryview(block), np.uint8)  # NumPy copies without the GIL
    offset = 0
    for part in parts:
        target[offset : offset + len(part)] = np.frombuffer(part, np.uint8)
        offset += len(part)
    return block
