"""Classes of the caller's program, as they are: copied, not made again.

A class is the result of a statement that may have run anything: decorators, ``__set_name__``,
``__init_subclass__`` with keywords, a metaclass that keeps a register. None of it runs a second time. The
receiver makes an empty class with the same metaclass, bases and slots by ``type.__new__``, then sets what is
in the caller's ``__dict__`` now, attribute by attribute, past all hooks.

::

    cls ──► make: metaclass, name, bases, slots, an id     the class is in the pickle's memo from here on
        └─► fill: its attributes, functions first          they may refer to it, as its methods do, and
                                                           be instances of it

Guarantees
----------
* Attributes that were changed after the statement arrive as they are.
* Under one id a receiver has one class. Sent again, it is filled again: its instances stay its instances.
* A class that came from the caller goes back to it as its id alone: what a worker did to its copy stays
  there.
* Members of an enumeration are made past its ``__new__`` and ``__init__``, once each.
* With which abstract classes it is registered arrives, those of imported modules included; so does what
  functions of `functools.singledispatch` there do with it.
* A base with a method ``_ndshare_arrived_`` has it called for each class that arrives, once that is whole.

Not guaranteed
--------------
* Metaclasses written in C, but for those of ctypes, are cloudpickle's business.
"""

from __future__ import annotations

import abc
import contextlib
import copyreg
import dataclasses
import enum
import functools
import inspect
import operator
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from ndshare._pickling import cells
from ndshare._pickling.registrations import dispatching, registered_classes, registered_with
from ndshare.errors import TransportError

_HEAP_TYPE = 1 << 9
_IMMUTABLE_TYPE = 1 << 8

# Made with the class, or kept elsewhere.
_LEFT_OUT = frozenset(
    ("__dict__", "__weakref__", "__module__", "__qualname__", "__slotnames__", "_abc_impl", "__classcell__")
)
_MADE_WITH = ("__orig_bases__", "__parameters__")  # what `typing.Generic` looks at while a class is made
_CTYPES_MADE_WITH = (
    "_type_",
    "_length_",
    "_argtypes_",
    "_restype_",
    "_flags_",
    "_pack_",
    "_align_",
    "_layout_",
)
_CTYPES_FIRST = ("_anonymous_", "_fields_")
_OTHER_ORDER = "__ctype_be__" if sys.byteorder == "little" else "__ctype_le__"
_OF_C = (types.GetSetDescriptorType, types.MemberDescriptorType)

Facts = tuple[Any, ...]


class _Ids:
    """Classes by id, and ids by class; keeps none of them alive, and asks no metaclass for a hash."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_id: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
        self._ids: dict[int, tuple[str, weakref.ref[type]]] = {}
        self._from_caller: set[str] = set()

    def id_of(self, cls: type) -> str:
        """Return the id of a class; it has one from now on."""
        known = self._ids.get(id(cls))
        if known is None:
            with self._lock:
                known = self._ids.get(id(cls)) or self._put(os.urandom(16).hex(), cls)
        return known[0]

    def _put(self, key: str, cls: type) -> tuple[str, weakref.ref[type]]:
        number = id(cls)

        def forget(_: object) -> None:
            self._ids.pop(number, None)
            self._from_caller.discard(key)

        self._by_id[key] = cls
        known = self._ids[number] = key, weakref.ref(cls, forget)
        return known

    def find(self, key: str) -> type | None:
        """Return the class of an id, if there is one."""
        return self._by_id.get(key)

    def adopt(self, key: str, make: Callable[[], type], *, from_caller: bool) -> type:
        """Return the class of an id, made if there is none."""
        with self._lock:
            cls = self._by_id.get(key)
            if cls is None:
                cls = make()
                self._put(key, cls)
                if from_caller:
                    self._from_caller.add(key)
            return cls

    def is_from_caller(self, cls: type) -> bool:
        """Tell whether this process was sent a class by its caller, not by its own workers."""
        known = self._ids.get(id(cls))
        return known is not None and known[0] in self._from_caller


_ids = _Ids()


def native_base(cls: type) -> type:
    """Return the nearest base that is written in C."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE or _is_of_ctypes(base))


def slots_of(cls: type) -> Iterator[tuple[str, types.MemberDescriptorType]]:
    """Yield name and descriptor of the slots of a class and its bases."""
    for base in cls.__mro__:
        if "__slots__" in vars(base):
            for name, member in list(vars(base).items()):
                if isinstance(member, types.MemberDescriptorType):
                    yield name, member


def _is_of_ctypes(cls: type) -> bool:
    return cls.__module__ == "_ctypes"


def can_copy(cls: type) -> bool:
    """Tell whether a class can be copied: how its metaclass makes an empty one is known."""
    native = native_base(type(cls))
    return native is type or _is_of_ctypes(native)


def reduce_class(cls: type, *, reply: bool) -> Any:
    """Return how to make a class; `reply` on the way from a worker to its caller."""
    if reply and _ids.is_from_caller(cls):
        return find_class, (_ids.id_of(cls), cls.__qualname__)
    if _is_of_ctypes(native_base(type(cls))) and (made := _reduce_derived(cls)) is not None:
        return made
    attributes = vars(cls)
    made_with: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    made_with.update((name, attributes[name]) for name in _MADE_WITH if name in attributes)
    if "__slots__" in attributes:
        made_with["__slots__"] = tuple(
            name
            for name, value in list(attributes.items())
            if name in ("__dict__", "__weakref__") or _is_slot(value, cls)
        )
    if _is_of_ctypes(native_base(type(cls))):
        made_with.update((name, attributes[name]) for name in _CTYPES_MADE_WITH if name in attributes)
    of_base = next((number for number, base in enumerate(cls.__bases__) if type(base) is type(cls)), None)
    meta = type(cls) if of_base is None else of_base  # those of ctypes have no name they are found by
    facts = meta, cls.__name__, cls.__bases__, made_with, _ids.id_of(cls), reply
    return make_class, facts, _content(cls, made_with), None, None, fill_class


def _content(cls: type, made_with: dict[str, Any]) -> tuple[Any, ...]:
    """Return the attributes of a class, and what is registered with it as an abstract one."""
    attributes = vars(cls).copy()
    if attributes.get("__annotate_func__") is not None:
        attributes.pop("__annotations_cache__", None)  # it is made again where somebody asks for it
    for name in attributes.keys() & (_LEFT_OUT | (made_with.keys() - {"__slots__"})):
        del attributes[name]
    for name in [name for name, value in attributes.items() if _is_made_anew(value, cls)]:
        del attributes[name]
    if _is_of_ctypes(native_base(type(cls))):
        attributes = {name: attributes.pop(name) for name in _CTYPES_FIRST if name in attributes} | attributes
    code, special = Part(cls), Part(cls)
    data: dict[str, Any] = {}
    for name, value in attributes.items():
        part = code if _is_code(value) else special if _is_special(name, value) else None
        (data if part is None else part.attributes)[name] = value
    return (
        code,
        special,
        data,
        registered_classes(cls) if isinstance(cls, abc.ABCMeta) else [],
        registered_with(cls),
        dispatching(cls),
    )


class Part:
    """Attributes that a class has before the rest arrives: instances of it, which it may keep, need them."""

    __slots__ = ("attributes", "cls")

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.attributes: dict[str, Any] = {}

    def __reduce__(self) -> Any:
        return set_attributes, (self.cls, self.attributes)


def _is_code(value: Any) -> bool:
    """Tell whether an attribute is made of nothing but functions."""
    kind = type(value)
    if kind is property:
        return all(
            one is None or type(one) is types.FunctionType for one in (value.fget, value.fset, value.fdel)
        )
    if kind is classmethod or kind is staticmethod:
        value = value.__func__
    return type(value) is types.FunctionType


def _is_special(name: str, value: Any) -> bool:
    """Tell whether Python itself looks for an attribute: by its name, or because it is a descriptor."""
    if name in _CTYPES_FIRST or (name.startswith("__") and name.endswith("__")):
        return True
    kind = type(value)
    if kind is types.MethodType or kind is types.BuiltinMethodType or kind is functools.partial:
        return False  # they may be bound to an instance
    return any("__get__" in vars(base) for base in kind.__mro__)


def has_own_new(cls: type) -> bool:
    """Tell whether a class, or one it is derived from, makes its instances by a function; no metaclass."""
    return not issubclass(cls, type) and any(
        type(getattr(vars(base).get("__new__"), "__func__", None)) is types.FunctionType
        for base in cls.__mro__
    )


def reduce_instance(obj: Any) -> Any:
    """Pickle an instance on its way with its class: ``__new__`` may look for what the class lacks as yet."""
    reduced = obj.__reduce_ex__(5)
    if type(reduced) is tuple and reduced[0] is copyreg.__newobj__ and len(reduced[1]) == 1:  # type: ignore[attr-defined]
        return (make_instance, *reduced[1:])
    return reduced


def make_instance(cls: Any) -> Any:
    """Return an empty instance of a class, past what that has to say."""
    native: Any = native_base(cls)
    return native.__new__(cls)


def _is_slot(value: object, cls: type) -> bool:
    return type(value) is types.MemberDescriptorType and value.__objclass__ is cls


def _is_made_anew(value: Any, cls: type) -> bool:
    """Tell whether an attribute is C's own: the slots of a class, the fields of a structure."""
    if type(value) in _OF_C:
        return value.__objclass__ is cls
    return type(value).__name__ == "CField" and type(value).__module__ in ("_ctypes", "ctypes")


def make_class(
    meta: type | int, name: str, bases: tuple[type, ...], made_with: dict[str, Any], key: str, reply: bool
) -> type:
    """Return the class of `reduce_class`, still without its attributes."""
    if isinstance(meta, int):
        meta = type(bases[meta])
    cls = _ids.adopt(key, functools.partial(_make, meta, name, bases, made_with), from_caller=not reply)
    if cls.__bases__ != bases and not reply:
        type.__dict__["__bases__"].__set__(cls, bases)  # of a class that was here
    return cls


def _make(meta: Any, name: str, bases: tuple[type, ...], made_with: dict[str, Any]) -> type:
    native: Any = native_base(meta)
    with _Quiet(bases):
        cls: type = native.__new__(meta, name, bases, made_with)
        if native is not type:
            native.__init__(cls, name, bases, made_with)
    if issubclass(meta, abc.ABCMeta):
        abc._abc_init(cls)  # type: ignore[attr-defined]
    return cls


class _Quiet:
    """Keeps bases from hearing of a new subclass: they have heard of it where it was first made."""

    _lock = threading.RLock()

    def __init__(self, bases: tuple[type, ...]) -> None:
        self._hooks: list[tuple[type, Any]] = []
        for base in {id(base): base for derived in bases for base in derived.__mro__}.values():
            hook = vars(base).get("__init_subclass__")
            if hook is not None and not base.__flags__ & _IMMUTABLE_TYPE:
                self._hooks.append((base, hook))

    def __enter__(self) -> None:
        if self._hooks:
            self._lock.acquire()
            for base, _ in self._hooks:
                type.__setattr__(base, "__init_subclass__", classmethod(_ignore))

    def __exit__(self, *_: object) -> None:
        if self._hooks:
            for base, hook in self._hooks:
                type.__setattr__(base, "__init_subclass__", hook)
            self._lock.release()


def _ignore(_cls: type, /, **_keywords: object) -> None:
    pass


def set_attributes(cls: type, attributes: dict[str, Any]) -> dict[str, Any]:
    """Give a class attributes that it does not have, past all hooks; returns them."""
    own = vars(cls)
    set_attribute: Any = setattr if _is_of_ctypes(native_base(type(cls))) else type.__setattr__
    for name, value in attributes.items():
        if (name not in own or own[name] is not value) and not (name in _CTYPES_FIRST and name in own):
            set_attribute(cls, name, value)
    return attributes


def fill_class(cls: type, content: tuple[Any, ...]) -> None:
    """Give a class the attributes of `reduce_class`; those it no longer has go."""
    code, special, data, registered, abstract, dispatching = content
    attributes = {**code, **special, **data}
    own = vars(cls)
    for name in own.keys() - attributes.keys() - _LEFT_OUT - {*_MADE_WITH, *_CTYPES_MADE_WITH, "__slots__"}:
        if not _is_made_anew(own[name], cls) and name not in ("__annotations_cache__", "__doc__"):
            type.__delattr__(cls, name)
    set_attributes(cls, data)
    for sub in registered:
        abc.ABCMeta.register(cls, sub)  # type: ignore[arg-type]
    for one in abstract:
        abc.ABCMeta.register(one, cls)
    for function, implementation in dispatching:
        function.register(cls, implementation)
    _fill_cells(cls, attributes)
    if any("_ndshare_arrived_" in vars(base) for base in cls.__mro__):
        cls._ndshare_arrived_()  # type: ignore[attr-defined]


def _fill_cells(cls: type, attributes: dict[str, Any]) -> None:
    """Let annotations find the names of their class."""
    for value in attributes.values():
        function = value.fget if type(value) is property else value
        if issubclass(type(value), (classmethod, staticmethod)):
            function = value.__func__
        if type(function) is not types.FunctionType:
            continue
        for one in (function, getattr(function, "__annotate__", None)):
            if type(one) is types.FunctionType and cells.OF_CLASS in one.__code__.co_freevars:
                number = one.__code__.co_freevars.index(cells.OF_CLASS)
                (one.__closure__ or ())[number].cell_contents = vars(cls)


def find_class(key: str, name: str) -> type:
    """Return the class that this process once sent under an id."""
    cls = _ids.find(key)
    if cls is None:
        raise TransportError(
            f"an instance of class {name} came back",
            "but the class itself no longer exists here",
            "keep a reference to the class while its tasks run",
        )
    return cls


# ---------------------------------------------------------------------- enumerations


def reduce_member(member: Any) -> Any:
    """Return how to make a member of an enumeration that is itself on its way."""
    cls = type(member)
    arguments = object.__reduce_ex__(member, 2)[1][1:]
    name = member._name_
    if cls._member_map_.get(name) is not member:
        name = None  # a combination of flags without a name
    return make_member, (cls, name, arguments), dict(vars(member))


def make_member(cls: Any, name: str | None, arguments: tuple[Any, ...]) -> Any:
    """Return a member of an enumeration, by name if it is there already."""
    known = vars(cls).get("_member_map_", {}).get(name)
    if known is not None:
        return known
    member = native_base(cls).__new__(cls, *arguments)
    member._name_ = name
    return member


# ---------------------------------------------------------------------- ctypes, and what classes are full of


def _reduce_derived(cls: Any) -> Any:
    """Return how ctypes derives a class from another one; None for those of the program."""
    import ctypes

    if issubclass(cls, ctypes._Pointer) and "_type_" in vars(cls) and ctypes.POINTER(cls._type_) is cls:
        return ctypes.POINTER, (cls._type_,)
    if cls.__bases__ == (ctypes.Array,) and cls._type_ * cls._length_ is cls:
        return operator.mul, (cls._type_, cls._length_)
    named = getattr(ctypes, cls.__qualname__, None)
    if named is not cls and getattr(named, _OTHER_ORDER, None) is cls:
        return getattr, (named, _OTHER_ORDER)
    return None


def _sentinel(module: str, name: str) -> Any:
    return getattr(sys.modules[module], name)


def _reduce_sentinel(obj: object) -> Any:
    name = next(name for name, value in vars(dataclasses).items() if value is obj)
    return _sentinel, ("dataclasses", name)


def _reduce_wrapping(wrapper: Any) -> Any:
    return type(wrapper), (wrapper.__func__,)


def _reduce_property(made: property) -> Any:
    return property, (made.fget, made.fset, made.fdel, made.__doc__)


def _reduce_cached_property(made: Any) -> Any:
    state = {name: value for name, value in vars(made).items() if name != "lock"}
    return functools.cached_property, (made.func,), state


def _reduce_method(method: types.MethodType) -> Any:
    """By name, as pickle does, but only if that leads back to it: the name of ``super().run`` does not."""
    function, owner = method.__func__, method.__self__
    name = getattr(function, "__name__", None)
    try:
        found = getattr(owner, name)  # type: ignore[arg-type]
    except Exception:
        found = None
    if type(found) is types.MethodType and found.__func__ is function and found.__self__ is owner:
        return getattr, (owner, name)
    return types.MethodType, (function, owner)


def _reduce_partialmethod(made: functools.partialmethod[Any]) -> Any:
    return _make_partialmethod, (made.func, made.args, made.keywords)


def _make_partialmethod(func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return functools.partialmethod(func, *args, **keywords)


def _reduce_dispatching(made: Any) -> Any:
    state = {name: value for name, value in vars(made).items() if name != "_method_cache"}
    return functools.singledispatchmethod, (made.func,), state


def _reduce_weak(container: Any) -> Any:
    # Its items go along, and live there as long as something else has them.
    return type(container), (), None, None, iter(list(container.items()))


def _reduce_context(manager: Any) -> Any:
    if inspect.getgeneratorstate(manager.gen) != inspect.GEN_CREATED:
        raise TypeError(f"cannot pickle the context of {manager.gen.__qualname__}(), which has been entered")
    return type(manager), (manager.func, manager.args, manager.kwds)


REDUCERS: dict[type, Callable[[Any], Any]] = {
    types.MethodType: _reduce_method,
    classmethod: _reduce_wrapping,
    staticmethod: _reduce_wrapping,
    property: _reduce_property,
    functools.cached_property: _reduce_cached_property,
    functools.partialmethod: _reduce_partialmethod,
    functools.singledispatchmethod: _reduce_dispatching,
    weakref.WeakKeyDictionary: _reduce_weak,
    weakref.WeakValueDictionary: _reduce_weak,
    contextlib._GeneratorContextManager: _reduce_context,
    types.MappingProxyType: lambda proxy: (types.MappingProxyType, (dict(proxy),)),
    **dict.fromkeys(
        {
            type(value)
            for value in vars(dataclasses).values()
            if type(value).__module__ == "dataclasses" and type(value).__name__.startswith("_")
        },
        _reduce_sentinel,
    ),
}
"""Descriptors and the marks of `dataclasses`, which pickle does not know or makes others of."""


def is_enumeration(cls: type) -> bool:
    """Tell whether a class is an enumeration with members."""
    return isinstance(cls, enum.EnumType) and "_member_map_" in vars(cls)


def class_attributes(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a class that its program has given it, or may change."""
    for name, value in list(vars(cls).items()):  # other threads may add to it
        if name not in _LEFT_OUT and not _is_made_anew(value, cls):
            yield name, value
