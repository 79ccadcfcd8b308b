"""What functors of arrays in files have in common: items are read many at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ndshare.functors.base import Functor, indices_of

# One read costs some 50 µs whatever its size, and a compressed chunk is unpacked anew for every read that
# misses the cache: read up to this much at once, and whole chunks where they fit.
_SLAB_BYTES = 4 << 20


class SlabFunctor(Functor):
    """Base of functors whose array is read along its first axis, a slab of items at a time.

    Subclasses set `count` and return the array from `opened`.
    """

    count: int

    def opened(self) -> Any:
        """Return the array, opened in this process."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.count

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, array[index])``; values are views of what was read at once."""
        indices = indices_of(share, self.count)
        if not indices:
            return
        array = self.opened()
        if indices.step != 1:
            for index in indices:
                yield index, array[index]
            return
        start = indices.start
        while start < indices.stop:
            stop = min(indices.stop, _slab_end(array, start))
            yield from enumerate(array[start:stop], start)
            start = stop


def _slab_end(array: Any, start: int) -> int:
    item_bytes = max(1, array.dtype.itemsize * math.prod(array.shape[1:]))
    most: int = max(1, _SLAB_BYTES // item_bytes)
    per_chunk: int = array.chunks[0] if array.chunks else 1
    if most < per_chunk:
        return start + most
    return (start + most) // per_chunk * per_chunk


def check_has_items(name: str, shape: tuple[int, ...] | None, what: str) -> int:
    """Return the length of the first axis, or refuse what has none."""
    if not shape:
        raise ValueError(f"{name}: {what} has no dimensions, and so no items; read it by [()]")
    return int(shape[0])
