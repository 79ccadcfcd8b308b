"""What a function or an object holds, found without running any code of it."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

_LENGTH_MAX = 1000  # elements of one container that are looked into


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
