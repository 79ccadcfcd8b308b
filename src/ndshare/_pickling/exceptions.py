"""Exceptions arrive as they are: their constructors, which may take and do what they like, do not run again.

Pickle makes an exception again by ``type(error)(*error.args)``. Where a constructor takes other arguments
than it gives to its base, that fails, or makes another message without a word.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

from ndshare._pickling.classes import native_base

_KEPT_BY_C = ("errno", "strerror", "filename", "filename2", "code", "value")
_PLAIN_REDUCES = (BaseException.__reduce__, OSError.__reduce__)


def reduce_exception(error: BaseException) -> Any:
    """Take an exception apart that pickle would call the constructor of; else answer NotImplemented."""
    cls = type(error)
    if (
        not isinstance(cls.__init__, types.FunctionType)
        or cls.__reduce__ not in _PLAIN_REDUCES
        or cls.__reduce_ex__ is not object.__reduce_ex__
        or cls.__setstate__ is not BaseException.__setstate__
        or cls.__new__ is not native_base(cls).__new__
        or any(vars(base).get("__slots__") for base in cls.__mro__)
    ):
        return NotImplemented
    members = vars(native_base(cls))
    kept = {
        name: getattr(error, name) for name in _KEPT_BY_C if name in members
    }  # it may have set them later
    return make_exception, (cls, error.args, kept, vars(error) or None)


def make_exception(
    cls: Any, args: tuple[Any, ...], kept: dict[str, Any], state: dict[str, Any] | None
) -> BaseException:
    """Return the exception of `reduce_exception`."""
    native: Any = native_base(cls)
    error: BaseException = native.__new__(cls, *args)
    with contextlib.suppress(Exception):  # what C keeps of the arguments, such as the position of an error
        native.__init__(error, *args)
    error.args = args
    for name, value in kept.items():
        setattr(error, name, value)
    if state:
        error.__dict__.update(state)
    return error
