"""Which items belong together because a file keeps what is written for them in one piece.

A chunk of a zarr array or of a chunked HDF5 dataset is read, changed and written as a whole: two workers that
write rows of one chunk take rows back from each other. So no share of a map ends within a chunk.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ndshare._map.watch.captured import globals_of
from ndshare._pickling import variables
from ndshare._system import check_count


def check_align(align: object) -> None:
    """Refuse what says nothing about chunks."""
    for one in align if isinstance(align, list | tuple) else () if align is None else (align,):
        if hasattr(one, "chunks"):
            continue
        if isinstance(one, np.ndarray) or not hasattr(one, "__index__"):
            raise TypeError(
                f"map: align is {one!r}; give a number of items, a zarr array, an h5py dataset or another "
                "array with chunks, or a list of these"
            )
        check_count("align", one, 1)


def block_of_items(kernel: Callable[..., object], align: Any, items: int | None) -> int:
    """Return how many items belong together.

    Parameters
    ----------
    kernel : callable
        Zarr arrays that it captures, and can write to, are respected where they have as many rows as items.
    align : int, array with chunks, or list of these
        What else is to be respected.
    items : int or None
        How many there are; None if that is not known.
    """
    if align is None and "zarr" not in sys.modules:
        return 1
    given = align if isinstance(align, list | tuple) else [] if align is None else [align]
    sizes = [_rows_of_chunk(one, items, given=True) for one in given]
    sizes += [_rows_of_chunk(array, items, given=False) for array in _captured(kernel)]
    return math.lcm(*sizes)


def _rows_of_chunk(target: Any, items: int | None, *, given: bool) -> int:
    if not hasattr(target, "chunks"):
        return int(target)
    pieces = getattr(target, "shards", None) or target.chunks  # of zarr 3 a shard is written as a whole
    if pieces is None:  # a dataset in one stretch: rows are written by themselves
        return 1
    axes = [axis for axis, length in enumerate(target.shape) if length == items]
    if not axes and (given or items is None):
        axes = [0]
    return math.lcm(*(_length(pieces[axis]) for axis in axes))


def _length(piece: Any) -> int:
    """Return the length of the chunks along an axis: a number, or one for each chunk as Dask has it."""
    if not isinstance(piece, tuple):
        return max(1, int(piece))
    if len({*piece[:-1]}) > 1:
        raise ValueError(f"map: align has chunks of different lengths, {piece}; give one with equal chunks")
    return max(1, int(piece[0])) if piece else 1


def _captured(kernel: Callable[..., object]) -> Iterator[Any]:
    """Yield the zarr arrays that a kernel captures, also in a list, dict or group, and could write to."""
    zarr = sys.modules.get("zarr")
    kind, group = (getattr(zarr, name, None) for name in ("Array", "Group"))
    if not (isinstance(kind, type) and isinstance(group, type)):
        return
    used = {**dict(variables(kernel)), **globals_of(kernel)}
    for value in used.values():
        held: Iterable[Any] = (value,)
        if type(value) in (list, tuple):
            held = value
        elif type(value) is dict:
            held = value.values()
        elif issubclass(type(value), group):
            held = () if value.read_only else (array for _, array in value.arrays())
        for one in held:
            if issubclass(type(one), kind) and one.ndim and not getattr(one, "read_only", False):
                yield one
