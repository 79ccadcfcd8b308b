"""The namespace of ``__main__``: where the functions of a program live, and what a name means there.

Some objects pickle as nothing but their name, which a receiver that does not have the program cannot look
up. The types of `typing` among them are taken apart here; the names of all others are found in the finished
pickle, so that they can be sent ahead or refused.
"""

from __future__ import annotations

import builtins
import os
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
            attributes = list(vars(value).values()) if issubclass(type(value), type) else [value]
            for one in attributes:
                if type(one) is types.FunctionType and one.__globals__.get("__name__") == "__mp_main__":
                    found = one.__globals__
        _spawned[:] = [namespace, found]
    return _spawned[1]


LAZY: type | None = getattr(types, "LazyImportType", None)
"""Stands for what a lazy import has not imported yet; only from Python 3.15 on."""


def look_up(namespace: dict[str, Any], name: str, absent: Any = None) -> Any:
    """Return what a name means, as code that uses it would find it: what was imported lazily is imported.

    What cannot be imported is absent.
    """
    found = namespace.get(name, absent)
    if LAZY is not None and type(found) is LAZY:
        try:
            found = namespace[name] = found.resolve()  # type: ignore[attr-defined]
        except ImportError:
            return absent
    return found


def find_in_main(qualname: str) -> object:
    """Return what a dotted name means in ``__main__``, or None."""
    namespace = main_namespace()
    if "." not in qualname:
        return look_up(namespace, qualname)
    root, *rest = qualname.split(".")
    found = look_up(namespace, root)
    for part in rest:
        found = getattr(found, part, None)
    return found


def _type_var(obj: Any) -> Any:
    makers = {name: _maker(obj, f"evaluate_{name}") for name in ("bound", "default")}
    if any(makers.values()) and not _maker(obj, "evaluate_constraints"):
        return _make_lazy_type_var, (obj.__name__, obj.__module__, makers)
    return _parameter_with_bound(obj)


def _parameter_with_bound(obj: Any) -> Any:
    facts = {"bound": obj.__bound__, "covariant": obj.__covariant__, "contravariant": obj.__contravariant__}
    if getattr(obj, "__infer_variance__", False):
        facts = {"bound": obj.__bound__, "infer_variance": True}
    return _parameter(obj, **facts)


def _parameter(obj: Any, **facts: object) -> Any:
    if getattr(obj, "has_default", bool)():
        facts["default"] = obj.__default__
    arguments = obj.__name__, *getattr(obj, "__constraints__", ())
    return _make_named, (type(obj).__name__, obj.__module__, arguments, facts)


def _new_type(obj: Any) -> Any:
    return _make_named, ("NewType", obj.__module__, (obj.__name__, obj.__supertype__), {})


def _make_named(kind: str, module: str, arguments: tuple[Any, ...], facts: dict[str, Any]) -> Any:
    # They are of the module whose code makes them; there they are looked for by name.
    make = types.FunctionType(_make.__code__, {"__name__": module, "__builtins__": __builtins__})
    return make(getattr(typing, kind), arguments, facts)


def _make(make, arguments, facts):  # type: ignore[no-untyped-def]
    return make(*arguments, **facts)


def _maker(obj: Any, name: str) -> Any:
    """Return the function that evaluates a part of a type parameter or alias when somebody asks for it."""
    maker = getattr(obj, name, None)
    return maker if type(maker) is types.FunctionType else None


def _make_lazy_type_var(name: str, module: str, makers: dict[str, Any]) -> Any:
    namespace = {"__name__": module, **makers}
    bound = ": bound(1)" if makers["bound"] else ""
    default = " = default(1)" if makers["default"] else ""
    exec(f"def function[{name}{bound}{default}](): pass", namespace)  # nothing else makes them evaluate later
    (made,) = namespace["function"].__type_params__
    return made


def _alias(obj: Any) -> Any:
    maker = _maker(obj, "evaluate_value")
    if maker is not None and not obj.__type_params__:
        return _make_lazy_alias, (obj.__name__, obj.__module__, maker)
    if not obj.__type_params__:  # its value may refer to itself
        return _make_late_alias, (obj.__name__, obj.__module__), obj.__value__, None, None, _set_value
    facts = {"type_params": obj.__type_params__}
    return _make_named, ("TypeAliasType", obj.__module__, (obj.__name__, obj.__value__), facts)


def _make_lazy_alias(name: str, module: str, value: Callable[[int], Any]) -> Any:
    namespace: dict[str, Any] = {"__name__": module, "value": value}
    exec(f"type {name} = value(1)", namespace)
    return namespace[name]


_values: dict[int, list[Any]] = {}  # of aliases that are still without


def _make_late_alias(name: str, module: str) -> Any:
    value: list[Any] = []
    made = _make_lazy_alias(name, module, lambda _: value[0])
    _values[id(made)] = value
    return made


def _set_value(alias: Any, value: Any) -> None:
    _values.pop(id(alias)).append(value)


# They turn up in annotations all over.
NAME_ONLY: dict[type, Callable[[Any], Any]] = {
    typing.TypeVar: _type_var,
    typing.ParamSpec: _parameter_with_bound,
    typing.TypeVarTuple: _parameter,
    typing.NewType: _new_type,
}
if sys.version_info >= (3, 12):
    NAME_ONLY[typing.TypeAliasType] = _alias


_sentinels: dict[str, Any] = {}  # by an id that travels with them
_sentinel_ids: dict[int, str] = {}


def _sentinel(obj: Any) -> Any:
    """Return how to make a sentinel, which is the same one whenever it comes back or again."""
    key = _sentinel_ids.get(id(obj))
    if key is None:
        key = _sentinel_ids[id(obj)] = os.urandom(16).hex()
        _sentinels[key] = obj
    return _make_sentinel, (key, obj.__name__, obj.__module__)


def _make_sentinel(key: str, name: str, module: str) -> Any:
    made = _sentinels.get(key)
    if made is None:
        made = _sentinels[key] = _SENTINEL(name)
        _sentinel_ids[id(made)] = key
        made.__module__ = module
    return made


_SENTINEL: Any = getattr(builtins, "sentinel", None)
if _SENTINEL is not None:
    NAME_ONLY[_SENTINEL] = _sentinel


def names_in_pickle(stream: bytes) -> frozenset[str]:
    """Return the root names of ``__main__`` that a pickle refers to."""
    import pickletools  # seldom needed

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
