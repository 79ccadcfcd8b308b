"""Functors of arrays in files, along their first axis: HDF5 datasets, zarr arrays.

::

    caller                                   worker
    HDF5Functor(dataset) ── file name and ──► opens the file read-only when the first item
                            dataset name      is read, once per process
    ZarrFunctor(array) ──── its store ──────► reads the store itself

Items are read many at a time.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from ndshare.functors.base import Functor, indices_of, is_instance

__all__ = ["HDF5Functor", "HDF5ViewFunctor", "SlabFunctor", "ZarrFunctor"]

# One read costs some 50 µs whatever its size, and a compressed chunk is unpacked anew for every read that
# misses the cache: read up to this much at once, and whole chunks where they fit.
_SLAB_BYTES = 4 << 20
# Others keep the content in memory, in several files, or far away.
_REOPENABLE = ("sec2", "stdio", "direct")
# From this version of the superblock on, a file says in itself that somebody writes it.
_MARKS_WRITERS = 3


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


def _count_items(name: str, shape: tuple[int, ...] | None, what: str) -> int:
    """Return the length of the first axis, or refuse what has none."""
    if not shape:
        raise ValueError(f"{name}: {what} has no dimensions, and so no items; read it by [()]")
    return int(shape[0])


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
        self.count = _count_items("ZarrFunctor", array.shape, "the array")
        self.array = array

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept zarr arrays."""
        return cls(value) if is_instance(value, "zarr", "Array") else None

    def opened(self) -> Any:
        """Return the array; its store opens itself."""
        return self.array


# ---------------------------------------------------------------------- HDF5


class Place(NamedTuple):
    """Where another process finds a dataset."""

    filename: str  # absolute
    name: str
    locking: bool | None  # None: as HDF5 does by itself
    swmr: bool


reopened: list[str] = []
"""What `reduce_hdf5` was given, for whoever has something sent."""


def reduce_hdf5(opened: Any) -> Any:
    """Take an HDF5 file, group or dataset apart: other processes open it by its name, read-only.

    Raises
    ------
    TypeError
        If they cannot, as for `HDF5Functor`.
    """
    if not opened:
        raise TypeError("an HDF5 file that is closed cannot be sent to another process; open it again")
    filename = os.path.abspath(opened.file.filename)
    place = _place_of(opened, filename)
    reopened.append(filename)
    return _reopen, (place, is_instance(opened, "h5py", "File"))


def _reopen(place: Place, whole: bool) -> Any:
    found = _open(place)
    return found.file if whole else found


class HDF5Functor(SlabFunctor):
    """Functor of an `h5py.Dataset`: the kernel gets ``(worker_id, index, dataset[index])``.

    Parameters
    ----------
    dataset : h5py.Dataset
        Of at least one dimension, in an open file.

    Raises
    ------
    ValueError
        If the dataset has no dimensions or its file is closed.

    Notes
    -----
    The caller's process, its threads and forked children read through `dataset` itself. Other processes open
    the file by name, read-only; if the caller has it open for writing, it is flushed before. That is
    refused, with a `TypeError`, for files in memory or of several parts, for datasets without
    a name, and for files of the newest format (``libver="latest"``) that are open for writing, unless in
    SWMR mode: HDF5 lets nobody else read those.

    Reading is fastest when a chunk holds whole items.
    """

    def __init__(self, dataset: Any) -> None:
        if not is_instance(dataset, "h5py", "Dataset"):
            raise TypeError(f"HDF5Functor: needs an h5py.Dataset, got {type(dataset).__name__}")
        if not dataset:
            raise ValueError("HDF5Functor: the file of this dataset is closed; open it again")
        self.count = _count_items("HDF5Functor", dataset.shape, f"the dataset {dataset.name!r}")
        self._dataset = dataset
        # A relative name means this file only until the working directory changes.
        self._filename = os.path.abspath(dataset.file.filename)
        self._place: Place | None = None

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept h5py datasets."""
        return cls(value) if is_instance(value, "h5py", "Dataset") else None

    def opened(self) -> Any:
        """Return the dataset, opened in this process."""
        if self._dataset is None:
            assert self._place is not None
            self._dataset = _open(self._place)
        return self._dataset

    def close(self) -> None:
        """Give back the file if it was opened here by name; for the end of a map in a worker.

        While it is open to read, nobody can open it to write. A later `iterate` opens it again.
        """
        if self._place is not None:
            self._dataset = None

    def __getstate__(self) -> dict[str, Any]:
        place = self._place
        if place is None:
            place = _place_of(self._dataset, self._filename)
        return {"count": self.count, "_place": place, "_filename": self._filename, "_dataset": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class HDF5ViewFunctor(SlabFunctor):
    """Functor of ``dataset.asstr()``, ``dataset.astype(…)`` and ``dataset.fields(…)`` of h5py.

    Parameters
    ----------
    view : AsStrView, AsTypeView or FieldsView
        The kernel gets ``(worker_id, index, view[index])``. The dataset behind it travels as that of an
        `HDF5Functor`.
    """

    def __init__(self, view: Any) -> None:
        if not _is_view(view):
            raise TypeError(f"HDF5ViewFunctor: needs a view of an h5py.Dataset, got {type(view).__name__}")
        self._dataset = HDF5Functor(view._dset)
        self.count = self._dataset.count
        self._view = copy.copy(view)
        self._view._dset = None

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept the views of datasets."""
        return cls(value) if _is_view(value) else None

    def opened(self) -> Any:
        """Return the view, over the dataset as it is opened in this process."""
        view = copy.copy(self._view)
        view._dset = self._dataset.opened()
        return _View(view)

    def close(self) -> None:
        """Give back the file; see `HDF5Functor.close`."""
        self._dataset.close()


class _View:
    """A view with what `SlabFunctor` asks for: the chunks of its dataset."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self.shape, self.dtype, self.chunks = view.shape, view.dtype, view._dset.chunks

    def __getitem__(self, where: Any) -> Any:
        return self._view[where]


def _is_view(value: Any) -> bool:
    names = "AsStrWrapper", "AsStrView", "AstypeWrapper", "AsTypeView", "FieldsWrapper", "FieldsView"
    return is_instance(value, "h5py._hl.dataset", *names)


def _place_of(dataset: Any, filename: str) -> Place:
    """Return where other processes find a dataset, and make sure that they find its present content."""
    if not dataset:
        raise TypeError(_refusal("a dataset", filename, "its file is closed", "keep it open"))
    file = dataset.file
    name = dataset.name
    what = f"the dataset {name!r}"
    if name is None:
        raise TypeError(_refusal("a dataset", filename, "it has no name", "give it one"))
    if file.driver not in _REOPENABLE:
        reason = f"nobody else can open it (driver {file.driver!r})"
        raise TypeError(_refusal(what, filename, reason, "write it to a file"))
    if not _is_same_file(file, filename):
        reason = "another file, or none, has that name now"
        raise TypeError(_refusal(what, filename, reason, "open it by its full name"))
    if file.mode == "r":
        return Place(filename, name, None if _has_locks(file) else False, file.swmr_mode)
    if not file.swmr_mode and file.id.get_create_plist().get_version()[0] >= _MARKS_WRITERS:
        reason = "a file of this format (libver='latest') that is open for writing can be read by nobody else"
        raise TypeError(_refusal(what, filename, reason, "open it with mode 'r', or set file.swmr_mode"))
    file.flush()
    return Place(filename, name, False, file.swmr_mode)  # the writer's lock would keep everybody out


def _refusal(what: str, filename: str, reason: str, remedy: str) -> str:
    return (
        f"cannot send {what} of {filename!r} to another process: {reason}; {remedy}, or read it into an "
        "array by dataset[:]"
    )


def _is_same_file(file: Any, filename: str) -> bool:
    try:
        there = os.stat(filename)
    except OSError:
        return False
    here = os.fstat(file.id.get_vfd_handle())
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _has_locks(file: Any) -> bool:
    access = file.id.get_access_plist()
    return not hasattr(access, "get_file_locking") or bool(access.get_file_locking()[0])


def _open(place: Place) -> Any:
    import h5py

    try:
        file = _opened_file(h5py, place)
        return file[place.name]
    except (OSError, KeyError) as error:
        raise OSError(
            f"cannot open {place.filename!r} to read {place.name!r}: {error}; the file must stay where it "
            "is, readable by every worker, and open for writing nowhere but in the caller"
        ) from error


def _opened_file(h5py: Any, place: Place) -> Any:
    try:
        return h5py.File(place.filename, "r", locking=place.locking, swmr=place.swmr)
    except OSError as error:
        if "locking flag values don't match" not in str(error):
            raise
    # The kernel has the file open in this process, with another locking than ours; HDF5 insists on one.
    other = None if place.locking is False else False
    return h5py.File(place.filename, "r", locking=other, swmr=place.swmr)
