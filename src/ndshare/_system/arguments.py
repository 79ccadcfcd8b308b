"""What users pass is refused at the call that made it, with what was got and what is allowed.

And what they are warned of is said at the line that called ndshare.
"""

from __future__ import annotations

import functools
import os
import sys
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

#: Bytes of variables that a worker may have of its own: they reach it in one message.
_ENV_MOST = 32_000


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_seconds(name: str, value: object) -> None:
    """Refuse what is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")


def check_callable(name: str, value: object, advice: str = "") -> None:
    """Refuse what cannot be called; `advice` says what is likely meant."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}{advice}")


def check_runs(name: str, value: object, advice: str = "") -> None:
    """Refuse what cannot be called, and what does nothing when it is called and its result is dropped."""
    check_callable(name, value, advice)
    function = within_partials(value)
    code = code_of(function) or code_of(type(function).__call__)
    flags = 0 if code is None else code.co_flags
    for flag, kind, remedy in _IDLE:
        if flags & flag:
            raise TypeError(
                f"{name} is {value!r}, {kind}: calling it makes an object that somebody would have to run, "
                f"and nobody does; give a function that does the work itself, without {remedy}"
            )


def callable_name(value: object) -> str:
    """Return the qualified name of what is called; that of its class, where it has none that is a text."""
    function = within_partials(value)
    try:
        name = function.__qualname__
    except Exception:  # it may answer attributes as it likes
        name = None
    return name if type(name) is str else type(function).__qualname__


def code_of(function: Any) -> types.CodeType | None:
    """Return the code of a function or method; None of all else that can be called."""
    if type(function) is types.FunctionType:
        return function.__code__
    try:
        code = getattr(function, "__func__", function).__code__
    except Exception:  # it may answer attributes as it likes
        return None
    return code if type(code) is types.CodeType else None


def within_partials(function: Any) -> Any:
    """Return what a `functools.partial` calls, and those within it; anything else as it is."""
    while issubclass(type(function), functools.partial):
        function = function.func
    return function


#: Flags of code: `inspect` calls them CO_ASYNC_GENERATOR, CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_GENERATOR.
_IDLE = (
    (0x200, "an async generator function", "async and yield"),
    (0x80 | 0x100, "a coroutine function", "async"),
    (0x20, "a generator function", "yield"),
)


def tuple_of(name: str, value: object) -> tuple[Any, ...]:
    """Return an iterable of arguments as a tuple."""
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a tuple, got {value!r}; one argument is written ({value!r},)")
    return tuple(value)


def module_names(value: object) -> tuple[str, ...]:
    """Return the names of modules to preload as a tuple."""
    if isinstance(value, str):
        raise TypeError(
            f"preload must be an iterable of module names, got the string {value!r}; write [{value!r}]"
        )
    if not isinstance(value, Iterable):
        raise TypeError(f"preload must be an iterable of module names, got {value!r}")
    names = tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"preload must hold names of modules as strings, got {name!r}")
    return names


def check_environment(value: object) -> None:
    """Refuse what cannot become environment variables of workers, as far as that can be told now."""
    if value is None or callable(value):
        return
    if isinstance(value, Mapping):
        variables(value)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not value:
            raise ValueError(
                "env must have at least one mapping, got an empty sequence; None changes nothing"
            )
        for one in value:
            variables(one)
    else:
        raise TypeError(
            "env must be a mapping, a sequence of mappings or a function of the worker's number, "
            f"got {value!r}"
        )


def variables(value: object) -> dict[str, str]:
    """Return a worker's environment variables as a dict; numbers become strings, all else is refused."""
    if not isinstance(value, Mapping):
        raise TypeError(f"env must give a mapping of variables for each worker, got {value!r}")
    found: dict[str, str] = {}
    for name, content in value.items():
        if not isinstance(name, str):
            raise TypeError(f"names of variables in env must be strings, got {name!r}")
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"env has a variable named {name!r}: names are not empty and hold no '=' or NUL")
        if isinstance(content, bool) or not isinstance(content, str | int | float | np.number):
            raise TypeError(f"env variable {name!r} must be a string or a number, got {content!r}")
        text = str(content)
        if "\0" in text:
            raise ValueError(f"env variable {name!r} holds a NUL character, which no variable can: {text!r}")
        found[name] = text
    size = sum(len(os.fsencode(text)) for pair in found.items() for text in pair)
    if size > _ENV_MOST:
        raise ValueError(
            f"env holds {size} bytes; {_ENV_MOST} are allowed, as a new process gets them at once: "
            "give the name of a file, set them in os.environ, which workers have too, or use an initializer"
        )
    return found


_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + "/"


def warn_caller(warning: Warning) -> None:
    """Warn at the first frame outside of this package.

    Parameters
    ----------
    warning : Warning
        An instance.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)
