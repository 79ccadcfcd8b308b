"""Which arrays a kernel uses: itself, in the objects that it refers to, and by the functions that it calls.

Looked for are arrays that are known already, of `alloc`: those that are not found are only treated as if
they were not known.
"""

from __future__ import annotations

import gc
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndshare._map.watch.captured import globals_of, module_data
from ndshare._pickling import variables

_DEPTH_MAX = 6
_OBJECTS_MAX = 5000  # in all: less than a microsecond each
_ELEMENTS_MAX = 1000  # of one container

_LEAVES = (
    type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type, types.ModuleType,
    types.CodeType, types.FrameType, types.BuiltinFunctionType, np.generic, np.dtype, np.ufunc,
)  # fmt: skip


def arrays_used(kernel: Callable[..., object]) -> Iterator[NDArray[Any]]:
    """Yield the arrays that a kernel refers to, also inside other objects, a few levels deep.

    Parameters
    ----------
    kernel : callable
        No code of it, or of what it refers to, is run.
    """
    roots = [value for _, value in variables(kernel)]
    roots += globals_of(kernel).values()
    roots += itertools.chain.from_iterable(values.values() for values in module_data(kernel).values())
    seen: set[int] = set()
    level = roots
    for _ in range(_DEPTH_MAX):
        below: list[Any] = []
        for value in level:
            if issubclass(type(value), _LEAVES) or id(value) in seen:
                continue
            seen.add(id(value))
            if issubclass(type(value), np.ndarray):
                yield value
            elif issubclass(type(value), types.FunctionType):
                below += [used for _, used in variables(value)]
            else:
                below += itertools.islice(gc.get_referents(value), _ELEMENTS_MAX)
            if len(seen) > _OBJECTS_MAX:
                return
        level = below


def which_used(kernel: Callable[..., object], known: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return those of some arrays of which a kernel uses a part."""
    found: list[NDArray[Any]] = []
    for used in arrays_used(kernel) if known else ():
        for array in known:
            if np.may_share_memory(used, array) and not any(array is other for other in found):
                found.append(array)
        if len(found) == len(known):
            break
    return found
