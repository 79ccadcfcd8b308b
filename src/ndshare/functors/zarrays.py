"""Functor of zarr arrays, along their first axis."""

from __future__ import annotations

from typing import Any, Self

from ndshare.functors.base import is_instance
from ndshare.functors.slabs import SlabFunctor, check_has_items

__all__ = ["ZarrFunctor"]


class ZarrFunctor(SlabFunctor):
    """Functor of a `zarr.Array`: the kernel gets ``(worker_id, index, array[index])``.

    Parameters
    ----------
    array : zarr.Array
        Of at least one dimension.

    Notes
    -----
    Workers read the store themselves; zarr says how a store travels, so that one in memory is copied to
    every worker. Reading is fastest when a chunk holds whole items.
    """

    def __init__(self, array: Any) -> None:
        if not is_instance(array, "zarr", "Array"):
            raise TypeError(f"ZarrFunctor: needs a zarr.Array, got {type(array).__name__}")
        self.count = check_has_items("ZarrFunctor", array.shape, "the array")
        self.array = array

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept zarr arrays."""
        return cls(value) if is_instance(value, "zarr", "Array") else None

    def opened(self) -> Any:
        """Return the array; its store opens itself."""
        return self.array
