"""Objects that pickle as nothing but their name.

A receiver that does not have the program they are of cannot look such a name up. The types of
`typing` among them are taken apart here; the names of all others are found in the finished pickle, so
that they can be sent ahead or refused.
"""

from __future__ import annotations

import pickletools
import sys
import typing
from collections.abc import Callable
from typing import Any

from ndshare._pickling.namespace import MAIN_NAMES


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
