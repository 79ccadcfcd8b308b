"""Which arrays have rows per worker or per block of items: reducing, and cutting shares, must know."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy.typing as npt


class Rows:
    """Arrays with rows per worker or per block that are alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], str, int | None]] = {}

    def note(self, array: npt.NDArray[Any], order: str, per_block: int | None) -> None:
        """Remember an array: its memory layout, and the items per row, or None for rows per worker."""
        key = id(array)
        reference = weakref.ref(array, lambda _: self._known.pop(key, None))
        self._known[key] = reference, order, per_block

    def of(self, array: npt.NDArray[Any]) -> tuple[str, int | None] | None:
        """Return what was noted of an array; None for any other, views included."""
        known = self._known.get(id(array))
        return known[1:] if known is not None and known[0]() is array else None

    def per_worker(self) -> list[npt.NDArray[Any]]:
        """Return the arrays with rows per worker that are alive."""
        known = [(reference(), n) for reference, _, n in list(self._known.values())]
        return [array for array, per_block in known if array is not None and per_block is None]

    def block(self) -> int:
        """Return how many items belong together, for all such arrays."""
        if not self._known:
            return 1
        return math.lcm(*(n for _, _, n in list(self._known.values()) if n))


rows = Rows()
