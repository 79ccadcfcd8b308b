"""Functor of EXtra-data's DataCollection and KeyData, train by train.

References
----------
pasha 0.1.2, ``ExtraDataFunctor``; EXtra-data, https://extra-data.readthedocs.io.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from ndshare.functors.base import Functor, indices_of, is_instance

__all__ = ["ExtraDataFunctor"]

_LIBRARY = "extra_data"


class ExtraDataFunctor(Functor):
    """Functor of EXtra-data objects: the kernel gets ``(worker_id, index, train_id, data)``.

    Page: docs/functors.md.

    Parameters
    ----------
    obj : extra_data.DataCollection or extra_data.KeyData
        What ``open_run``, ``run.select(...)`` or ``run[source, key]`` gives. `data` is a dict of dicts for
        a DataCollection, an array for a KeyData; None for a train without data of that key.

    Attributes
    ----------
    obj : extra_data.DataCollection or extra_data.KeyData
        The same.
    n_trains : int
        Number of trains.

    Notes
    -----
    `index` is always the position in ``obj.train_ids``, also behind trains for which a source has
    recorded nothing. Every process opens the files anew when it first reads: a description of the
    files, sources and trains travels, never an open file.
    """

    def __init__(self, obj: Any) -> None:
        if not _is_ours(obj):
            raise TypeError(
                f"ExtraDataFunctor: needs a DataCollection or KeyData of EXtra-data, got {type(obj).__name__}"
            )
        self.obj = obj
        self.n_trains = len(obj.train_ids)
        self._pid = os.getpid()

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept DataCollection and KeyData."""
        return cls(value) if _is_ours(value) else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pid = os.getpid()  # EXtra-data's objects arrive with all files closed

    def __len__(self) -> int:
        return self.n_trains

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, train_id, data)``."""
        indices = indices_of(share, self.n_trains)
        if not indices:
            return
        self._leave_inherited_files()
        chosen = self.obj.select_trains(share)
        train_ids = map(int, chosen.train_ids)
        if is_instance(chosen, _LIBRARY, "KeyData"):
            entries = _key_entries(chosen, train_ids)
        else:
            entries = chosen.trains()
        for index, (train_id, data) in zip(indices, entries, strict=True):
            yield index, train_id, data

    def close(self) -> None:
        """Close the files; for the end of a map in a worker.

        While they are open to read, nobody can open them to write. A later `iterate` opens them again.
        """
        for file in self.obj.files:
            file.close()

    def _leave_inherited_files(self) -> None:
        """Close what a fork has passed on, once: HDF5 is not to use one open file in two processes."""
        pid = os.getpid()
        if pid != self._pid:
            self.close()
            self._pid = pid


def _is_ours(obj: Any) -> bool:
    return is_instance(obj, _LIBRARY, "DataCollection", "KeyData")


def _key_entries(key: Any, train_ids: Iterator[int]) -> Iterator[tuple[int, Any]]:
    """Yield an entry for every train.

    ``KeyData.trains`` leaves out trains that the files of the source do not list, and runs of trains
    without data even with ``include_empty``.
    """
    present = key.trains(include_empty=True)
    upcoming = next(present, None)
    for train_id in train_ids:
        while upcoming is not None and upcoming[0] < train_id:  # listed twice, or out of order
            upcoming = next(present, None)
        if upcoming is not None and upcoming[0] == train_id:
            yield train_id, upcoming[1]
            upcoming = next(present, None)
        else:
            yield train_id, _read_train(key, train_id)


def _read_train(key: Any, train_id: int) -> Any:
    """Return the data of one train, or None if there are none."""
    found = key.train_from_id(train_id)
    if not isinstance(found, tuple):
        return None  # in none of the files
    data = found[1]
    is_empty = np.ndim(data) > len(key.entry_shape) and len(data) == 0
    return None if is_empty else data
