"""The namespace of ``__main__``: where the functions of a program live, and what a name means there."""

from __future__ import annotations

import sys
import types
from typing import Any

MAIN_NAMES = frozenset(("__main__", "__mp_main__"))
"""Names a main program goes by: multiprocessing's spawn runs it under the second."""


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
