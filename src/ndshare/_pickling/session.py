"""What one pickler notes while it works, and the decisions it asks for.

::

    pickler ──┬─ array           ──► notes  (an array to copy, or a place in a segment), or in band
              ├─ open file       ──► notes
              ├─ function, class ──► by name; by its code; needs, if it is a name of __main__
              └─ anything else   ──► pickle itself, in C
"""

from __future__ import annotations

import contextlib
import copyreg
import enum
import functools
import importlib
import mmap
import pickle
import sys
import types
from typing import Any

import numpy as np

from ndshare._memory import (
    SEALED,
    SHARED,
    VALUE,
    block_of,
    encode_dtype,
    is_movable,
    is_scratch,
    marked,
    may_overlap_itself,
    reduce_marked,
)
from ndshare._pickling import cells, classes, forking, functions, local_functions, memmaps, wrappers
from ndshare._pickling.codes import reduce_code
from ndshare._pickling.functions import Named, NamedValue, named_value
from ndshare._pickling.namespace import MAIN_NAMES, NAME_ONLY, find_in_main, main_namespace, names_in_pickle
from ndshare._pickling.recording import SLOT, CopyOnWrite, Descriptor, Placed, Places, Recording
from ndshare._pickling.reducers import (
    LATE_COUNT,
    Reduce,
    late_reducers,
    reduce_errstate,
    reduce_memoryview,
    reduce_small,
    reduce_subclass,
    reduce_ufunc,
    refuse_mapping,
    registered,
    same,
)

#: Arrays up to this many bytes are part of the pickle: noting, staging and finding one again costs
#: as much as copying 4 KiB a few times.
IN_BAND_MAX = 4096
#: So are larger ones while all of them in a message have not more bytes than this: then nothing of it may
#: have to be staged, which saves more.
IN_BAND_ROOM = 24 * 1024

by_value_modules: set[str] = set()
"""Modules the receivers cannot import: their functions and classes are sent by value."""

_MARKED = marked  # empty in most programs: then nothing is looked up per array

_NOTHING: frozenset[str] = frozenset()
NO_NAMES = Named()
_CACHED = type(functools.lru_cache(len))


class BeyondPickle(pickle.PicklingError):
    """Something that only cloudpickle can take apart."""


class _Table(dict[type, Reduce]):
    """A dispatch table that falls through to what is registered, live and in C."""

    __missing__ = registered.__getitem__


class WrapperTable(_Table):
    """The same where classes are registered as wrappers: by class, not by exact type, so in Python."""

    def __missing__(self, cls: type) -> Reduce:
        if wrappers.attribute_of(cls) is None:
            return registered[cls]
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
        self.room = IN_BAND_ROOM  # bytes of arrays that may still go in band
        self.lend = False
        self.defining = _NOTHING
        self.withheld = _NOTHING
        self.inputs: Places | None = None
        self.given: dict[int, str] = {}  # cells that the receiver fills: id, name
        self.named = NO_NAMES
        #: What the table had for them, and what it has by other ways.
        self.named_types: dict[type, tuple[Reduce | None, Reduce | None]] = {}
        self.enumerations: list[type] = []  # that this message defines
        self.late: set[str] = set()
        self.marked: object = None  # the scratch array that is being taken apart
        self.modules = 0  # and whatever else reducers come from: how many when late ones were looked for
        self.table = _Table(
            {
                np.ndarray: self.on_array,
                **classes.REDUCERS,
                types.CellType: self.on_cell,
                types.CodeType: reduce_code,
                memoryview: reduce_memoryview,
                mmap.mmap: refuse_mapping,
                np.ufunc: reduce_ufunc,
                np.errstate: reduce_errstate,
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
        self.room = IN_BAND_ROOM
        if self.notes:
            self.notes.clear()
        if self.needs:
            self.needs.clear()
        if self.cells:
            self.cells.clear()
            self.given.clear()
        while self.enumerations:
            del self.table[self.enumerations.pop()]
        if self.named:
            self.set_named(NO_NAMES)

    def close(self) -> None:
        """Forget everything, and break the cycle of the session with the methods in its table."""
        self.clear()
        self.table.clear()

    def look_for_late(self) -> None:
        """Add the reducers of libraries that have been imported meanwhile."""
        forking.look()
        self.modules = len(sys.modules) + len(wrappers.registered) + len(forking.known)
        if wrappers.registered:
            self.table.__class__ = WrapperTable
        if len(self.late) < LATE_COUNT:
            self.table.update(late_reducers(self.late))
        self.table.update(forking.reducers(self.table.keys() | registered.copy().keys()))

    # ---- globals that other globals contain

    def set_named(self, named: Named) -> None:
        """Have values of ``__main__`` that are parts of what is defined go by their names, by id."""
        for cls, (before, _) in self.named_types.items():
            if before is None:
                del self.table[cls]
            else:
                self.table[cls] = before
        self.named_types.clear()
        self.named = named
        namespace = main_namespace() if named else {}
        for number, name in named.items():
            cls = type(namespace.get(name))
            of_script = cls.__module__ in MAIN_NAMES and not isinstance(cls, enum.EnumType)
            if number in named.origins or cls is object or of_script:
                with contextlib.suppress(Exception):  # its metaclass may have no hash
                    self._watch_for(cls)

    def _watch_for(self, cls: type) -> None:
        if cls not in self.named_types:
            before = known = self.table.get(cls)
            with contextlib.suppress(KeyError):
                known = self.table[cls]  # copyreg's
            self.named_types[cls] = before, known
            self.table[cls] = self.on_instance

    def on_instance(self, obj: Any) -> Any:
        """Pickle an instance of a type that a global is of: by the name of the global, if it is that."""
        if (origin := self.named.origins.get(id(obj))) is not None:
            state = vars(obj).copy() if type(obj) is not object else None
            facts = *origin, type(obj)
            return functions.of_module, facts, state or None, None, None, functions.fill_plain
        _, known = self.named_types[type(obj)]
        name = self.named.get(id(obj))
        if name is not None and name not in self.defining:
            self.named.used.add(name)
            return named_value, (name,)
        reduced = obj.__reduce_ex__(5) if known is None else known(obj)
        if name is not None and isinstance(reduced, str):  # in its own definition it is not but its name
            return copyreg.__newobj__, (type(obj),), obj.__getstate__()  # type: ignore[attr-defined]
        return reduced

    def part(self, value: Any) -> Any:
        """Return what stands for a part of a function or class: it may be a global by itself."""
        name = self.named.get(id(value))
        if name is None or name in self.defining:
            return value
        self.named.used.add(name)
        return NamedValue(name)

    # ---- arrays

    def on_array(self, array: np.ndarray[Any, Any]) -> Any:
        """Note a plain array, or pickle it in band when it is small."""
        if _MARKED and array is not self.marked and is_scratch(array):
            self.marked = array
            try:
                return reduce_marked(self.on_array(array))
            finally:
                self.marked = None
        dtype = array.dtype
        if not is_movable(dtype):
            return array.__reduce_ex__(5)
        nbytes = array.nbytes
        in_band = nbytes <= IN_BAND_MAX or nbytes <= self.room
        found = block_of(array)
        if found is not None:
            block, low = found
            kind = block.kind
            if kind in (SHARED, SEALED) or (
                self.lend
                and kind == VALUE
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
        return reduce_marked(reduced) if _MARKED and is_scratch(array) else reduced

    # ---- functions, classes, modules

    def on_named(self, obj: Any) -> Any:
        """Decide about a function or class."""
        module = obj.__module__
        if module in MAIN_NAMES:
            return self.on_main(obj)
        if by_value_modules and isinstance(module, str) and _is_by_value(module):
            return self.beyond(obj)
        if (
            type(obj) is types.FunctionType
            and "<" in obj.__qualname__  # of a function, or a lambda
            and local_functions.is_plain_local(obj, self.withheld)
        ):
            self.note_cells(obj)
            return local_functions.reduce_local(obj, self.given)
        return NotImplemented

    def on_main(self, obj: Any) -> Any:
        """Decide about a function or class of the caller's ``__main__``."""
        qualname = obj.__qualname__
        root = qualname.partition(".")[0]
        if root not in self.defining and find_in_main(qualname) is obj:
            self.needs.add(root)
            return NotImplemented
        if type(obj) is types.FunctionType and obj.__globals__ is main_namespace():
            return self.on_unnamed(obj)
        if type(obj) is types.FunctionType and functions.is_dispatching(obj):
            return functions.reduce_dispatching(obj)
        if type(obj) is types.FunctionType and (home := self.home_of(obj)) is not None:
            return self.on_wrapper(obj, home)
        return self.on_class(obj) if isinstance(obj, type) else self.beyond(obj)

    def on_class(self, cls: type) -> Any:
        """Pickle a class as it is."""
        if not classes.can_copy(cls):
            return self.beyond(cls)
        reduced = classes.reduce_class(cls, reply=self.lend)
        if self.named and len(reduced) > 2:
            code, special, data, *_ = reduced[2]
            for attributes in (code.attributes, special.attributes, data):
                attributes.update({name: self.part(value) for name, value in attributes.items()})
        if len(reduced) > 2 and classes.is_enumeration(cls):
            self.table[cls] = classes.reduce_member  # its members are on their way with it
            self.enumerations.append(cls)
        elif len(reduced) > 2 and classes.has_own_new(cls):
            with contextlib.suppress(TypeError):  # its metaclass may have no hash
                self.reduce_instances_of(cls)
        return reduced

    def reduce_instances_of(self, cls: type) -> None:
        """Pickle instances of a class that this message defines without its ``__new__``."""
        if (before := self.named_types.get(cls)) is not None:
            if before[1] is None:
                self.named_types[cls] = before[0], classes.reduce_instance
            return
        try:
            self.table[cls]  # copyreg knows better
        except KeyError:
            self.table[cls] = classes.reduce_instance
            self.enumerations.append(cls)

    def on_unnamed(self, function: types.FunctionType) -> Any:
        """Pickle a function on the globals of ``__main__`` by its code."""
        self.needs.update(functions.needs_of(function))
        self.note_cells(function)
        return functions.reduce_function(function, self.given, self.part if self.named else None)

    def home_of(self, function: types.FunctionType) -> types.ModuleType | None:
        """Return the module whose globals a function has in the receiver as well."""
        home = local_functions.home_of(function)
        return None if home is None or (by_value_modules and _is_by_value(home.__name__)) else home

    def on_wrapper(self, function: types.FunctionType, home: types.ModuleType) -> tuple[Any, ...]:
        """Pickle a function on the globals of a module by its code."""
        self.note_cells(function)
        return functions.reduce_function(function, self.given, self.part if self.named else None, home)

    def note_cells(self, function: types.FunctionType) -> None:
        """Note the cells of a closure: they travel empty, and are filled by the function or the receiver."""
        if function.__closure__:
            self.cells.update(map(id, function.__closure__))
            if self.withheld:
                self.given.update(cells.cells_given(function, self.withheld))

    def on_cell(self, obj: Any) -> Any:
        """Pickle the cell of a closure empty: its function fills it, or the receiver."""
        if id(obj) in self.given:
            return cells.given_cell, (self.given[id(obj)],)
        if id(obj) in self.cells:
            return cells.make_cell, ()
        return self.beyond(obj)

    def on_cached(self, obj: Any) -> Any:
        """Pickle a `functools.lru_cache` by name, or define it."""
        if obj.__module__ in MAIN_NAMES and self.is_defined_here(obj):
            return functions.reduce_cached(obj)
        return functions.reduce_cached_of_library(obj)

    def on_name_only(self, obj: Any) -> Any:
        """Pickle what pickle knows only by its name, or have it defined."""
        module = obj.__module__
        if module in MAIN_NAMES:
            by_value = self.is_defined_here(obj)
        else:  # the parameters of `def f[T]` say that they are of typing, where nobody finds them
            by_value = getattr(sys.modules.get(module), obj.__name__, None) is not obj
        return NAME_ONLY[type(obj)](obj) if by_value else obj.__reduce__()

    def is_defined_here(self, obj: Any) -> bool:
        """Tell whether this message has to define a named object of ``__main__``; else note the need."""
        qualname = getattr(obj, "__qualname__", None) or obj.__name__
        root = qualname.partition(".")[0]
        if root in self.defining or find_in_main(qualname) is not obj:
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
        """Give up: `ndshare._pickling.cloud` tries again."""
        raise BeyondPickle(f"{obj!r} has no name it can be found by")

    def finish(self) -> Recording:
        """Return what was noted."""
        parts = tuple(self.parts)
        if not self.notes and not self.needs and (self.lend or b"__main__" not in parts[0]):
            return Recording(parts)
        notes = tuple([note for note in self.notes if note is not SLOT]) if self.notes else ()
        if self.needs:
            return Recording(parts, notes, frozenset(self.needs))
        if not self.lend and b"__main__" in parts[0]:
            # Something reduces itself to its name in __main__, which no callback sees.
            return Recording(parts, notes, names_in_pickle(parts[0]) - self.defining)
        return Recording(parts, notes, _NOTHING)


def _is_by_value(module: str) -> bool:
    return module in by_value_modules or module.partition(".")[0] in by_value_modules
