"""Finds what a kernel wrote to and nobody will ever see: captured objects that are not shared.

::

    worker                                                       caller
    watch = Watch(kernel, functor, globals)   before the first item
        kernel runs
    watch.changes() ─► [(name, what), …] ──── report ──────────► SilentWriteWarning, once per name

A kernel gets its own copy of every ordinary array, list and dict it refers to, so what it writes there is
lost. Each of them is noted before the kernel runs and compared afterwards. Large arrays cost nothing to
note: the kernel knows which of their pages were written to (`_heap.altered`). Small ones are copied.

Guarantees
----------
* Bytes decide: an array that was only read, or rewritten with equal bytes (NaN included), is not reported; of
  two arrays in one page only the one that was written to is.
* Nothing of the user's is called, except ``==`` of elements that were replaced in a list or dict.

Not guaranteed
--------------
* Containers are looked into a few levels deep, and the first thousand elements of each, of the mapped
  collection the first 64.
* Changes inside objects of the standard library, of lists and dicts that objects and decorators of installed
  libraries keep, and of private ones of other objects, are not looked for: they are mostly caches. Arrays are
  data wherever they are.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ndshare._map.watch.differences import (
    BUFFERS,
    Forker,
    Question,
    elements,
    hidden_arrays,
    is_table,
    same,
    watch_array,
    watch_container,
    watch_table,
)
from ndshare._memory import is_scratch, is_shared
from ndshare._pickling import (
    attributes,
    describe_random,
    find_memmap,
    first,
    function_of,
    is_foreign,
    is_installed,
    is_of_ctypes,
    is_of_library,
    is_random,
    kept_by_class,
    parameters,
    state_of,
)

__all__ = ["MAPPED", "Watch"]

MAPPED = "the mapped collection"
"""Name of whatever belongs to the functor."""

_DEPTH_MAX = 5
_OBJECTS_MAX = 5000  # in all: about a microsecond each
_ITEMS_MAX = 64  # of the mapped collection: whoever maps the first of them sees what the kernel does
_CHECKS_MOST = 2000  # from then on attributes of objects within others may be bound anew without a word
_NAME_MAX = 60

# By id: a class of the script may have no hash, or an equality of its own.
_ATOMS = frozenset(
    map(
        id,
        (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented)),
    )
)
_UNCHANGING = (types.ModuleType, types.CodeType, np.generic, np.dtype)
_REBOUND = frozenset(map(id, (int, float, complex, str, bytes, list, tuple, dict, set, np.ndarray)))


class Watch:
    """What a kernel refers to, as it was before the kernel ran.

    Parameters
    ----------
    kernel : callable
        Its closure, defaults, partial arguments, attributes, those of its ``self`` and of classes of the
        user's are watched, and what the functions among them refer to in turn.
    functor : object, optional
        An array, or what has arrays: these are watched, and its ``values`` if these are a list or dict.
    extra_globals : mapping of str to object, optional
        The globals the kernel uses.
    forker : Forker, optional
        In a child of a fork: the process that it is a child of.

    Notes
    -----
    To be made and asked in the process where the kernel runs. What is watched is kept alive meanwhile. Cost:
    a microsecond or two per captured object; 0.2 ms (untouched) to 1.1 ms (read) per 160 MB of array that was
    sent along, lies in a segment or is the forker's; 20 ms per 160 MB of any other.
    """

    def __init__(
        self,
        kernel: object,
        functor: object = None,
        extra_globals: Mapping[str, object] | None = None,
        forker: Forker | None = None,
    ) -> None:
        self._forker = forker
        self._seen: dict[int, object] = {}
        self._classes: dict[int, type] = {}
        self._checks: list[tuple[str, object, Question]] = []
        self._mapped = False
        self._kernel(kernel)
        namespace = getattr(function_of(kernel), "__globals__", {})
        for name, value in (extra_globals or {}).items():
            if namespace.get(name) is value:
                self._binding(name, value, functools.partial(namespace.get, name))
            self._visit(
                name, value, 0, quiet="._" in name
            )  # what a module keeps to itself is a cache, mostly
        if type(functor) is np.ndarray:
            self._visit(MAPPED, functor, 0)
        elif functor is not None:
            self._mapped = True
            container = type(functor) in (list, dict)
            for name, value in () if container else attributes(functor):
                if name.lstrip("_") == "values":
                    self._visit(MAPPED, value, 0)
            # Its other lists and dicts are how it keeps its place, not what is mapped.
            self._visit(MAPPED, functor, 0, quiet=not container)
        self._classes.clear()
        self._seen.clear()  # a file that the functor closes is not to be kept open by the way to it

    def changes(self) -> list[tuple[str, str]]:
        """Return name and kind of everything that was written to, in the order in which it was found."""
        found: dict[tuple[str, str], None] = {}
        for name, value, changed in self._checks:
            if changed():
                found[name, _describe(value)] = None
        return list(found)

    # ---- finding

    def _kernel(self, kernel: object) -> None:
        if isinstance(kernel, (types.FunctionType, functools.partial)):
            self._callable(kernel, 0)
        elif isinstance(kernel, types.MethodType):
            self._callable(kernel.__func__, 0)
            self._own(kernel.__self__)
        elif isinstance(kernel, types.BuiltinMethodType):
            self._visit("self", kernel.__self__, 0)
        else:
            self._own(kernel)

    def _own(self, owner: object) -> None:
        """Watch the object the kernel is a method of: that its attributes are bound anew counts as well."""
        if isinstance(owner, _UNCHANGING):
            return
        if isinstance(owner, type):
            self._class(owner, 0)
            return
        for name, value in attributes(owner):
            if not name.startswith("_") and not is_of_library(type(owner)):
                self._binding(f"self.{name}", value, functools.partial(getattr, owner, name, None))
        self._visit("self", owner, 0)

    def _callable(self, function: Any, depth: int) -> None:
        """Watch what a function or a partial object brings along."""
        if isinstance(function, functools.partial):
            names = parameters(function.func)
            for number, value in enumerate(function.args):
                self._visit(names[number] if number < len(names) else f"args[{number}]", value, depth)
            for name, value in function.keywords.items():
                self._visit(name, value, depth)
            self._visit("function", function.func, depth)
        if not isinstance(function, types.FunctionType):  # compiled by Cython, it looks much like one
            return
        code = function.__code__
        quiet = is_installed(code.co_filename)  # a decorator of a library keeps what it likes
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            value = _content(cell)
            if not quiet:
                self._binding(name, value, functools.partial(_content, cell))
            self._visit(name, value, depth, quiet=quiet)
        if defaults := function.__defaults__:
            for name, value in zip(parameters(function)[-len(defaults) :], defaults, strict=True):
                self._visit(name, value, depth)
        for name, value in (function.__kwdefaults__ or {}).items():
            self._visit(name, value, depth)
        for attribute, value in function.__dict__.items():
            private = attribute.startswith("_")
            name = f"{function.__name__}.{attribute}"
            if not (quiet or private):
                self._binding(name, value, functools.partial(function.__dict__.get, attribute))
            self._visit(name, value, depth, quiet=private)

    def _visit(self, name: str, value: Any, depth: int, *, quiet: bool = False) -> None:
        """Watch a value and what it holds; with `quiet` no list or dict, but the arrays in it."""
        kind = type(value)  # and not isinstance: a proxy would run code to answer for another object
        if kind is np.ndarray and is_shared(value):  # what most kernels write to
            return
        if id(kind) in _ATOMS or issubclass(kind, _UNCHANGING) or id(value) in self._seen:
            return
        if len(self._seen) >= _OBJECTS_MAX:
            return
        self._seen[id(value)] = value
        if issubclass(kind, np.ndarray):
            self._array(name, value)
            return
        if depth > _DEPTH_MAX:
            return
        if issubclass(kind, type):
            self._class(value, depth + 1)
        elif issubclass(kind, (types.FunctionType, functools.partial)):
            self._callable(value, depth + 1)
        elif issubclass(kind, types.MethodType):
            self._callable(value.__func__, depth + 1)
            self._visit(name, value.__self__, depth + 1)
        elif issubclass(kind, types.BuiltinMethodType):
            self._visit(name, value.__self__, depth)
        elif kind is memoryview:
            with contextlib.suppress(NotImplementedError, ValueError):  # it cannot be sent either
                self._array(name, np.asarray(value))
        elif is_of_ctypes(kind):
            if not is_foreign(value):
                before = bytes(value)
                self._watch(name, value, lambda: bytes(value) != before)
        elif issubclass(kind, BUFFERS):
            if not quiet:
                self._watch(name, value, watch_container(value))
        elif issubclass(kind, (list, tuple, dict, set, collections.deque)):
            self._container(name, value, depth, quiet)
        elif (content := _chunks_in_memory(value)) is not None:
            self._watch(name, value, watch_container(content))
        elif is_random(value):
            if (state := state_of(value)) is not None:
                self._watch(name, value, lambda: state_of(value) != state)
        else:
            if is_table(kind):
                with contextlib.suppress(AttributeError):  # pandas keeps them otherwise than it did
                    self._watch(name, value, watch_table(value))
                    for content in hidden_arrays(value):
                        self._array(name, content)
            quiet = quiet or (is_of_library(kind) and kind is not types.SimpleNamespace)
            for attribute, content in attributes(value):
                private = attribute.startswith("_")
                of_self = depth == 0 and name == "self"  # see `_own`
                if not (quiet or private or of_self or len(self._checks) > _CHECKS_MOST):
                    now = functools.partial(_attribute, value, attribute)
                    self._binding(self._inside(name, f".{attribute}"), content, now)
                self._visit(
                    name if private else self._inside(name, f".{attribute}"),
                    content,
                    depth + 1,
                    quiet=quiet or private,
                )
            self._class(kind, depth + 1)

    def _class(self, cls: type, depth: int) -> None:
        """Watch what a class of the user's keeps, and those it is derived from."""
        for base in cls.__mro__:
            if id(base) in self._classes:
                continue
            self._classes[id(base)] = base
            for attribute, content in kept_by_class(base):
                private = attribute.startswith("_")
                name = f"{base.__name__}.{attribute}"
                if not private:
                    self._binding(name, content, functools.partial(vars(base).get, attribute))
                self._visit(name, content, depth, quiet=private)

    def _container(self, name: str, value: Any, depth: int, quiet: bool) -> None:
        if not quiet and not issubclass(type(value), tuple):
            self._watch(name, value, watch_container(value))
        if issubclass(type(value), dict):
            for key, content in first(dict.items(value)):
                step = f"[{key!r}]" if id(type(key)) in _ATOMS else "[...]"
                self._visit(self._inside(name, step), content, depth + 1, quiet=quiet)
        elif not issubclass(type(value), set):  # what is in a set is hashable: nobody writes to it
            most = _ITEMS_MAX if self._mapped else None
            for number, content in enumerate(first(elements(value), most)):
                if id(type(content)) not in _ATOMS:
                    self._visit(self._inside(name, f"[{number}]"), content, depth + 1, quiet=quiet)

    def _inside(self, name: str, step: str) -> str:
        return name if self._mapped or len(name) + len(step) > _NAME_MAX else name + step

    # ---- comparing

    def _watch(self, name: str, value: object, changed: Question) -> None:
        self._checks.append((name, value, changed))

    def _binding(self, name: str, value: object, now: Callable[[], object]) -> None:
        """Watch a variable: ``total += 1`` binds it anew."""
        if id(type(value)) in _REBOUND and not (isinstance(value, np.ndarray) and is_scratch(value)):
            self._watch(name, value, lambda: type(value) is type(new := now()) and not same(value, new))

    def _array(self, name: str, array: np.ndarray[Any, Any]) -> None:
        if is_scratch(array):
            return
        if type(array) is not np.ndarray:
            mask = getattr(array, "_mask", None)  # np.ma is imported late, and takes its time
            if isinstance(mask, np.ndarray):
                self._array(name, mask)
            elif mask is not None:  # there is none yet
                masked: Any = array
                self._watch(name, array, lambda: bool(np.any(masked._mask)))
            array = np.ndarray.view(array, np.ndarray)
        if not array.flags.writeable or array.nbytes == 0 or is_shared(array):
            return
        if array.base is not None and (find_memmap(array) is not None or is_foreign(array)):
            return
        self._watch(name, array, watch_array(array, self._forker))


def _chunks_in_memory(value: object) -> Any:
    """Return the dict of a zarr store that lies in memory: each worker has one of its own, as of an array."""
    kind = getattr(sys.modules.get("zarr.storage"), "MemoryStore", None)
    return value._store_dict if isinstance(kind, type) and type(value) is kind else None  # type: ignore[attr-defined]


def _attribute(owner: object, name: str) -> Any:
    with contextlib.suppress(AttributeError, KeyError):
        return object.__getattribute__(owner, "__dict__")[name]
    return dict(attributes(owner)).get(name)  # of a slot


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned
        return None


def _describe(value: Any) -> str:
    if issubclass(type(value), np.ndarray):
        return f"array of shape {value.shape} and dtype {value.dtype}"
    if is_random(value):
        return describe_random(value)
    return type(value).__name__
