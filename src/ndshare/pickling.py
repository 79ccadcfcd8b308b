"""The picklers: what a message says, with arrays only *noted*.

::

    record(obj) ──► Session.pickler ──► parts   (pickle bytes)
                         │
                         ├─ array           ──► notes  (an array to copy, or a place in a segment)
                         ├─ PickleBuffer    ──► notes
                         └─ name in __main__ ─► needs

A noted array leaves one NEXT_BUFFER opcode in the pickle. The unpickler takes the objects for these
from an iterator and does not look at their type, so the receiver hands it finished arrays: no
look-up by number, no state beside the call.

Python code runs only for arrays, functions and classes; everything else is pickled in C. Only
when something is met that pickle cannot do is the object pickled again by `ndshare.cloud`.

Guarantees
----------
* Any number of threads may record at once; a ``__reduce__`` that records in turn gets a session of
  its own.
* After `record` has returned or raised, nothing here keeps a reference to the object.
* copyreg is not touched: ``pickle.dumps`` of a shared array outside ndshare makes a plain copy.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import math
import pickle
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ndshare import _local_functions, _scratch, functions, memmaps, segments, wrappers
from ndshare._wire import selective
from ndshare.descriptors import Descriptor
from ndshare.layout import encode_dtype, is_movable, may_overlap_itself
from ndshare.named import NAME_ONLY, names_in_pickle
from ndshare.reducers import LATE_COUNT, late_reducers, make_small, reduce_small, reduce_subclass, same

if TYPE_CHECKING:
    from ndshare._inputs import Inputs

#: Arrays up to this many bytes are part of the pickle: noting, staging and finding one again costs
#: as much as copying 4 KiB a few times.
IN_BAND_MAX = 4096
#: So are larger ones while all of them in a message have not more bytes than this: then nothing of it may
#: have to be staged, which saves more.
_IN_BAND_ROOM = 24 * 1024

_KEEP_MAX = 1 << 13  # a session that pickled more, arrays apart, is dropped: its memo table stays large
_IDLE_MAX = 8

by_value_modules: set[str] = set()
"""Modules the receivers cannot import: their functions and classes are sent by value."""

FOUND_BY_NAME: set[Any] = {
    _local_functions.make_local,
    functions.fill_function,
    functions.make_cell,
    functions.make_function,
    make_small,
    same,
}
"""Functions and classes of ndshare's own that are in most messages: nothing about them is to be decided."""

_MARKED = _scratch.marked  # empty in most programs: then nothing is looked up per array

_NOTHING: frozenset[str] = frozenset()
_CACHED = type(functools.lru_cache(len))
SLOT = pickle.PickleBuffer(bytearray(1))  # writable: a read-only one would be followed by another opcode


class BeyondPickle(pickle.PicklingError):
    """Something that only cloudpickle can take apart."""


class Placed(NamedTuple):
    """A noted array that lies in a segment; the array itself is not kept alive."""

    block: segments.Block
    offset: int  # of its lowest byte, within the block
    dtype: str | bytes
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    writeable: bool
    private: bool = False  # the receiver maps it copy-on-write: an ordinary array

    @property
    def nbytes(self) -> int:
        """Bytes of its items."""
        return math.prod(self.shape, start=self.itemsize)


class CopyOnWrite:
    """Stands for an array in a message: its receivers map the memory copy-on-write, nothing is copied.

    Parameters
    ----------
    note : Placed
        Where the array lies, `private`. Nobody may write there while the message exists.
    """

    __slots__ = ("note",)

    def __init__(self, note: Placed) -> None:
        self.note = note


class Recording:
    """One pickled object.

    Attributes
    ----------
    parts : tuple of bytes
        The pickle.
    notes : tuple
        What goes out of band, in the order of the pickle: `numpy.ndarray`, `Placed`,
        `pickle.PickleBuffer`.
    needs : frozenset of str
        Names of ``__main__`` it refers to.
    """

    __slots__ = ("needs", "notes", "parts")

    def __init__(
        self, parts: tuple[bytes, ...], notes: tuple[Any, ...] = (), needs: frozenset[str] = _NOTHING
    ) -> None:
        self.parts = parts
        self.notes = notes
        self.needs = needs


class _Table(dict[type, Callable[[Any], Any]]):
    """A dispatch table that falls through to copyreg's, live and in C."""

    __missing__ = copyreg.dispatch_table.__getitem__


class _WrapperTable(_Table):
    """The same where classes are registered as wrappers: by class, not by exact type, so in Python."""

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        if wrappers.attribute_of(cls) is None:
            return copyreg.dispatch_table[cls]
        self[cls] = wrappers.reduce_wrapper
        return wrappers.reduce_wrapper


class Session:
    """What one pickler notes while it works, and the decisions it asks for."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.write = self.parts.append  # this makes the session the pickler's file
        self.notes: list[Any] = []
        self.needs: set[str] = set()
        self.cells: set[int] = set()  # cells whose content the function they belong to brings
        self.room = _IN_BAND_ROOM  # bytes of arrays that may still go in band
        self.lend = False
        self.defining = _NOTHING
        self.withheld = _NOTHING
        self.inputs: Inputs | None = None
        self.given: dict[int, str] = {}  # cells that the receiver fills: id, name
        self.late: set[str] = set()
        self.marked: object = None  # the scratch array that is being taken apart
        self.modules = 0  # imported, and wrappers registered, when late reducers were looked for
        self.table = _Table(
            {
                np.ndarray: self.on_array,
                types.CellType: self.on_cell,
                types.ModuleType: self.on_module,
                **dict.fromkeys(NAME_ONLY, self.on_name_only),
                _CACHED: self.on_cached,
                CopyOnWrite: self.on_copy_on_write,
                Descriptor: self.on_descriptor,
            }
        )

    def clear(self) -> None:
        """Forget everything noted."""
        self.parts.clear()
        self.room = _IN_BAND_ROOM
        if self.notes:
            self.notes.clear()
        if self.needs:
            self.needs.clear()
        if self.cells:
            self.cells.clear()
            self.given.clear()

    def close(self) -> None:
        """Forget everything, and break the cycle of the session with the methods in its table."""
        self.clear()
        self.table.clear()

    def look_for_late(self) -> None:
        """Add the reducers of libraries that have been imported meanwhile."""
        self.modules = len(sys.modules) + len(wrappers.registered)
        if wrappers.registered:
            self.table.__class__ = _WrapperTable
        if len(self.late) < LATE_COUNT:
            self.table.update(late_reducers(self.late))

    # ---- arrays

    def on_array(self, array: np.ndarray[Any, Any]) -> Any:
        """Note a plain array, or pickle it in band when it is small."""
        if _MARKED and array is not self.marked and _scratch.is_scratch(array):
            self.marked = array
            try:
                return _scratch.reduce_marked(self.on_array(array))
            finally:
                self.marked = None
        dtype = array.dtype
        if not is_movable(dtype):
            return array.__reduce_ex__(5)
        nbytes = array.nbytes
        in_band = nbytes <= IN_BAND_MAX or nbytes <= self.room
        found = segments.block_of(array)
        if found is not None:
            block, low = found
            kind = block.kind
            if kind in (segments.SHARED, segments.SEALED) or (
                self.lend
                and kind == segments.VALUE
                and not in_band
                and not may_overlap_itself(array.shape, array.strides, array.itemsize)
            ):
                self.notes.append(
                    Placed(
                        block,
                        low,
                        encode_dtype(dtype),
                        array.itemsize,
                        array.shape,
                        array.strides,
                        array.flags.writeable,
                    )
                )
                return same, (SLOT,)
        if found is None and array.base is not None:
            root = memmaps.find_memmap(array)
            if root is not None:
                mapped = memmaps.reduce_memmap(array, root)
                if mapped is not None:
                    return mapped
        if in_band:
            if nbytes > IN_BAND_MAX:
                self.room -= nbytes
            return reduce_small(array)
        placed = self.inputs.place(array) if self.inputs is not None else None
        self.notes.append(array if placed is None else placed)
        return same, (SLOT,)

    def on_descriptor(self, descriptor: Descriptor) -> Any:
        """Note an open file."""
        self.notes.append(descriptor)
        return same, (SLOT,)

    def on_copy_on_write(self, stand_in: CopyOnWrite) -> Any:
        """Note the place of an array that stays where it is."""
        self.notes.append(stand_in.note)
        return same, (SLOT,)

    def on_subclass(self, array: np.ndarray[Any, Any]) -> Any:
        """Take a subclass of ndarray apart."""
        root = memmaps.find_memmap(array) if type(array) is np.memmap else None
        if root is not None:
            mapped = memmaps.reduce_memmap(array, root)
            if mapped is not None:
                return mapped
        reduced = reduce_subclass(array)
        return _scratch.reduce_marked(reduced) if _MARKED and _scratch.is_scratch(array) else reduced

    # ---- functions, classes, modules

    def on_named(self, obj: Any) -> Any:
        """Decide about a function or class."""
        module = obj.__module__
        if module in functions.MAIN_NAMES:
            return self.on_main(obj)
        if by_value_modules and isinstance(module, str) and _is_by_value(module):
            return self.beyond(obj)
        if type(obj) is types.FunctionType and _local_functions.is_plain_local(obj, self.withheld):
            self.note_cells(obj)
            return _local_functions.reduce_local(obj, self.given)
        return NotImplemented

    def on_main(self, obj: Any) -> Any:
        """Decide about a function or class of the caller's ``__main__``."""
        qualname = obj.__qualname__
        root = qualname.partition(".")[0]
        if root not in self.defining and functions.find_in_main(qualname) is obj:
            self.needs.add(root)
            return NotImplemented
        if type(obj) is types.FunctionType and obj.__globals__ is functions.main_namespace():
            return self.on_unnamed(obj)
        if type(obj) is types.FunctionType and functions.is_dispatching(obj):
            return functions.reduce_dispatching(obj)
        return self.beyond(obj)

    def on_unnamed(self, function: types.FunctionType) -> Any:
        """Pickle a function on the globals of ``__main__`` by its code."""
        self.needs.update(functions.needs_of(function))
        self.note_cells(function)
        return functions.reduce_function(function, self.given)

    def note_cells(self, function: types.FunctionType) -> None:
        """Note the cells of a closure: they travel empty, and are filled by the function or the receiver."""
        if function.__closure__:
            self.cells.update(map(id, function.__closure__))
            if self.withheld:
                self.given.update(functions.cells_given(function, self.withheld))

    def on_cell(self, obj: Any) -> Any:
        """Pickle the cell of a closure empty: its function fills it, or the receiver."""
        if id(obj) in self.given:
            return functions.given_cell, (self.given[id(obj)],)
        if id(obj) in self.cells:
            return functions.make_cell, ()
        return self.beyond(obj)

    def on_cached(self, obj: Any) -> Any:
        """Pickle a `functools.lru_cache` by name, or define it."""
        if obj.__module__ in functions.MAIN_NAMES and self.is_defined_here(obj):
            return functions.reduce_cached(obj)
        return obj.__reduce__()

    def on_name_only(self, obj: Any) -> Any:
        """Pickle what pickle knows only by its name, or have it defined."""
        module = obj.__module__
        if module in functions.MAIN_NAMES:
            by_value = self.is_defined_here(obj)
        else:  # the parameters of `def f[T]` say that they are of typing, where nobody finds them
            by_value = getattr(sys.modules.get(module), obj.__name__, None) is not obj
        return NAME_ONLY[type(obj)](obj) if by_value else obj.__reduce__()

    def is_defined_here(self, obj: Any) -> bool:
        """Tell whether this message has to define a named object of ``__main__``; else note the need."""
        qualname = getattr(obj, "__qualname__", None) or obj.__name__
        root = qualname.partition(".")[0]
        if root in self.defining or functions.find_in_main(qualname) is not obj:
            return True
        self.needs.add(root)
        return False

    def on_module(self, obj: Any) -> Any:
        """Pickle a module as an import."""
        name = obj.__name__
        if obj is sys.modules.get("__main__"):
            return importlib.import_module, ("__main__",)
        if sys.modules.get(name) is not obj or (by_value_modules and _is_by_value(name)):
            return self.beyond(obj)
        return importlib.import_module, (name,)

    def beyond(self, obj: Any) -> Any:
        """Give up: `ndshare.cloud` tries again."""
        raise BeyondPickle(f"{obj!r} has no name it can be found by")


class _Pickler(pickle.Pickler):
    """The C pickler with a session; a subclass only to have the attributes."""

    session: Session
    reducer_override: Callable[[Any], Any]


_idle: list[_Pickler] = []  # append and pop are atomic


def _make_pickler() -> _Pickler:
    session = Session()
    pickler = _Pickler(session, 5, buffer_callback=session.notes.append)
    pickler.session = session
    pickler.dispatch_table = session.table
    pickler.reducer_override = selective(session.on_named, np.ndarray, session.on_subclass, FOUND_BY_NAME)
    return pickler


def record(
    obj: object,
    *,
    lend: bool = False,
    defining: frozenset[str] = _NOTHING,
    withheld: frozenset[str] = _NOTHING,
    inputs: Inputs | None = None,
) -> Recording:
    """Pickle an object, noting its arrays instead of copying them.

    Parameters
    ----------
    obj : object
        What to pickle.
    lend : bool
        Note arrays in by-value blocks by their place, without keeping them alive, so that the
        blocks can be lent once nobody here uses them. For results on their way to the caller.
    defining : frozenset of str
        Names of ``__main__`` that the receiver learns from this very message: what they stand for
        is pickled by value.
    withheld : frozenset of str
        Names of variables whose values the receiver has: the cells of closures that have one of these
        names are left for it to fill.
    inputs : Inputs, optional
        Large ordinary arrays that were sent before are noted by the place of one shared copy.

    Raises
    ------
    Exception
        Whatever pickling raises.
    """
    try:
        pickler = _idle.pop()
    except IndexError:
        pickler = _make_pickler()
    session = pickler.session
    session.lend = lend
    session.defining = defining
    session.withheld = withheld
    session.inputs = inputs
    if len(sys.modules) + len(wrappers.registered) != session.modules:
        session.look_for_late()
    recording: Recording | None = None
    try:
        pickler.dump(obj)
        recording = finish(session)
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    finally:
        pickler.clear_memo()
        arrays = _IN_BAND_ROOM - session.room
        session.clear()
        parts = recording.parts if recording is not None else ()
        if len(parts) == 1 and len(parts[0]) - arrays < _KEEP_MAX and len(_idle) < _IDLE_MAX:
            _idle.append(pickler)
        else:
            session.close()
    if recording is not None:
        return recording
    from ndshare import cloud

    return cloud.record(obj, lend=lend, defining=defining, withheld=withheld, inputs=inputs)


class _Alone:
    def __reduce__(self) -> Any:
        return same, (SLOT,)


ALONE_STREAM = pickle.dumps(_Alone(), 5, buffer_callback=lambda _: False)
"""The pickle of what is one array out of band, and nothing else."""


def record_alone(array: np.ndarray[Any, Any]) -> Recording | None:
    """Return what `record` does for a result that is one array of by-value memory; None for others."""
    dtype = array.dtype
    if _MARKED or array.base is not None or array.nbytes <= _IN_BAND_ROOM or not is_movable(dtype):
        return None
    if not array.flags.forc:  # somebody has set its strides; its elements may overlap
        return None
    found = segments.block_of(array)
    if found is None or found[0].kind != segments.VALUE:
        return None
    note = Placed(
        *found, encode_dtype(dtype), dtype.itemsize, array.shape, array.strides, array.flags.writeable
    )
    return Recording((ALONE_STREAM,), (note,))


def finish(session: Session) -> Recording:
    """Return what a session has noted."""
    parts = tuple(session.parts)
    if not session.notes and not session.needs and (session.lend or b"__main__" not in parts[0]):
        return Recording(parts)
    notes = tuple([note for note in session.notes if note is not SLOT]) if session.notes else ()
    if session.needs:
        return Recording(parts, notes, frozenset(session.needs))
    if not session.lend and b"__main__" in parts[0]:
        # Something reduces itself to its name in __main__, which no callback sees.
        return Recording(parts, notes, names_in_pickle(parts[0]) - session.defining)
    return Recording(parts, notes, _NOTHING)


def _is_by_value(module: str) -> bool:
    return module in by_value_modules or module.partition(".")[0] in by_value_modules
