"""Closures and lambdas of importable modules: they travel by their code, without their module.

::

    function ──► apart ──► facts: code, names, content of the cells     closures over nothing but data
             └─► reduce_local ──► how a pickle makes it                 all others

A worker need not import the module for them: they name nothing of it.
"""

from __future__ import annotations

import builtins
import itertools
import sys
import types
from collections.abc import Container
from typing import Any

import numpy as np

from ndshare._pickling import cells, functions
from ndshare._pickling.codes import IMPORTS_FROM, dumped, load_code, names_used
from ndshare._pickling.namespace import MAIN_NAMES
from ndshare._pickling.uses import is_installed

_DATA = frozenset(map(id, (type(None), bool, int, float, complex, str, bytes)))  # a class may have no hash
_STRINGS = frozenset((id(str),))

Facts = tuple[Any, ...]
"""Code, name, module, package, qualified name, documentation, annotations and `cells.cell_contents`."""

_stand_ins: dict[tuple[str, str | None], dict[str, Any]] = {}  # globals, for functions that name none


def is_plain_local(function: types.FunctionType, withheld: frozenset[str] = frozenset()) -> bool:
    """Tell whether a function has no name that it is found by, and names nothing but builtins.

    A name that its module does not have yet may be one that another function of the message gives to the
    module; or the receiver, which gives it those that are withheld, whether or not builtins have them too.
    A package in its closure would arrive without the submodules that the caller has imported.
    """
    qualname = function.__qualname__
    if "<locals>" not in qualname and "<lambda>" not in qualname:
        return False
    if any(map(functions.is_package, itertools.chain(*cells.cell_contents(function)))):
        return False
    names = names_used(function.__code__)
    if not names.globals <= IMPORTS_FROM:
        return False
    if withheld and not withheld.isdisjoint(names.attributes):
        return False
    return names.attributes.isdisjoint(function.__globals__)


def home_of(function: types.FunctionType) -> types.ModuleType | None:
    """Return the module that a function without a name of its own has its globals in, and keeps its state.

    That of libraries, whose decorators make such functions, and of decorators in the user's modules that give
    what they make the name of what it wraps. Other closures of such modules bring the globals they name.
    """
    namespace = function.__globals__
    name = namespace.get("__name__")
    module = sys.modules.get(name) if type(name) is str and name not in MAIN_NAMES else None
    if type(module) is not types.ModuleType or vars(module) is not namespace:
        return None
    if function.__module__ == name and not is_installed(getattr(module, "__file__", None) or ""):
        return None
    return module


def reduce_local(function: types.FunctionType, given: Container[int] = ()) -> tuple[Any, ...]:
    """Return how to make the function of `is_plain_local` anew; see `functions.reduce_function`."""
    contents = cells.cell_contents(function, given)
    if _has_data_only(function, contents):
        return make_local, (function.__closure__, *_facts(function), contents)
    _, (code, name, closure), *rest = functions.reduce_function(function, given)
    return make_local, (closure, code, name, *_home(function)), *rest


def apart(function: object) -> Facts | None:
    """Take a function apart that has nothing but code, names, and data in its closure.

    Parameters
    ----------
    function : object
        Any callable. Nothing else that is sent with it may share a variable with it.

    Returns
    -------
    tuple or None
        Facts for `together`; None for any other callable.
    """
    if type(function) is not types.FunctionType or function.__module__ in MAIN_NAMES:
        return None
    contents = cells.cell_contents(function)
    if not _has_data_only(function, contents) or not is_plain_local(function):
        return None
    if len(contents) > 1 and len(set(map(id, function.__closure__ or ()))) < len(contents):
        return None  # two names of one variable
    return *_facts(function), contents


def together(facts: Facts) -> types.FunctionType:
    """Return the function that was taken apart."""
    return make_local(tuple([types.CellType() for _ in facts[-1]]), *facts)


def make_local(
    closure: tuple[types.CellType, ...] | None,
    code: bytes,
    name: str,
    module: str,
    package: str | None,
    qualname: str | None = None,
    doc: str | None = None,
    annotations: dict[str, str] | None = None,
    contents: tuple[tuple[Any, ...], ...] = (),
) -> types.FunctionType:
    """Return the function of `reduce_local`; without a `qualname` it still lacks its state."""
    namespace = _stand_ins.get((module, package))
    if namespace is None:
        # What the interpreter itself looks for: builtins, and where relative imports start from.
        namespace = {"__builtins__": builtins, "__name__": module, "__package__": package}
        _stand_ins[module, package] = namespace
    function = types.FunctionType(load_code(code), namespace, name, None, closure)
    if qualname is not None:
        function.__module__ = module
        function.__qualname__ = qualname
        function.__doc__ = doc
        if annotations:
            functions.annotate(function, annotations)
        cells.fill_cells(function, contents)
    return function


def _home(function: types.FunctionType) -> tuple[Any, ...]:
    return function.__module__, function.__globals__.get("__package__")


def _facts(function: types.FunctionType) -> tuple[Any, ...]:
    """Return all `Facts` but the last."""
    names = function.__qualname__, function.__doc__, functions.annotations_of(function) or None
    return dumped(function.__code__), function.__name__, *_home(function), *names


def _has_data_only(function: types.FunctionType, contents: tuple[tuple[Any, ...], ...]) -> bool:
    """Tell whether a function has nothing but code, data in its closure, and annotations that are strings."""
    if function.__defaults__ or function.__kwdefaults__ or function.__dict__:
        return False
    if getattr(function, "__type_params__", None) or id(type(function.__doc__)) not in _DATA:
        return False
    notes = functions.annotations_of(function)
    if type(notes) is not dict:
        return False
    if notes and not _STRINGS.issuperset(map(id, map(type, itertools.chain(notes, notes.values())))):
        return False
    return all(map(_is_data, itertools.chain(*contents)))


def _is_data(value: object) -> bool:
    """Tell whether a value cannot refer to anything, so not to the function in whose closure it is either."""
    return id(type(value)) in _DATA or (type(value) is np.ndarray and not value.dtype.hasobject)
