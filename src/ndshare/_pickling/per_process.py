"""Globals that every process has for itself: locks between threads, `threading.local`, context variables.

A worker that imports a script makes them anew, whatever state the caller's are in, and so does one that is
sent the script's globals. In arguments and results they stay what they are for pickle: an error.

Guarantees
----------
* A lock arrives free, whoever holds it here, and nobody waits for what is made of it.
* What the user's modules have as well is theirs in the receiver, too.
* Of a context variable there is one in each process, however many globals refer to it. It has its default.

Not guaranteed
--------------
* Values of a `threading.local` that are not plain constants, and values of context variables, are not sent.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from ndshare._pickling.reducers import reduce_entry
from ndshare._pickling.uses import is_of_user, place_of

_LOCK = type(threading.Lock())
_RLOCK = type(threading.RLock())
_LOCAL: type = threading.local
# By id: a class of the script may have no hash, or an equality of its own.
_UNCHANGED = frozenset(map(id, (_LOCK, _RLOCK, threading.Condition, contextvars.ContextVar)))
_PLAIN = (type(None), bool, int, float, complex, str, bytes)

_names: dict[int, tuple[contextvars.ContextVar[Any], str]] = {}  # of those that were sent; they live for ever
_variables: dict[str, contextvars.ContextVar[Any]] = {}  # that arrived


def is_per_process(value: object) -> bool:
    """Tell whether nothing that can change of a value is sent."""
    kind = type(value)
    return id(kind) in _UNCHANGED or issubclass(kind, _LOCAL)


def reducer(cls: type) -> Callable[[Any], Any] | None:
    """Return how instances of a class are made anew in another process; None for all that are not."""
    if cls is _LOCK:
        return _reduce_lock
    if cls is _RLOCK:
        return _reduce_rlock
    if cls is threading.Condition:
        return _reduce_condition
    if cls is contextvars.ContextVar:
        return _reduce_variable
    if issubclass(cls, _LOCAL):
        return _reduce_local
    if _is_of(cls, "threading.Thread", "subprocess.Popen", "concurrent.futures._base.Future"):
        return _refuse_running
    if _is_of(cls, "queue.Queue", "_queue.SimpleQueue"):
        return _refuse_queue
    return reduce_entry if _is_of(cls, "_ctypes.CFuncPtr", "_ctypes.PyCFuncPtr") else None


def _is_of(cls: type, *names: str) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in cls.__mro__)


def _elsewhere(value: object, which: Callable[[types.ModuleType], bool] = is_of_user) -> Any:
    """Return how a value is found in a module that the script has it from; None if it is the script's own."""
    modules = (
        name for name, one in list(sys.modules.items()) if type(one) is types.ModuleType and which(one)
    )
    place = place_of(value, modules)
    return None if place is None else (getattr, (sys.modules[place[0]], place[1]))


def _reduce_lock(lock: Any) -> Any:
    return _elsewhere(lock) or (threading.Lock, ())


def _reduce_rlock(lock: Any) -> Any:
    return _elsewhere(lock) or (threading.RLock, ())


def _reduce_condition(condition: Any) -> Any:
    return _elsewhere(condition) or (threading.Condition, (condition._lock,))


def _reduce_local(local: Any) -> Any:
    state = {name: value for name, value in vars(local).items() if type(value) in _PLAIN}
    return _elsewhere(local) or (type(local), (), state or None)


def _reduce_variable(variable: contextvars.ContextVar[Any]) -> Any:
    if (found := _elsewhere(variable, lambda _: True)) is not None:
        return found
    _, name = _names.setdefault(id(variable), (variable, os.urandom(16).hex()))
    try:
        default: tuple[Any, ...] = (contextvars.Context().run(variable.get),)
    except LookupError:
        default = ()
    return make_variable, (name, variable.name, *default)


def make_variable(key: str, name: str, *default: Any) -> contextvars.ContextVar[Any]:
    """Return the context variable of a key; if it is not there yet it is made, with its default."""
    variable = _variables.get(key)
    if variable is None:
        made = contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
        variable = _variables.setdefault(key, made)
    return variable


def _refuse_running(one: object) -> Any:
    raise TypeError(f"cannot pickle {type(one).__qualname__!r} object: it is part of what runs here")


def _refuse_queue(queue: object) -> Any:
    raise TypeError(
        f"cannot pickle {type(queue).__qualname__!r} object: it works between threads of one process; "
        "ndshare.Queue() works between processes"
    )
