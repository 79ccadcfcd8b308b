"""Globals that the script has from a module, ``from settings import TABLE``: one object, not two.

::

    caller: TABLE is settings.TABLE    ──►  worker: TABLE is settings.TABLE, with the caller's content

A mark such as ``MISSING``, and a plain object, is the one that the receiver's module has: it is given the
content. A dict, list or set is sent, and the receiver's module is given it. So what a task writes to is what
functions of the module see.

Guarantees
----------
* Content is the caller's: what it has changed in place arrives.

Not guaranteed
--------------
* Arrays, and objects of classes with slots or pickles of their own, are copies.
* Where the receiver's module has a container under other names too, these have the former one.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import sys
import types

from ndshare._pickling import by_value_modules, is_of_user, place_of

Origin = tuple[str, str]

# By id: a class of the script may have no hash, or an equality of its own.
_CONTAINERS = frozenset(
    map(
        id,
        (
            dict,
            collections.OrderedDict,
            collections.defaultdict,
            collections.Counter,
            list,
            bytearray,
            set,
            collections.deque,
        ),
    )
)
_OWN_WAYS = frozenset(
    (
        "__reduce__",
        "__reduce_ex__",
        "__getstate__",
        "__setstate__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__del__",
        "__getattribute__",
    )
)
_HEAP_TYPE = 1 << 9
_PLAIN_BYTES = object.__basicsize__ + 2 * 8  # with its dict and its weak references

_users: tuple[int, list[str]] = 0, []  # how many modules there were, and which of them are the user's


def origin(value: object) -> Origin | None:
    """Return module and name of a global that the script has from a module; None for its own and for code."""
    kind = type(value)
    if not (is_container(value) or is_plain(kind)):
        return None
    modules = dict.fromkeys((kind.__module__, *_modules_of_user()))
    return place_of(value, (name for name in modules if name not in by_value_modules))


def is_container(value: object) -> bool:
    """Tell whether something is a container that goes by its content."""
    return id(type(value)) in _CONTAINERS


def _modules_of_user() -> list[str]:
    global _users
    count = len(sys.modules)
    if _users[0] != count:
        modules = list(sys.modules.items())
        _users = count, [name for name, one in modules if type(one) is types.ModuleType and is_of_user(one)]
    return _users[1]


def is_plain(kind: type) -> bool:
    """Tell whether instances are what is in their ``__dict__``, and nothing else."""
    if kind is object:
        return True
    if not kind.__dictoffset__ or kind.__basicsize__ > _PLAIN_BYTES:  # it is more than that, in C
        return False
    bases = kind.__mro__[:-1]
    return all(base.__flags__ & _HEAP_TYPE for base in bases) and not any(
        type(member) is types.MemberDescriptorType or name in _OWN_WAYS
        for base in bases
        for name, member in list(vars(base).items())
    )


def give_back(module: str, attribute: str, container: object) -> None:
    """Have a module that this process can import keep a container that the script has from it."""
    with contextlib.suppress(Exception):
        setattr(importlib.import_module(module), attribute, container)
