"""What a kernel brings along besides its code: by name, as its author would call it.

::

    def kernel(worker_id, index, value):     captured: out, table, a global of __main__
        out[index] = table[value] * scale    self.scale, for a method
"""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ndshare._locks import Lock
from ndshare._memory import is_shared
from ndshare._pickling import (
    Placed,
    cells,
    function_of,
    is_by_value,
    is_installed,
    is_of_user,
    kept_by_class,
    names_used,
    record,
    variables,
)

_FUNCTIONS_MOST = 200  # that are looked through for arrays of their modules
_NEVER_OF_USER = frozenset(("builtins", "numpy", "types"))
_CACHED = type(functools.lru_cache(len))
#: Ids of the types that call nothing of the user's, and are what kernels use most.
_DATA = frozenset(
    map(id, (np.ndarray, int, float, complex, bool, str, bytes, list, tuple, dict, set, type(None)))
)
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)


def module_data(kernel: Callable[..., object]) -> dict[str, dict[str, Any]]:
    """Return the arrays and locks among the globals of imported modules that a kernel and its functions name.

    A worker imports these modules itself: its arrays of that name are others, and what is written to them is
    lost.

    Returns
    -------
    dict of dict
        Array or lock by name, by module.
    """
    found: dict[str, dict[str, Any]] = {}
    for module, name, value in _reached(kernel):
        if module is not None and issubclass(type(value), (np.ndarray, Lock)):
            found.setdefault(module, {})[name] = value
    return found


def reached_globals(kernel: Callable[..., object]) -> dict[str, Any]:
    """Return what the functions that a kernel may call name of the script, and of the user's modules.

    The latter by full name; the kernel's own globals only if there are such functions.
    """
    return {
        name if module is None else f"{module}.{name}": value
        for module, name, value in _reached(kernel)
        if module is not None or not issubclass(type(value), types.FunctionType)
    }


def _reached(kernel: Callable[..., object]) -> Iterator[tuple[str | None, str, Any]]:
    """Yield what functions name of modules, their own and those they import: module, name and value.

    The module is None for globals of functions that take them along, as those of the script do.
    """
    if _leads_nowhere(kernel):
        return
    functions_left = _functions_of(kernel)
    for _, value in variables(kernel):
        functions_left += _functions_of(value)
    seen: set[int] = set()
    while functions_left and len(seen) < _FUNCTIONS_MOST:
        function = functions_left.pop()
        if id(function) in seen or is_installed(function.__code__.co_filename):
            continue
        seen.add(id(function))
        used: list[tuple[str | None, str, Any]] = []
        own = None if is_by_value(function) else function.__globals__.get("__name__", function.__module__)
        for name, value in globals_of(function).items():
            if (  # by `issubclass`: a proxy may raise if it is asked for its class
                issubclass(type(value), types.ModuleType)
                and is_of_user(value)
                and sys.modules.get(module_name := value.__name__) is value
            ):
                within = vars(value)
                named = sorted(name for name in names_used(function.__code__).attributes if name in within)
                used += [(module_name, attribute, within[attribute]) for attribute in named]
            else:
                used.append((own, name, value))
        for content in itertools.chain(*cells.cell_contents(function)):
            functions_left += _functions_of(content)
        for module, name, value in used:
            functions_left += _functions_of(value)
            if not issubclass(type(value), types.FunctionType):
                yield module, name, value


def _functions_of(value: Any) -> list[types.FunctionType]:
    """Return what something may call of the user's functions: itself, what it wraps, those of its class."""
    if id(type(value)) in _DATA:
        return []
    if issubclass(type(value), types.FunctionType):
        return [value]
    if issubclass(type(value), functools.partial):
        return _functions_of(value.func)
    if issubclass(type(value), types.MethodType):
        return [*_functions_of(value.__func__), *_functions_of(value.__self__)]
    wrapped = getattr(value, "__wrapped__", None) if issubclass(type(value), _CACHED) else None
    if wrapped is not None:
        return _functions_of(wrapped)
    cls = value if issubclass(type(value), type) else type(value)
    if cls.__module__ in _NEVER_OF_USER:
        return []
    found: list[types.FunctionType] = []
    for base in cls.__mro__:
        for _, member in kept_by_class(base, special=True):
            if issubclass(type(member), (classmethod, staticmethod)):
                member = member.__func__
            elif issubclass(type(member), property):
                member = member.fget
            if type(member) is types.FunctionType:
                found.append(member)
    return found


def _leads_nowhere(kernel: Callable[..., object]) -> bool:
    """Tell, of most kernels at once, that they use data and no functions, and take it along."""
    if type(kernel) is not types.FunctionType or kernel.__defaults__ or kernel.__kwdefaults__:
        return False
    used: list[Any] = []
    if kernel.__closure__:
        used += itertools.chain(*cells.cell_contents(kernel))
    if names := names_used(kernel.__code__).attributes:
        if not is_by_value(kernel):
            return False
        namespace = kernel.__globals__
        used += [namespace[name] for name in names if name in namespace]
    for value in used:
        if issubclass(type(value), types.ModuleType):
            if is_of_user(value):
                return False
        elif _functions_of(value):
            return False
    return True


def globals_of(kernel: Any) -> dict[str, Any]:
    """Return the globals that a function's own code names, of whatever module it is."""
    kernel = function_of(kernel)
    if not isinstance(kernel, types.FunctionType):
        return {}
    namespace = kernel.__globals__
    names = names_used(kernel.__code__).attributes  # all names in the code, those of globals too
    return {name: namespace[name] for name in sorted(names) if name in namespace}


# ---------------------------------------------------------------------- how it travels


class Traffic(NamedTuple):
    """What became of the bytes of a variable: by reference, copied once for all workers, or pickled.

    On a cluster nothing goes by reference. There ``copied`` is what was sent to machines that did not have
    it, to each of them once; ``pickled`` goes with each share, and of items and of rows per worker it is the
    sum of what went with shares.
    """

    shared: int
    copied: int
    pickled: int

    def plus(self, other: Traffic) -> Traffic:
        """Return both together."""
        return Traffic(self.shared + other.shared, self.copied + other.copied, self.pickled + other.pickled)


def sent_here(value: object) -> Traffic | None:
    """Return how a value travels to workers of this machine; None if it cannot."""
    if type(value) is np.ndarray and is_shared(value):  # what most kernels write to
        return Traffic(value.nbytes, 0, 0)
    try:
        recording = record(value)
    except Exception:
        return None
    shared = sum(note.nbytes for note in recording.notes if isinstance(note, Placed))
    copied = sum(note.nbytes for note in recording.notes if isinstance(note, np.ndarray))
    return Traffic(shared, copied, sum(map(len, recording.parts)))


def account(
    kernel: Callable[..., object],
    functor: object,
    sent_how: Callable[[object], Traffic | None] = sent_here,
) -> dict[str, Traffic]:
    """Return how each variable of a kernel, and the collection, travels. Those that cannot are left out."""
    found: dict[str, Traffic] = {}
    seen: set[int] = set()
    for name, value in (*variables(kernel), ("the collection", functor)):
        if issubclass(type(value), _CODE) or id(value) in seen:
            continue
        seen.add(id(value))
        if (sent := sent_how(value)) is not None:
            found[name] = found[name].plus(sent) if name in found else sent
    return found


def unsendable(kernel: Callable[..., object], functor: object, error: Exception) -> str:
    """Say which of the things a map uses cannot be sent to a worker.

    Parameters
    ----------
    kernel : callable
        What was to be sent.
    functor : object
        What it is mapped over.
    error : Exception
        What pickling both has raised.
    """
    for name, value in variables(kernel):
        if (why := _why_not(value)) is not None:
            return (
                f"the variable {name!r} ({type(value).__module__}.{type(value).__qualname__}) that the "
                f"kernel uses cannot be sent to a worker: {why}"
            )
    if (why := _why_not(functor)) is not None:
        return f"the mapped collection cannot be sent to a worker: {why}"
    return f"the kernel cannot be sent to a worker: {type(error).__name__}: {error}"


def _why_not(value: object) -> str | None:
    try:
        record(value)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
