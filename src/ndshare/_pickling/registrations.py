"""What others have been told of a class: abstract classes, and functions of `functools.singledispatch`.

A class of the program that travels is registered again where it arrives, also with what modules have.
Neither is asked per task: what is found stays true until somebody registers, or a module is imported.
"""

from __future__ import annotations

import abc
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from ndshare._pickling.namespace import MAIN_NAMES


def registered_classes(cls: type) -> list[type]:
    """Return what is registered with an abstract class."""
    references = abc._get_dump(cls)[0]  # type: ignore[attr-defined]
    return [sub for reference in references if (sub := reference()) is not None]


class _Abstract:
    """Which classes of the program are registered with abstract classes of modules."""

    def __init__(self) -> None:
        self._token: object = None
        self._found: dict[int, tuple[weakref.ref[type], list[type]]] = {}

    def of(self, cls: type) -> list[type]:
        """Return those that a class is registered with."""
        token = abc.get_cache_token()  # changes with each registration
        if self._token != token:
            self._found, self._token = self._look(), token
        reference, those = self._found.get(id(cls), (None, []))
        return those if reference is not None and reference() is cls else []

    def _look(self) -> dict[int, tuple[weakref.ref[type], list[type]]]:
        found: dict[int, tuple[weakref.ref[type], list[type]]] = {}
        seen: set[int] = set()
        ahead: list[type] = [object]
        while ahead:
            one = ahead.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            ahead += type.__subclasses__(one)
            if isinstance(one, abc.ABCMeta) and _is_of_module(one):
                for sub in registered_classes(one):
                    if sub.__module__ in MAIN_NAMES:
                        found.setdefault(id(sub), (weakref.ref(sub), []))[1].append(one)
        return found


def _is_of_module(cls: type) -> bool:
    """Tell whether a class is found by its name in a module that is imported."""
    module = None if cls.__module__ in MAIN_NAMES else sys.modules.get(cls.__module__)
    # Not by `getattr`: a module may warn of what is asked for, as `collections.abc` does.
    return isinstance(module, types.ModuleType) and vars(module).get(cls.__name__) is cls


registered_with = _Abstract().of


#: A module that has neither, under whatever name, makes no such functions.
_MAKERS = frozenset((id(functools), id(functools.singledispatch)))


class _Dispatchers:
    """The functions of modules that `functools.singledispatch` has made; each module is looked at once."""

    def __init__(self) -> None:
        self._modules: dict[str, int] = {}
        self._found: list[tuple[Any, Callable[[type], Any]]] = []

    def of(self, cls: type) -> list[tuple[Any, Any]]:
        """Return those that have been told what to do with a class of the program, with what that is."""
        if len(self._modules) != len(sys.modules):
            modules = {name: id(module) for name, module in list(sys.modules.items())}
            new = modules.items() - self._modules.items()
            self._found += [(one, one.registry.get) for one in self._look([name for name, _ in new])]
            self._modules = modules
        try:
            return [(one, does) for one, get in self._found if (does := get(cls)) is not None]
        except TypeError:  # its metaclass has no hash: nobody can have told them
            return []

    def _look(self, names: list[str]) -> Iterator[Any]:
        for name in names:
            module = sys.modules.get(name)
            if type(module) is types.ModuleType and name not in MAIN_NAMES:
                values = list(vars(module).values())
                if _MAKERS.isdisjoint(map(id, values)):
                    continue
                for value in values:
                    if (
                        type(value) is types.FunctionType
                        and value.__module__ == name
                        and type(value.__dict__.get("registry")) is types.MappingProxyType
                        and vars(module).get(value.__qualname__) is value
                    ):
                        yield value


dispatching = _Dispatchers().of


def told_of(cls: type) -> list[Any]:
    """Return what functions of modules do with a class, each after its function."""
    return [part for pair in dispatching(cls) for part in pair]
