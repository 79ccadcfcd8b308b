"""Moves the arrays of anything that wraps arrays into shared memory.

`share` takes an object apart as pickle would, replaces every array by its shared equal and puts the
object together again, in this process. Whatever pickle can copy can be shared so: DataFrames, xarray
objects, sparse matrices, dicts, lists, dataclasses.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any, Literal, TypeVar

import numpy as np

from ndshare._arrays import share_array
from ndshare._memory import is_movable
from ndshare._pickling import SLOT, Session, reduce_exception, reduce_subclass, same
from ndshare._system import selective

__all__ = ["share"]

T = TypeVar("T")


class _SharingSession(Session):
    """A session that notes finished arrays, for the same process."""

    def __init__(self, mode: Literal["rw", "r"]) -> None:
        super().__init__()
        self.mode = mode
        self.moved = False

    def on_array(self, array: np.ndarray[Any, Any]) -> Any:
        if not is_movable(array.dtype):
            return array.__reduce_ex__(5)
        shared = share_array(array, self.mode)
        self.moved = self.moved or (shared is not array and array.nbytes > 0)
        return self.as_it_is(shared)

    def on_subclass(self, array: np.ndarray[Any, Any]) -> Any:
        if isinstance(array, np.memmap):  # what is in shared memory is not in a file
            return self.on_array(np.ndarray.view(array, np.ndarray))
        return reduce_subclass(array)

    def on_named(self, obj: Any) -> Any:
        found: Any = sys.modules.get(obj.__module__)
        for part in obj.__qualname__.split("."):
            found = getattr(found, part, None)
        return NotImplemented if found is obj else self.as_it_is(obj)

    def on_name_only(self, obj: Any) -> Any:
        return self.as_it_is(obj)

    on_cached = on_cell = on_module = on_name_only

    def buffer(self, note: Any) -> Any:
        """Return what is handed to the unpickler; other libraries' buffers are shared."""
        if not isinstance(note, pickle.PickleBuffer):
            return note
        data: np.ndarray[Any, Any] = np.frombuffer(note.raw(), np.uint8)
        shared = share_array(data, self.mode)
        self.moved = self.moved or shared is not data
        return memoryview(shared)  # type: ignore[arg-type]

    def as_it_is(self, obj: Any) -> Any:
        """Hand an object over without taking it apart."""
        self.notes.append(obj)
        return same, (SLOT,)


class _SharingPickler(pickle.Pickler):
    """A C pickler with attributes."""


def share(obj: T, mode: Literal["rw", "r"] = "rw") -> T:
    """Return the equal of an object with all its arrays in shared memory.

    Page: docs/arrays.md.

    Parameters
    ----------
    obj : numpy.ndarray or object
        An array, or anything pickle can copy: DataFrame, xarray object, sparse matrix, dict, list,
        dataclass ... whose arrays are moved.
    mode : {"rw", "r"}
        With "r" the arrays are read-only for every process, the maker included, and the kernel
        enforces it. Writable shared arrays are copied for it.

    Returns
    -------
    object
        Of the same type. `obj` itself if all its arrays are shared in that mode already.

    Raises
    ------
    TypeError
        If `obj` is an array of Python objects, which cannot be shared. Inside other objects such
        arrays stay ordinary ones.
    CapacityError
        If the memory cannot be had.

    Notes
    -----
    One copy of each array; everything else is copied as by `copy.deepcopy`, except functions,
    classes and modules. Two arrays that overlap become two arrays that do not. Memory-mapped arrays
    are read into memory and become plain arrays.

    Examples
    --------
    >>> import numpy as np, ndshare
    >>> data = ndshare.share({"x": np.arange(3), "name": "run 1"})
    >>> ndshare.is_shared(data["x"]), data["name"]
    (True, 'run 1')
    """
    if mode not in ("rw", "r"):
        raise ValueError(f"share: mode is {mode!r}; allowed are 'rw' and 'r'")
    if type(obj) in (np.ndarray, np.memmap):
        shared: T = share_array(obj, mode)  # type: ignore[arg-type, assignment]
        return shared
    session = _SharingSession(mode)
    pickler = _SharingPickler(session, 5, buffer_callback=session.notes.append)
    pickler.dispatch_table = session.table
    pickler.reducer_override = selective(  # type: ignore[method-assign]
        session.on_named, np.ndarray, session.on_subclass, reduce_exception
    )
    session.look_for_late()
    try:
        pickler.dump(obj)
        notes = [session.buffer(note) for note in session.notes if note is not SLOT]
        if not session.moved:
            return obj
        copy: T = pickle.loads(b"".join(session.parts), buffers=notes)
        return copy
    finally:
        pickler.clear_memo()
        session.close()
