"""Exceptions arrive as they are: their constructors, which may take and do what they like, do not run again.

Pickle makes an exception again by ``type(error)(*error.args)``. Where a constructor takes other arguments
than it gives to its base, that fails, or makes another message without a word; slots are lost.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

from ndshare._pickling.classes import native_base, slots_of

_KEPT_BY_C = ("errno", "strerror", "filename", "filename2", "code", "value")
_PLAIN_REDUCES = (BaseException.__reduce__, OSError.__reduce__)
_ARGS: Any = BaseException.__dict__["args"]  # set past what a class says: it may refuse to be changed
_UNSET = NotImplemented  # in place of the value of a slot: it is one and the same in every process


def reduce_exception(error: BaseException) -> Any:
    """Take an exception apart that pickle would call the constructor of; else answer NotImplemented."""
    cls = type(error)
    if (
        (not isinstance(cls.__init__, types.FunctionType) and next(slots_of(cls), None) is None)
        or cls.__reduce__ not in _PLAIN_REDUCES
        or cls.__reduce_ex__ is not object.__reduce_ex__
        or cls.__setstate__ is not BaseException.__setstate__
        or cls.__new__ is not native_base(cls).__new__
    ):
        return NotImplemented
    members = vars(native_base(cls))
    kept = {
        name: getattr(error, name) for name in _KEPT_BY_C if name in members
    }  # it may have set them later
    slots = [_content(member, error) for _, member in slots_of(cls)]
    return make_exception, (cls, error.args, kept, vars(error) or None, *slots)


def _content(member: types.MemberDescriptorType, error: BaseException) -> Any:
    try:
        return member.__get__(error)
    except AttributeError:  # not set
        return _UNSET


def make_exception(
    cls: Any, args: tuple[Any, ...], kept: dict[str, Any], state: dict[str, Any] | None, *slots: Any
) -> BaseException:
    """Return the exception of `reduce_exception`."""
    native: Any = native_base(cls)
    error: BaseException = native.__new__(cls, *args)
    with contextlib.suppress(Exception):  # what C keeps of the arguments, such as the position of an error
        native.__init__(error, *args)
    members = vars(native)
    _ARGS.__set__(error, args)
    for name, value in kept.items():
        if members[name].__get__(error) is not value:  # C tells None from what was not given
            members[name].__set__(error, value)
    if state:
        object.__getattribute__(error, "__dict__").update(state)
    for (_, member), value in zip(slots_of(cls), slots, strict=True):
        if value is not _UNSET:
            member.__set__(error, value)
    return error
