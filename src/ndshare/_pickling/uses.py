"""What functions and objects refer to, by name, as their author would call it.

::

    def kernel(worker_id, index, value):     captured: out, table, a global of __main__
        out[index] = table[value] * scale    self.scale, for a method

Guarantees
----------
* No code of what is looked at is run.
"""

from __future__ import annotations

import collections
import functools
import itertools
import mmap
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ndshare._pickling import cells
from ndshare._pickling.classes import class_attributes, slots_of
from ndshare._pickling.functions import needs_of
from ndshare._pickling.namespace import MAIN_NAMES, main_namespace
from ndshare._system import within_partials

_PYTHON = os.path.dirname(os.__file__) + "/"
_OWN = (
    os.path.dirname(os.path.dirname(__file__)) + "/"
)  # as if installed, also where it runs from its sources
_LENGTH_MAX = 1000  # elements of one container that are looked into
_DEPTH_MAX = 6
_OBJECTS_MAX = 5000
# By id: a class of the script may have no hash, or an equality of its own.
_ATOMS = frozenset(
    map(id, (type(None), bool, int, float, complex, str, bytes, range, slice, types.ModuleType))
)
_WHOLE = (np.ndarray, mmap.mmap)  # the mapping that an np.memmap has is its own affair


def variables(kernel: Callable[..., object]) -> Iterator[tuple[str, Any]]:
    """Yield name and value of what a callable uses: cells, globals that go along, defaults, attributes.

    What is used by functions that it uses, and that are sent by value as well, comes before these.
    """
    yield from _used(kernel, {id(kernel)})


def _used(kernel: Callable[..., object], seen: set[int]) -> Iterator[tuple[str, Any]]:
    for name, value in _own(kernel):
        if issubclass(type(value), types.FunctionType) and is_by_value(value) and id(value) not in seen:
            seen.add(id(value))
            yield from _used(value, seen)
        yield name, value


def _own(kernel: Callable[..., object]) -> Iterator[tuple[str, Any]]:
    if isinstance(kernel, functools.partial):
        yield "the function of the partial", kernel.func
        if not isinstance(kernel.func, types.FunctionType):
            yield from _own(kernel.func)
        for number, value in enumerate(kernel.args):
            yield f"argument {number + 1} of the partial", value
        yield from kernel.keywords.items()
    elif isinstance(kernel, types.MethodType):
        yield from _own(kernel.__func__)
        yield from _attributes(kernel.__self__, "self")
    elif isinstance(kernel, types.FunctionType):
        for name, cell in zip(kernel.__code__.co_freevars, kernel.__closure__ or (), strict=True):
            for value in cells.contents(cell):
                yield name, value
        defaults = kernel.__defaults__ or ()
        names = parameters(kernel)
        yield from zip(names[len(names) - len(defaults) :], defaults, strict=True)
        yield from (kernel.__kwdefaults__ or {}).items()
        if is_by_value(kernel):
            for name in sorted(needs_of(kernel)):
                if name in kernel.__globals__:
                    yield name, kernel.__globals__[name]
    elif not isinstance(kernel, type) and not isinstance(kernel, types.BuiltinFunctionType):
        yield from _attributes(kernel, type(kernel).__name__)
        if isinstance(call := type(kernel).__call__, types.FunctionType):
            yield from _own(call)


def is_by_value(function: types.FunctionType) -> bool:
    """Whether a function takes its globals along, because a worker could not import it."""
    local = "<locals>" in function.__qualname__ or function.__name__ == "<lambda>"
    return local or function.__globals__ is main_namespace()


def _attributes(obj: object, name: str) -> Iterator[tuple[str, Any]]:
    for attribute, value in list(getattr(obj, "__dict__", {}).items()):
        yield f"{name}.{attribute}", value


def is_of_user(module: types.ModuleType) -> bool:
    """Tell whether a module is a file of the user's, and not of an installed library."""
    path = getattr(module, "__file__", None)
    return path is not None and not is_installed(path)


def place_of(value: object, modules: Iterable[str]) -> tuple[str, str] | None:
    """Return the first of some modules, the script not counted, that has a value, and its name there."""
    for name in modules:
        module = sys.modules.get(name)
        if name in MAIN_NAMES or type(module) is not types.ModuleType:
            continue
        for attribute, one in list(vars(module).items()):
            if one is value:
                return name, attribute
    return None


@functools.lru_cache(maxsize=1024)
def is_installed(path: str) -> bool:
    """Tell whether a file belongs to Python or to an installed library."""
    return path.startswith((_PYTHON, _OWN)) or "/site-packages/" in path or "/dist-packages/" in path


def is_of_library(kind: type) -> bool:
    """Tell whether a class is that of an installed library: lists in its objects are the library's affair."""
    path = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return path is not None and is_installed(path)


# ---------------------------------------------------------------------- what they hold


def held(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield name and value of what is given, and of what that leads to: the nearest first, each once.

    Elements, attributes, what classes of the script keep, and what functions bring along, some levels deep.
    """
    seen: dict[int, Any] = {}
    level = list(named)
    for _ in range(_DEPTH_MAX + 1):
        ahead: list[tuple[str, Any]] = []
        for name, value in level:
            if id(type(value)) in _ATOMS or id(value) in seen:
                continue
            if len(seen) >= _OBJECTS_MAX:
                return
            seen[id(value)] = value
            yield name, value
            ahead += _parts(name, value)
        level = ahead


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if issubclass(kind, _WHOLE):
        return
    if issubclass(kind, functools.partial) and name:
        yield name, value.func
        yield from ((f"{name}.args[{number}]", content) for number, content in enumerate(value.args))
        yield from ((f"{name}.keywords[{key!r}]", content) for key, content in value.keywords.items())
    elif issubclass(kind, functools.partial):
        yield from _own(value)
    elif issubclass(kind, types.FunctionType):
        yield from _own(value)
        for attribute, content in value.__dict__.items():
            yield f"{value.__name__}.{attribute}", content
    elif issubclass(kind, types.MethodType):
        yield from _own(value.__func__)
        yield ("self" if name == "" else name), value.__self__
    elif issubclass(kind, types.BuiltinMethodType):
        yield name, value.__self__
    elif issubclass(kind, dict):
        for key, content in first(dict.items(value)):
            yield f"{name}[{key!r}]" if id(type(key)) in _ATOMS else name, content
    elif issubclass(kind, (list, tuple, collections.deque)):
        for number, content in enumerate(first(iter(value))):
            yield f"{name}[{number}]", content
    elif issubclass(kind, type):
        for attribute, content in kept_by_class(value):
            yield f"{value.__name__}.{attribute}", content
    else:
        name = name or kind.__name__
        for attribute, content in attributes(value):
            yield f"{name}.{attribute}", content
        for base in kind.__mro__:
            for attribute, content in kept_by_class(base):
                yield f"{name}.{attribute}", content
        if isinstance(call := vars(kind).get("__call__"), types.FunctionType):
            yield from _own(call)


def kept_by_class(cls: type, *, special: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a class of the user's that may be data, or lead to some.

    Those with two underscores at both ends only if they are asked for.
    """
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or (module is not None and is_of_user(module)):
        for name, value in class_attributes(cls):
            if special or not (name.startswith("__") and name.endswith("__")):
                yield name, value


def first(items: Iterable[Any], most: int | None = None) -> list[Any]:
    """Return the first elements of something: `most`, or a thousand."""
    return list(itertools.islice(items, most or _LENGTH_MAX))


def function_of(kernel: Any) -> Any:
    """Return the Python function behind a kernel, or None."""
    kernel = within_partials(kernel)
    if issubclass(type(kernel), types.FunctionType):
        return kernel
    if issubclass(type(kernel), types.MethodType):
        return kernel.__func__
    return vars(type(kernel)).get("__call__")


def parameters(function: Any) -> tuple[str, ...]:
    """Names of the positional parameters of a Python function; of anything else none."""
    if isinstance(function, types.MethodType):
        return parameters(function.__func__)[1:]
    if not isinstance(function, types.FunctionType):
        return ()
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds in its ``__dict__`` and its slots, without running any code of it."""
    kind = type(value)
    module = str(kind.__module__).partition(".")[0]
    if module in sys.stdlib_module_names and module != "__main__" and kind is not types.SimpleNamespace:
        return
    if module == "pandas":
        yield from _pandas_arrays(value)
    try:
        state = object.__getattribute__(value, "__dict__")
    except AttributeError:
        state = None
    if isinstance(state, dict):
        yield from first(state.items())
    for name, member in slots_of(kind):
        try:
            yield name, member.__get__(value)
        except (AttributeError, SystemError):  # not set; no such member of a C type
            continue


def _pandas_arrays(value: Any) -> Iterator[tuple[str, Any]]:
    # The blocks of a DataFrame are behind an attribute that no __dict__ shows.
    for block in getattr(getattr(value, "_mgr", None), "blocks", ()):
        yield "_values", block.values
