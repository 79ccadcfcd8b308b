"""How objects, functions and the caller's ``__main__`` are taken apart for another process.

::

    record(obj) ─► Recording ─► parts   the pickle
                            ├─► notes   arrays, buffers, open files: they go beside it
                            └─► needs   names of __main__ that the receiver must have

What becomes of a recording, and how it is put together again, is the business of `ndshare._transport`. Which
type is taken apart how is said in one place each: arrays and functions in `Session`, NumPy's and other
libraries' types in `reducers`, classes registered by the user in `wrappers`; a room with a type of its own
calls `register_reducer`.

Guarantees
----------
* Everything that pickle or cloudpickle can send can be recorded; arrays are noted, not copied.
* Functions of ``__main__`` share one namespace at the receiver.
* Nothing is kept of an object that was recorded.

Not guaranteed
--------------
* Names that a function makes up at run time are not among the needs.
"""

from __future__ import annotations

from ndshare._pickling import cells, local_functions
from ndshare._pickling.cells import CODE_TYPES, expect_gifts, give, given
from ndshare._pickling.classes import class_attributes
from ndshare._pickling.codes import CodeMemory, names_used
from ndshare._pickling.exceptions import reduce_exception
from ndshare._pickling.functions import Named, NamedValue, delivered
from ndshare._pickling.memmaps import find_memmap, is_foreign, is_of_ctypes
from ndshare._pickling.namespace import (
    EVERYTHING,
    LAZY,
    MAIN_NAMES,
    PERHAPS,
    find_in_main,
    look_up,
    main_namespace,
    names_in_pickle,
)
from ndshare._pickling.per_process import is_per_process
from ndshare._pickling.pickler import ALONE_STREAM, record, record_alone
from ndshare._pickling.randoms import advanced_by, arrived, describe_random, is_random, state_of
from ndshare._pickling.recording import FILE, SLOT, CopyOnWrite, Descriptor, Placed, Recording
from ndshare._pickling.reducers import late_reducers, reduce_subclass, register_reducer, registered, same
from ndshare._pickling.registrations import registered_with, told_of
from ndshare._pickling.session import Session, by_value_modules
from ndshare._pickling.uses import (
    attributes,
    first,
    function_of,
    held,
    is_by_value,
    is_installed,
    is_of_library,
    is_of_user,
    kept_by_class,
    parameters,
    place_of,
    variables,
)
from ndshare._pickling.wrappers import register_wrapper

__all__ = [
    "ALONE_STREAM",
    "CODE_TYPES",
    "EVERYTHING",
    "FILE",
    "LAZY",
    "MAIN_NAMES",
    "PERHAPS",
    "SLOT",
    "CodeMemory",
    "CopyOnWrite",
    "Descriptor",
    "Named",
    "NamedValue",
    "Placed",
    "Recording",
    "Session",
    "advanced_by",
    "arrived",
    "attributes",
    "by_value_modules",
    "cells",
    "class_attributes",
    "delivered",
    "describe_random",
    "expect_gifts",
    "find_in_main",
    "find_memmap",
    "first",
    "function_of",
    "give",
    "given",
    "held",
    "is_by_value",
    "is_foreign",
    "is_installed",
    "is_of_ctypes",
    "is_of_library",
    "is_of_user",
    "is_per_process",
    "is_random",
    "kept_by_class",
    "late_reducers",
    "local_functions",
    "look_up",
    "main_namespace",
    "names_in_pickle",
    "names_used",
    "parameters",
    "place_of",
    "record",
    "record_alone",
    "reduce_exception",
    "reduce_subclass",
    "register_reducer",
    "register_wrapper",
    "registered",
    "registered_with",
    "same",
    "state_of",
    "told_of",
    "variables",
]
