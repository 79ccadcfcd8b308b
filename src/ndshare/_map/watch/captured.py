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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ndshare._locks import Lock
from ndshare._memory import is_shared
from ndshare._pickling import Placed, cells, main_namespace, names_used, needs_of, record

_LENGTH_MAX = 1000  # elements of one container that are looked into
_FUNCTIONS_MOST = 200  # that are looked through for arrays of their modules
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)


def variables(kernel: Callable[..., object]) -> Iterator[tuple[str, Any]]:
    """Yield name and value of what a callable uses: cells, globals that go along, defaults, attributes.

    What is used by functions that it uses, and that are sent by value as well, comes before these.
    """
    yield from _used(kernel, {id(kernel)})


def _used(kernel: Callable[..., object], seen: set[int]) -> Iterator[tuple[str, Any]]:
    for name, value in _own(kernel):
        if isinstance(value, types.FunctionType) and _is_by_value(value) and id(value) not in seen:
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
        if _is_by_value(kernel):
            for name in sorted(needs_of(kernel)):
                if name in kernel.__globals__:
                    yield name, kernel.__globals__[name]
    elif not isinstance(kernel, type) and not isinstance(kernel, types.BuiltinFunctionType):
        yield from _attributes(kernel, type(kernel).__name__)
        if isinstance(call := type(kernel).__call__, types.FunctionType):
            yield from _own(call)


def _is_by_value(function: types.FunctionType) -> bool:
    """Whether a function takes its globals along, because a worker could not import it."""
    local = "<locals>" in function.__qualname__ or function.__name__ == "<lambda>"
    return local or function.__globals__ is main_namespace()


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
    if _leads_nowhere(kernel):
        return found
    functions_left = [function_of(kernel)]
    functions_left += [value for _, value in variables(kernel) if isinstance(value, types.FunctionType)]
    seen: set[int] = set()
    while functions_left and len(seen) < _FUNCTIONS_MOST:
        function = functions_left.pop()
        if id(function) in seen or not isinstance(function, types.FunctionType):
            continue
        seen.add(id(function))
        for name, value in globals_of(function).items():
            if isinstance(value, types.FunctionType):
                functions_left.append(value)
            elif isinstance(value, types.ModuleType) and _is_of_user(value):
                attributes_named = function.__code__.co_names
                functions_left += [getattr(value, attribute, None) for attribute in attributes_named]
            elif isinstance(value, (np.ndarray, Lock)) and not _is_by_value(function):
                found.setdefault(function.__module__, {})[name] = value
    return found


def _leads_nowhere(kernel: Callable[..., object]) -> bool:
    """Tell, of most kernels at once, that they use data and no functions, and take it along."""
    if type(kernel) is not types.FunctionType or kernel.__defaults__ or kernel.__kwdefaults__:
        return False
    used = list(itertools.chain(*cells.cell_contents(kernel)))
    if names := names_used(kernel.__code__).attributes:
        if not _is_by_value(kernel):
            return False
        namespace = kernel.__globals__
        used += [namespace[name] for name in names if name in namespace]
    for value in used:
        if isinstance(value, types.FunctionType):
            return False
        if isinstance(value, types.ModuleType) and _is_of_user(value):
            return False
    return True


def _is_of_user(module: types.ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    return path is not None and not path.startswith((sys.prefix, sys.base_prefix))


def globals_of(kernel: Any) -> dict[str, Any]:
    """Return the globals that a function's own code names, of whatever module it is."""
    kernel = function_of(kernel)
    if not isinstance(kernel, types.FunctionType):
        return {}
    namespace = kernel.__globals__
    names = names_used(kernel.__code__).attributes  # all names in the code, those of globals too
    return {name: namespace[name] for name in sorted(names) if name in namespace}


def _attributes(obj: object, name: str) -> Iterator[tuple[str, Any]]:
    for attribute, value in getattr(obj, "__dict__", {}).items():
        yield f"{name}.{attribute}", value


# ---------------------------------------------------------------------- what functions and objects hold


def first(items: Iterable[Any], most: int | None = None) -> list[Any]:
    """Return the first elements of something: `most`, or a thousand."""
    return list(itertools.islice(items, most or _LENGTH_MAX))


def function_of(kernel: Any) -> Any:
    """Return the Python function behind a kernel, or None."""
    while isinstance(kernel, functools.partial):
        kernel = kernel.func
    if isinstance(kernel, types.FunctionType):
        return kernel
    return getattr(kernel, "__func__", None) or vars(type(kernel)).get("__call__")


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
    for name, member in _slots(kind):  # type: ignore[arg-type]
        try:
            yield name, member.__get__(value)
        except (AttributeError, SystemError):  # not set; no such member of a C type
            continue


@functools.lru_cache(maxsize=256)
def _slots(kind: Any) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    return tuple(
        (name, member)
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType) and "__slots__" in vars(base)
    )


def _pandas_arrays(value: Any) -> Iterator[tuple[str, Any]]:
    # The blocks of a DataFrame are behind an attribute that no __dict__ shows.
    for block in getattr(getattr(value, "_mgr", None), "blocks", ()):
        yield "_values", block.values


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
        if isinstance(value, _CODE) or id(value) in seen:
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
