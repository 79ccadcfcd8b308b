"""The namespace of ``__main__``: where the functions of a program live, and what a name means there.

Some objects pickle as nothing but their name, which a receiver that does not have the program cannot look
up. The types of `typing` among them are taken apart here; the names of all others are found in the finished
pickle, so that they can be sent ahead or refused.
"""

from __future__ import annotations

import pickletools
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

MAIN_NAMES = frozenset(("__main__", "__mp_main__"))
"""Names a main program goes by: multiprocessing's spawn runs it under the second."""

EVERYTHING = "*"
"""In place of a name: whatever ``__main__`` has, as far as it can be sent and is not large."""

PERHAPS = "?"
"""Before a name that a task may look up at run time, with `EVERYTHING`."""


def main_namespace() -> dict[str, Any]:
    """Return the namespace of this process's ``__main__``: the globals that its functions have."""
    namespace = sys.modules["__main__"].__dict__
    if namespace.get("__name__") == "__mp_main__":
        return _spawned_namespace(namespace)
    return namespace


_spawned: list[dict[str, Any]] = []  # the namespace of the module, that of its functions


def _spawned_namespace(namespace: dict[str, Any]) -> dict[str, Any]:
    """Find the globals of the program in a child that multiprocessing has spawned.

    There ``__main__`` is a module that has a *copy* of them (see `runpy.run_path`): what the program's
    functions assign does not show in it.
    """
    if not _spawned or _spawned[0] is not namespace:
        found = namespace
        for value in list(namespace.values()):
            attributes = list(vars(value).values()) if isinstance(value, type) else [value]
            for one in attributes:
                if type(one) is types.FunctionType and one.__globals__.get("__name__") == "__mp_main__":
                    found = one.__globals__
        _spawned[:] = [namespace, found]
    return _spawned[1]


def find_in_main(qualname: str) -> object:
    """Return what a dotted name means in ``__main__``, or None."""
    namespace = main_namespace()
    if "." not in qualname:
        return namespace.get(qualname)
    root, *rest = qualname.split(".")
    found = namespace.get(root)
    for part in rest:
        found = getattr(found, part, None)
    return found


def _type_var(obj: Any) -> Any:
    facts = {"bound": obj.__bound__, "covariant": obj.__covariant__, "contravariant": obj.__contravariant__}
    return _make_type_var, (obj.__name__, obj.__constraints__, facts)


def _make_type_var(name: str, constraints: tuple[Any, ...], facts: dict[str, Any]) -> Any:
    return typing.TypeVar(name, *constraints, **facts)


# They turn up in annotations all over.
NAME_ONLY: dict[type, Callable[[Any], Any]] = {
    typing.TypeVar: _type_var,
    typing.ParamSpec: lambda obj: (typing.ParamSpec, (obj.__name__,)),
    typing.TypeVarTuple: lambda obj: (typing.TypeVarTuple, (obj.__name__,)),
    typing.NewType: lambda obj: (typing.NewType, (obj.__name__, obj.__supertype__)),
}
if sys.version_info >= (3, 12):
    NAME_ONLY[typing.TypeAliasType] = lambda obj: (typing.TypeAliasType, (obj.__name__, obj.__value__))


def names_in_pickle(stream: bytes) -> frozenset[str]:
    """Return the root names of ``__main__`` that a pickle refers to."""
    found = set()
    memo: list[Any] = []
    recent: list[Any] = [None, None]
    last: Any = None
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "MEMOIZE":
                memo.append(last)
                continue
            if opcode.name == "STACK_GLOBAL" and recent[-2] in MAIN_NAMES:
                found.add(recent[-1].partition(".")[0])
            last = None
            if "UNICODE" in opcode.name:
                last = argument
                recent.append(last)
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                last = memo[argument or 0]
                recent.append(last)
    except ValueError:  # the end of a part, not of the pickle
        pass
    return frozenset(found)
