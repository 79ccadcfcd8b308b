"""Door."""

from __future__ import annotations

from ndshare._pickling import cells, local_functions
from ndshare._pickling.cells import CODE_TYPES, expect_gifts, give, given
from ndshare._pickling.codes import CodeMemory, names_used
from ndshare._pickling.descriptors import FILE, Descriptor
from ndshare._pickling.functions import needs_of
from ndshare._pickling.memmaps import find_memmap
from ndshare._pickling.named import names_in_pickle
from ndshare._pickling.namespace import MAIN_NAMES, main_namespace
from ndshare._pickling.pickler import ALONE_STREAM, FOUND_BY_NAME, record, record_alone
from ndshare._pickling.recording import SLOT, CopyOnWrite, Placed, Recording
from ndshare._pickling.reducers import late_reducers, reduce_subclass, same
from ndshare._pickling.session import Session, by_value_modules
from ndshare._pickling.wrappers import register_wrapper

__all__ = [
    "ALONE_STREAM",
    "CODE_TYPES",
    "FILE",
    "FOUND_BY_NAME",
    "MAIN_NAMES",
    "SLOT",
    "CodeMemory",
    "CopyOnWrite",
    "Descriptor",
    "Placed",
    "Recording",
    "Session",
    "by_value_modules",
    "cells",
    "expect_gifts",
    "find_memmap",
    "give",
    "given",
    "late_reducers",
    "local_functions",
    "main_namespace",
    "names_in_pickle",
    "names_used",
    "needs_of",
    "record",
    "record_alone",
    "reduce_subclass",
    "register_wrapper",
    "same",
]
