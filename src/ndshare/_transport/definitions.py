"""What the names of this process's ``__main__`` mean, and whether they still mean the same.

A definition is what a worker was sent of a name. It holds while nothing of it has changed that would travel
with it: neither the binding of the name, nor the content of what it is bound to, however large that is.

::

    value ─┬─ function, class      code, defaults, attributes, closure: compared one by one, by identity
           ├─ array                layout, and 128 bits of its bytes
           └─ anything else        its pickle, or 128 bits of it if that is long

Guarantees
----------
* A value that was changed in place, in whatever depth, has another definition the next time it is looked at.
* Shared memory is not looked at: it goes by reference. Neither is what no asked-for name leads to.
* Definitions keep no array alive, and of other values none whose name was bound anew.

Not guaranteed
--------------
* Of what a class has under names with two underscores at both ends only the binding counts.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import operator
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ndshare._memory import SEALED, SHARED, block_of, digest, is_movable
from ndshare._pickling import (
    CODE_TYPES,
    EVERYTHING,
    LAZY,
    MAIN_NAMES,
    PERHAPS,
    Named,
    Placed,
    Recording,
    by_value_modules,
    cells,
    class_attributes,
    find_in_main,
    is_per_process,
    look_up,
    main_namespace,
    names_in_pickle,
    record,
    registered_with,
    told_of,
)
from ndshare._transport.imported import Origin, is_container, is_plain, origin
from ndshare._transport.stand_ins import StandIn
from ndshare.errors import UnsendableGlobalError

_KEPT_MAX = 16 * 1024  # bytes of a pickle that are kept to compare with; of longer ones 128 bits
_SHORT_TYPES = frozenset(map(id, (list, tuple)))
_SHORT_MAX = 64  # numbers and strings that are compared one by one
_SCANNED_MAX = 64 * 1024  # bytes of pickle that are searched for names no callback sees

_ASIDE_MAX = 64 * 1024  # bytes of data that is sent only because a task may look it up at run time

ABSENT = object()
_FORGOTTEN = object()
_HEAP_TYPE = 1 << 9
# Functions and classes have names of their own; of small tuples Python keeps one for all.
_OTHERWISE_NAMED = (types.FunctionType, type, tuple, frozenset)
# Types are told from each other by id: one of the script may have no hash, or an equality of its own. And of
# values `type` is asked, not `isinstance`: a proxy may raise when it is asked for its class.
_CONSTANT_TYPES = frozenset(
    map(id, (
        type(None), bool, int, float, complex, str, bytes, range,
        types.BuiltinFunctionType, types.ModuleType, types.CodeType, np.ufunc, type(functools.lru_cache(len)),
    ))
)  # fmt: skip
_WRAPPED: dict[int, Callable[[Any], Any]] = {
    id(classmethod): operator.attrgetter("__func__"),
    id(staticmethod): operator.attrgetter("__func__"),
    id(functools.cached_property): operator.attrgetter("func"),
    id(property): lambda made: (made.fget, made.fset, made.fdel),
}
# Python itself makes these when somebody asks for them, pickle among others.
_NOTED_BY_PYTHON = frozenset(("__annotations__", "__annotations_cache__", "__slotnames__"))


class Definition:
    """What a name meant when it was looked at last, and what it needs."""

    __slots__ = ("_plain", "_reference", "_value", "_watch", "contains", "needs", "origin", "stand_in")

    def __init__(self, name: str, value: object, named: Named) -> None:
        named.used.clear()
        recording = record(value, defining=frozenset((name,)), named=named, afresh=True)
        self.needs = tuple(_needs(name, value, recording))
        #: Other globals: there, too, they are to be the same objects.
        self.contains = frozenset(named.used - {name})
        if (first := named.get(id(value), name)) != name:
            self.contains |= {first}
        #: Where the script has it from.
        self.origin = origin(value)
        self._plain = _facts_of_plain(value)
        self._watch: _Watch | None = None
        if self._plain is None and not (is_constant(value) or is_per_process(value)):
            self._watch = _Watch(name, value)
        self.stand_in: StandIn | None = None
        self._refer_to(value)

    @classmethod
    def of_stand_in(cls, value: object, failure: UnsendableGlobalError) -> Definition:
        """Return that of a value that cannot be sent: receivers get what says so when it is used."""
        made = cls.__new__(cls)
        made.needs, made.contains, made.origin = (), frozenset(), None
        made._plain, made._watch = None, None
        made.stand_in = StandIn(failure)
        made._refer_to(value)
        return made

    def _refer_to(self, value: object) -> None:
        self._value: object = None
        try:
            self._reference: weakref.ref[Any] | None = weakref.ref(value)
        except TypeError:  # lists, dicts, numbers: small as a rule
            self._reference = None
            self._value = value

    def is_of(self, value: object) -> bool:
        """Tell whether this defines the very same object."""
        if self._reference is None:
            return self._value is value
        return value is not None and self._reference() is value

    def forget(self) -> None:
        """Let go of the object: workers' records keep definitions of names that are long rebound."""
        self._value, self._reference, self._watch, self._plain = _FORGOTTEN, None, None, None

    def holds(self, value: object) -> bool:
        """Tell whether the name still means the same."""
        if not self.is_of(value) or self.stand_in is not None:  # of which it may have become possible
            return False
        if self._plain is not None:  # as most are: it takes a quarter of the time
            one: Any = value
            code, defaults = self._plain
            same = one.__code__ is code and one.__defaults__ is defaults
            return same and not one.__dict__ and one.__kwdefaults__ is None
        try:
            return self._watch is None or self._watch.holds(value)
        except Exception:  # it holds something now that cannot be sent
            return False


GONE: Definition = object.__new__(Definition)
"""Of a name that means nothing any more; only of interest to who was told that it did."""
GONE.needs, GONE.contains, GONE.origin, GONE.stand_in = (), frozenset(), None, None
GONE._value, GONE._reference, GONE._watch, GONE._plain = ABSENT, None, None, None


def origin_of(name: str) -> Origin | None:
    """Return module and name that the script has a global from, if there is a definition of it."""
    definition = definitions.get(name)
    found = None if definition is None else definition.origin
    return None if found is None or found[0] in by_value_modules else found


def origins(values: dict[str, object]) -> dict[int, Origin]:
    """Return where the script has objects from, by id: what is in no container goes by that."""
    found = {id(value): origin_of(name) for name, value in values.items() if not is_container(value)}
    return {number: one for number, one in found.items() if one is not None}


def is_stale(known: object, definition: Definition) -> bool:
    """Tell whether a receiver that knows this of a name has to be told."""
    return known is not definition and (definition is not GONE or isinstance(known, Definition))


def _facts_of_plain(value: Any) -> tuple[Any, Any] | None:
    """Return code and defaults of a function that has nothing else that may change; None for all others."""
    if type(value) is not types.FunctionType or value.__closure__ or value.__kwdefaults__ or value.__dict__:
        return None
    defaults = value.__defaults__
    if defaults and not _are_constant(defaults):
        return None
    return value.__code__, defaults


class _Watch:
    """What may change of a value without its name being bound anew, as it was when it was sent."""

    __slots__ = ("_content", "_first", "_held", "_leaves", "_others")

    def __init__(self, name: str, value: object) -> None:
        self._others: list[tuple[Any, list[int]]] = []  # functions and classes within, and their parts
        self._held: list[Any] = []  # what must stay alive, as it is known by its id
        self._leaves: list[Any] = []  # data within
        self._first: list[int] | None = None
        seen: set[int] = set()
        ahead = [value]
        while ahead:
            one = ahead.pop()
            if id(one) in seen or (one is not value and not _travels_with(one, name)):
                continue
            seen.add(id(one))
            if (wrapped := _WRAPPED.get(id(type(one)))) is not None:
                found = wrapped(one)
                ahead += found if type(found) is tuple else (found,)
                continue
            inside = _inside(one)
            if inside is None:
                if one is not value:
                    self._leaves.append(one)
                continue
            parts = _parts(one)
            self._held.append(parts)
            if one is value:
                self._first = list(map(id, parts))
            else:
                self._others.append((one, list(map(id, parts))))
            ahead += inside
        if self._first is not None:
            self._leaves = [leaf for leaf in self._leaves if _can_be_sent(leaf)]
        self._content = self._look(value)

    def _look(self, value: object) -> tuple[Any, ...]:
        leaves = self._leaves if self._first is not None else (value,)
        return tuple([_content(leaf) for leaf in leaves])

    def holds(self, value: object) -> bool:
        """Tell whether all is as it was."""
        if self._first is not None:
            if list(map(id, _parts(value))) != self._first:
                return False
            for other, parts in self._others:
                if list(map(id, _parts(other))) != parts:
                    return False
            if not self._leaves:
                return True
        return self._look(value) == self._content


def _travels_with(one: Any, name: str) -> bool:
    """Tell whether something is part of a definition, and may change; all else has its own name."""
    if id(type(one)) in _CONSTANT_TYPES:
        return False
    if issubclass(type(one), (types.FunctionType, type)):
        if one.__module__ not in MAIN_NAMES:
            return False
        return one.__qualname__.partition(".")[0] == name or find_in_main(one.__qualname__) is not one
    return True


def _parts(one: Any) -> list[Any]:
    """Return what a function or class consists of."""
    if type(one) is types.FunctionType:
        found: list[Any] = [one.__code__, one.__defaults__]
        if one.__closure__ is not None:
            found += [content and content[0] for content in cells.cell_contents(one)]
        if one.__kwdefaults__:
            found += one.__kwdefaults__.values()
        if one.__dict__:
            found += one.__dict__
            found += one.__dict__.values()
        return found
    if issubclass(type(one), type):
        own = vars(one).copy()  # other threads may add to it
        found = [name for name in own if name not in _NOTED_BY_PYTHON]
        found += [own[name] for name in found]
        found += one.__bases__
        found += registered_with(one)
        found += told_of(one)
        if issubclass(type(one), abc.ABCMeta):
            found.append(sys.intern(repr(abc.get_cache_token())))  # changes with each registration
        return found
    own = vars(one).copy()
    return [*own, *own.values()]


def _inside(one: Any) -> list[Any] | None:
    """Return the parts of a function or class that may change in turn; None for data."""
    if type(one) is types.FunctionType:
        _, defaults, *rest = _parts(one)
        return [*(defaults or ()), *rest]
    if issubclass(type(one), type):
        return [value for name, value in class_attributes(one) if not _is_internal(name)]
    if issubclass(type(one), enum.Enum):
        return [
            value for name, value in list(vars(one).items()) if name == "_value_" or not _is_internal(name)
        ]
    return None


def _is_internal(name: str) -> bool:
    return name.startswith("_") and name.endswith("_") and len(name) > 2


def _can_be_sent(leaf: object) -> bool:
    """Tell whether something goes along: what cannot has been left out, as the cache of a single dispatch."""
    try:
        record(leaf, afresh=True)
    except Exception:
        return False
    return True


def _content(value: Any) -> Any:
    """Return what tells the content of data from any other."""
    if id(type(value)) in _SHORT_TYPES and len(value) <= _SHORT_MAX and _are_constant(value):
        held = tuple(value)  # so that no other object has one of the ids
        return list(map(id, held)), held
    if type(value) is np.ndarray and is_movable(value.dtype):
        return _content_of_array(value)
    recording = record(value, afresh=True)
    found: list[Any] = [_short(part) for part in recording.parts]
    for note in recording.notes:
        if isinstance(note, Placed):
            found.append((note.block.uid, note.block.offset, *note[1:]))
        elif isinstance(note, np.ndarray):
            found.append(_content_of_array(note))
        else:
            found.append(_short(note.raw()))
    return found


def _content_of_array(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    layout = array.dtype, array.shape, array.strides
    found = block_of(array)
    if found is not None and found[0].kind in (SHARED, SEALED):
        return layout
    return *layout, digest(array)


def _short(data: Any) -> Any:
    if len(data) <= _KEPT_MAX:
        return bytes(data)
    return len(data), digest(np.frombuffer(data, np.uint8))


def is_constant(value: object) -> bool:
    """Tell whether a value can never change."""
    return id(type(value)) in _CONSTANT_TYPES or issubclass(type(value), np.dtype)


def _are_constant(values: Iterable[object]) -> bool:
    return _CONSTANT_TYPES.issuperset(map(id, map(type, values)))


def is_code(value: object) -> bool:
    """Tell whether a value is no data: each worker is sent it once."""
    return (
        is_constant(value)
        or type(value) is types.FunctionType
        or issubclass(type(value), type)
        or _is_sentinel(value)
    )


def _is_sentinel(value: object) -> bool:
    """Tell whether something has no content, and is there to be told from others."""
    cls = type(value)
    if cls is object:
        return True
    with contextlib.suppress(AttributeError):
        if object.__getattribute__(value, "__dict__"):
            return False
    if cls.__module__ not in MAIN_NAMES:
        return is_plain(cls) and origin(value) is not None
    bases = cls.__mro__[:-1]
    return all(base.__flags__ & _HEAP_TYPE for base in bases) and not any(
        type(member) is types.MemberDescriptorType for base in bases for member in list(vars(base).values())
    )


#: Classes of what most globals are, none of them the script's; all of these are known by looking at once.
_USUAL = frozenset(
    (*CODE_TYPES, types.ModuleType, type(None), bool, int, float, str, bytes, list, tuple, dict, set)
)


def sentinels(namespace: dict[str, Any]) -> Named:
    """Return the names of what is there to be told from others, and has no name in pickles."""
    values = list(namespace.values())
    kinds: Iterable[type]
    try:
        kinds = set(map(type, values)) - _USUAL
    except Exception:  # one of them has no hash
        kinds = map(type, values)
    if not any(kind is object or kind.__module__ in MAIN_NAMES for kind in kinds):
        return Named()
    return Named(
        (id(value), name)
        for name, value in list(namespace.items())
        if (type(value) is object or type(value).__module__ in MAIN_NAMES) and _is_sentinel(value)
    )


def names_by_id(namespace: dict[str, Any]) -> Named:
    """Return the names of what may be part of other globals; the first, where it has several."""
    found = Named()
    for name, value in list(namespace.items()):
        if not (name.startswith("__") or is_constant(value) or issubclass(type(value), _OTHERWISE_NAMED)):
            found.setdefault(id(value), name)
    return found


# Definitions of this process's __main__; shared by all workers, so that each is found out once.
definitions: dict[str, Definition] = {}
_definitions_of: list[int] = []  # id of the namespace they are of
_stand_ins: dict[str, Definition] = {}  # of those that somebody has asked for
#: Of what may be over soon, or is handled otherwise: what only forked workers can have of `multiprocessing`.
_NOT_OF_THE_VALUE = (RuntimeError, MemoryError, OSError)
_unsendable: dict[str, weakref.ref[Any]] = {}  # names nobody has asked for, whose values cannot be sent
lock = threading.RLock()


def _new_lock() -> None:
    global lock
    lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)  # another thread may have held it


def current_namespace() -> dict[str, Any]:
    """Return the globals of ``__main__``; if they are others than last time, definitions are forgotten."""
    namespace = main_namespace()
    if _definitions_of != [id(namespace)]:
        definitions.clear()
        _unsendable.clear()
        _definitions_of[:] = [id(namespace)]
    return namespace


def forget_rebound(namespace: dict[str, Any]) -> None:
    """Let go of what names no longer mean."""
    for known in definitions, _stand_ins:
        for name, definition in list(known.items()):
            if not definition.is_of(value_of(name, namespace)):
                definition.forget()
                del known[name]


def closure(
    needs: Iterable[str],
    namespace: dict[str, Any],
    withheld: frozenset[str],
    data: dict[str, object] | None = None,
    left_out: set[str] | None = None,
    *,
    stand_in: bool = False,
) -> dict[str, Definition]:
    """Return the definitions of some names and of all that these need.

    Of names that a task may only perhaps look up at run time those that cannot be sent are `left_out`. For
    others that cannot be sent there is a `stand_in`, if so wanted.

    Functions and classes are not withheld: what is pickled by their name must find them. If there is a dict
    for `data`, what is not a function, a class or the like is put there and not defined; what may only
    perhaps be looked up is not gone into then.
    """
    found: dict[str, Definition] = {}
    users = dict.fromkeys(needs, "the task")
    if not users:
        return found
    open_names = list(users)
    named: Named | None = None
    aside: set[str] = set()  # what nobody may ask for
    left_out = set() if left_out is None else left_out
    while True:
        if not open_names:  # what is needed for certain comes first
            if data is not None:
                return found
            more = {name[1:] for name in users if name[0] == PERHAPS and name[1:] in namespace}
            if EVERYTHING in users:
                more |= _all_names(namespace)
            more -= users.keys()
            if not more:
                return found
            users.update(dict.fromkeys(more, "what may be looked up"))
            aside |= more
            left_out |= set(filter(functools.partial(_is_hopeless, namespace), more))
            open_names = list(more - left_out)
            continue
        name = open_names.pop()
        if name == EVERYTHING or name[0] == PERHAPS:
            continue
        value = value_of(name, namespace)
        if name in left_out or (name in withheld and not issubclass(type(value), CODE_TYPES)):
            continue
        if value is ABSENT:
            found[name] = GONE
            continue
        if data is not None and not is_code(value):
            data[name] = value
            continue
        definition = definitions.get(name)
        try:
            if definition is None or not definition.holds(value):
                if named is None:
                    named = names_by_id(namespace)
                definition = definitions[name] = Definition(name, value, named)
        except Exception as error:
            definitions.pop(name, None)
            if name in aside:
                left_out.add(name)
                with contextlib.suppress(TypeError):
                    _unsendable[name] = weakref.ref(value)
                continue
            failure = UnsendableGlobalError(
                name, type(value).__qualname__, users[name], f"{type(error).__name__}: {error}"
            )
            if not stand_in or isinstance(error, _NOT_OF_THE_VALUE):
                raise failure from error
            definition = _stands_in(name, value, failure)
        found[name] = definition
        for needed in definition.needs if data is not None else (*definition.needs, *definition.contains):
            if needed not in users:
                users[needed] = f"{name!r}"
                open_names.append(needed)
                if name in aside:
                    aside.add(needed)


def _stands_in(name: str, value: object, failure: UnsendableGlobalError) -> Definition:
    """Return the definition of what stands for a value: the same one for as long as nothing changes."""
    known = _stand_ins.get(name)
    if known is None or not known.is_of(value) or known.stand_in.failure.args != failure.args:  # type: ignore[union-attr]
        known = _stand_ins[name] = Definition.of_stand_in(value, failure)
    return known


def _is_hopeless(namespace: dict[str, Any], name: str) -> bool:
    """Tell whether a value could not be sent when it was last tried."""
    reference = _unsendable.get(name)
    return reference is not None and reference() is namespace[name] is not None


def _all_names(namespace: dict[str, Any]) -> set[str]:
    """Return the names of what is not large: who asks for everything has no use for most of it."""
    return {
        name
        for name, value in list(namespace.items())
        if not name.startswith("__")
        and type(value) is not LAZY
        and (is_code(value) or _size_of(value) <= _ASIDE_MAX)
    }


def _size_of(value: object) -> int:
    try:
        return max(sys.getsizeof(value), getattr(value, "nbytes", 0))
    except Exception:
        return _ASIDE_MAX + 1


def value_of(name: str, namespace: dict[str, Any]) -> object:
    """Return what a name means; `ABSENT` if it means nothing."""
    if "." in name:  # the full name of a submodule, see functions.needs_of
        return sys.modules.get(name, ABSENT)
    return look_up(namespace, name, ABSENT)


def _needs(name: str, value: object, recording: Recording) -> Iterator[str]:
    """Yield what a value needs: what its pickle noted, and names that no callback sees."""
    yield from recording.needs - {name}
    stream = recording.parts[0]
    if len(stream) <= _SCANNED_MAX and b"__main__" in stream:
        hidden = names_in_pickle(stream)
        if name in hidden and not issubclass(type(value), type):
            raise TypeError(f"{type(value).__qualname__} objects pickle as nothing but their name")
        yield from hidden - {name} - recording.needs
