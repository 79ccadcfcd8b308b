"""Whether all the state that a kernel uses is what it shows: then any worker that is sent it sees the same.

A function that is sent by value brings the variables it names. What it does not bring is what others keep:
globals of imported modules, whatever an object refers to, open files.

Guarantees
----------
- "Yes" is said only of functions of the caller's script that use nothing but builtins, NumPy, arrays,
  numbers, strings, tuples of these, and functions like themselves, on the items of an array or a range.
- "No" may be said of others that would do as well.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from ndshare._memory import is_shared
from ndshare._pickling import is_foreign, names_used
from ndshare.functors import Functor, values_of

#: More ordinary memory than this is not copied to save a fork, which copies none.
_COPIED_MOST_BYTES = 32 << 20

_REACH_ALL = frozenset({"__import__", "eval", "exec", "globals", "vars"})
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)


def brings_its_state(kernel: object, functor: Functor) -> bool:
    """Tell whether a worker that was started earlier sees all that one forked now would see.

    Parameters
    ----------
    kernel : object
        Any callable.
    functor : Functor
        What it is mapped over.

    Returns
    -------
    bool
    """
    look = _Look()
    return look.value(values_of(functor)) and look.function(kernel) and look.copied <= _COPIED_MOST_BYTES


class _Look:
    """One look at a kernel; adds up what would be copied."""

    def __init__(self) -> None:
        self.copied = 0
        self.seen: set[int] = set()

    def function(self, function: object) -> bool:
        """Whether a function uses nothing but what can be seen."""
        if type(function) is not types.FunctionType or function.__module__ != "__main__":
            return False
        if id(function) in self.seen:
            return True
        self.seen.add(id(function))
        used_names = names_used(function.__code__)
        names = used_names.attributes
        if used_names.imports or vars(function) or not names.isdisjoint(_REACH_ALL):
            return False
        space = function.__globals__
        try:
            used = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError:  # a variable that has no value yet
            return False
        used += [space[name] for name in names if name in space]
        used += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return all(map(self.value, used))

    def value(self, value: Any) -> bool:
        """Whether a variable's value is all there is to it."""
        if issubclass(type(value), _PLAIN) or value is np or type(value) is range:
            return True
        if type(value) is np.ndarray:
            if id(value) not in self.seen and not is_shared(value):
                self.seen.add(id(value))
                self.copied += value.nbytes
            return not value.dtype.hasobject and not is_foreign(value)
        if type(value) is tuple:
            return all(map(self.value, value))
        if issubclass(type(value), types.BuiltinFunctionType):
            return isinstance(value.__self__, types.ModuleType)
        return issubclass(type(value), np.ufunc) or self.function(value)
