"""Functor of EXtra-data's objects, train by train.

References
----------
pasha 0.1.2, ``ExtraDataFunctor``; EXtra-data, https://extra-data.readthedocs.io.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np

from ndshare.functors.base import Functor, indices_of, is_instance

__all__ = ["ExtraDataFunctor"]

_LIBRARY = "extra_data"
_SOURCES = "extra_data.sourcedata"
_COMPONENTS = "extra_data.components"


class ExtraDataFunctor(Functor):
    """Functor of EXtra-data objects: the kernel gets ``(worker_id, index, train_id, data)``.

    Page: docs/functors.md.

    Parameters
    ----------
    obj : DataCollection, SourceData, KeyData, detector component or its key data
        What ``open_run``, ``run.select(...)``, ``run[source]``, ``run[source, key]``, ``AGIPD1M(run)`` or
        ``AGIPD1M(run)["image.data"]`` gives. `data` is a dict of dicts for a DataCollection, an array for a
        KeyData, a dict of what there is by key for a SourceData, a dict of labelled arrays for a detector,
        and a labelled array for its key data. None for a train without data.

    Attributes
    ----------
    obj : object
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
                "ExtraDataFunctor: needs a DataCollection, SourceData, KeyData or detector component, got "
                f"{type(obj).__name__}"
            )
        self.obj = obj
        self.n_trains = len(obj.train_ids)
        self._pid = os.getpid()

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept what has trains."""
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
        if is_instance(self.obj, _COMPONENTS, "MultimodKeyData"):
            for index in indices:
                chosen = self.obj.select_trains(slice(index, index + 1))
                yield index, int(self.obj.train_ids[index]), _labelled(chosen)
            return
        chosen = self.obj.select_trains(share)
        train_ids = list(map(int, chosen.train_ids))
        entries: Iterable[tuple[int, Any]]
        if is_instance(chosen, _LIBRARY, "KeyData"):
            entries = _key_entries(chosen, train_ids)
        elif is_instance(chosen, _SOURCES, "SourceData"):
            entries = _source_entries(chosen, train_ids)
        elif is_instance(chosen, _COMPONENTS, "MultimodDetectorBase"):
            entries = ((number, data or None) for number, data in chosen.trains(require_all=False))
        else:
            entries = chosen.trains()
        for index, (train_id, data) in zip(indices, entries, strict=True):
            yield index, train_id, data

    def close(self) -> None:
        """Close the files; for the end of a map in a worker.

        While they are open to read, nobody can open them to write. A later `iterate` opens them again.
        """
        for file in _files_of(self.obj):
            file.close()

    def _leave_inherited_files(self) -> None:
        """Close what a fork has passed on, once: HDF5 is not to use one open file in two processes."""
        pid = os.getpid()
        if pid != self._pid:
            self.close()
            self._pid = pid


def _is_ours(obj: Any) -> bool:
    return (
        is_instance(obj, _LIBRARY, "DataCollection", "KeyData")
        or is_instance(obj, _SOURCES, "SourceData")
        or is_instance(obj, _COMPONENTS, "MultimodDetectorBase", "MultimodKeyData")
    )


def _files_of(obj: Any) -> Any:
    if is_instance(obj, _COMPONENTS, "MultimodKeyData"):
        obj = obj.det
    return obj.data.files if is_instance(obj, _COMPONENTS, "MultimodDetectorBase") else obj.files


def _labelled(chosen: Any) -> Any:
    """Return the data of a detector's key in one train, or None if no module has any."""
    whole = chosen.det[chosen.key]  # of a selection of pulses EXtra-data cannot tell
    return chosen.xarray() if whole.data_availability().any() else None


def _source_entries(source: Any, train_ids: list[int]) -> Iterator[tuple[int, Any]]:
    """Yield an entry for every train: what there is by key, or None if there is nothing."""
    names = sorted(source.keys())
    columns = [_key_entries(source[name], train_ids) for name in names]
    for train_id in train_ids:
        found = {name: next(column)[1] for name, column in zip(names, columns, strict=True)}
        yield train_id, {name: data for name, data in found.items() if data is not None} or None


def _key_entries(key: Any, train_ids: Iterable[int]) -> Iterator[tuple[int, Any]]:
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
