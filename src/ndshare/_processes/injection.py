"""The worker's side of a workspace: names that a function finds while it runs, and nobody afterwards.

::

    SetUp(values, …)         once per worker: values are kept in `cells.given`
    invoke(function, …)      per call: names into the globals of the function's module and of
                             ``__main__`` ─► call ─► names out, what was there before back in

The variables of closures need none of this: their cells arrive filled (`cells.given_cell`).

Guarantees
----------
- After a call, whatever it raised, the modules have what they had before it under these names.
- Should Ctrl-C strike while names are taken out, the next call takes out the rest.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

from ndshare._pickling import give, given, main_namespace

_ABSENT = object()
_DEEPEST = 100  # decorators: a function may say that it wraps itself

# Namespaces that have the names now, each with what it had instead.
_open: list[tuple[dict[str, Any], dict[str, object]]] = []


class SetUp:
    """The initializer of a workspace's workers: takes the values, then runs the user's initializer.

    Parameters
    ----------
    values : dict
        What functions will find by name.
    initializer : callable or None
        Finds the names as well. Messages about a failure name it.
    initargs : tuple
        Its arguments.
    """

    def __init__(
        self, values: dict[str, Any], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        self.values = values
        self.initializer = initializer
        self.initargs = initargs
        if initializer is not None:
            for name in ("__module__", "__qualname__"):
                if hasattr(initializer, name):
                    setattr(self, name, getattr(initializer, name))

    def __call__(self) -> None:
        """Do it, in a worker."""
        give(self.values)
        if self.initializer is not None:
            invoke(self.initializer, self.initargs, {})


def invoke(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that finds the values by name."""
    _take_out()
    try:
        for space in namespaces(function):
            _open.append((space, {name: space.get(name, _ABSENT) for name in given}))
            space.update(given)
        return function(*args, **kwargs)
    finally:
        _take_out()


def _take_out() -> None:
    while _open:
        space, before = _open[-1]
        for name, value in before.items():
            if value is _ABSENT:
                space.pop(name, None)
            else:
                space[name] = value
        _open.pop()


def namespaces(function: Any) -> list[dict[str, Any]]:
    """Return where a function, the helpers of its module and those of ``__main__`` look up globals."""
    found = [main_namespace()]
    core = innermost(function)
    if core is not None:
        found.append(core.__globals__)
        # A function without a name in its module has globals of its own, its helpers those of the module.
        module = sys.modules.get(core.__module__ or "")
        if module is not None:
            found.append(vars(module))
    return list({id(space): space for space in found}.values())


def innermost(function: Any) -> types.FunctionType | None:
    """Return the plain function below partials, methods and decorators; None if there is none."""
    for _ in range(_DEEPEST):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif isinstance(function, types.FunctionType):
            return function
        elif isinstance(type(function).__call__, types.FunctionType):
            function = type(function).__call__
        else:
            return None
    return None
