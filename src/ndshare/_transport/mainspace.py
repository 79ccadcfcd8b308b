"""One ``__main__`` for the caller and its workers.

Workers never import the user's program, so what its functions need of it is brought to them::

    caller                                             worker
    task uses f ──► needs = {"f"}
    deliver(needs, known) ─► {"f": f, "model": …} ──►  apply(): bound in *the* __main__
    task: "__main__.f" by name                   ──►   found there

All functions of the program share that one namespace, as under the standard library with fork: an
initializer's ``global model`` is there for every later task, a cache in a global stays, a constant
is sent once.

A name is sent when the worker lacks it or when the caller's value changed since: bound to another
object, or, for mutable values whose pickle takes at most 16 KiB, pickled to other bytes. Larger ones
are compared by identity: to change a large array in place and have workers see it, share it
(`ndshare.share`). What the worker assigned itself stays until then.

Guarantees
----------
* Everything a delivered name needs in turn is delivered with it, in one pickle: identities among
  the names of one delivery are kept.
* Names that ``__main__`` does not have are skipped: an initializer may yet make them.

Not guaranteed
--------------
* Attributes of classes and functions that change after they were sent are not sent again.
* Names reached only at run time (``globals()["x"]``, ``exec``) are not found.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ndshare._pickling import (
    CODE_TYPES,
    MAIN_NAMES,
    Placed,
    Recording,
    expect_gifts,
    main_namespace,
    names_in_pickle,
    record,
)
from ndshare._transport.transport import Draft
from ndshare.errors import UnsendableGlobalError

_COMPARED_MAX = 16 * 1024  # bytes of pickle up to which a mutable value is compared by content
_SCANNED_MAX = 64 * 1024  # bytes of pickle that are searched for names no callback sees

_ABSENT = object()
_FORGOTTEN = object()
_CONSTANT_TYPES = frozenset(
    (
        type(None), bool, int, float, complex, str, bytes, range,
        types.FunctionType, types.BuiltinFunctionType, types.ModuleType, np.ufunc,
        type(functools.lru_cache(len)),
    )
)  # fmt: skip

_replaced: list[types.ModuleType] = []  # a module that nobody refers to would lose its globals


def install() -> types.ModuleType:
    """Give this process a fresh, empty ``__main__``. Called in every worker, for every executor anew."""
    expect_gifts()
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    old = sys.modules.get("__main__")
    if old is not None and not _replaced:
        _replaced.append(old)
    for name in MAIN_NAMES:
        sys.modules[name] = main
    return main


def apply(update: dict[str, object]) -> None:
    """Bind what `deliver` has sent in this process's ``__main__``."""
    # A dotted key is a submodule: its import, while the message was unpickled, was the purpose.
    main_namespace().update({name: value for name, value in update.items() if "." not in name})


@contextlib.contextmanager
def lent(data: dict[str, Any], module: str = "__main__") -> Iterator[None]:
    """Bind data in a module of this process for a while; what was there comes back afterwards.

    It may take memory that belongs to somebody else: nothing of it stays.
    """
    namespace = main_namespace() if module == "__main__" else vars(importlib.import_module(module))
    before = {name: namespace[name] for name in data if name in namespace}
    namespace.update(data)
    try:
        yield
    finally:
        for name in data:
            namespace.pop(name, None)
        namespace.update(before)
        data.clear()


class _Definition:
    """What a name meant when it was looked at last, and what it needs."""

    __slots__ = ("_reference", "_value", "content", "needs")

    def __init__(self, name: str, value: object) -> None:
        recording = record(value, defining=frozenset((name,)))
        self.needs = tuple(_needs(name, value, recording))
        self.content = None if _is_constant(value) else _content(recording)
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
        self._value, self._reference = _FORGOTTEN, None

    def holds(self, name: str, value: object) -> bool:
        """Tell whether the name still means the same."""
        if not self.is_of(value):
            return False
        return self.content is None or _content(record(value, defining=frozenset((name,)))) == self.content


# Definitions of this process's __main__; shared by all workers, so that each is found out once.
_definitions: dict[str, _Definition] = {}
_definitions_of: list[int] = []  # id of the namespace they are of
_lock = threading.RLock()


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)  # another thread may have held it


def deliver(
    needs: Iterable[str],
    known: dict[str, object],
    withheld: frozenset[str] = frozenset(),
    brought: frozenset[str] = frozenset(),
) -> Draft | None:
    """Pack what a worker lacks of the names a task needs.

    Parameters
    ----------
    needs : iterable of str
        `Draft.needs` of the task.
    known : dict
        What this worker was sent before. Call ``known.update(draft.delivers)`` once the draft is sent.
    withheld : frozenset of str
        Names whose values the worker has already: data that goes by one of them here is not sent.
    brought : frozenset of str
        Names of globals that the task brings itself (`pack_with_data`).

    Returns
    -------
    Draft or None
        A dict for `apply`; None if the worker has everything.

    Raises
    ------
    UnsendableGlobalError
        If a global cannot be pickled; a TypeError that names it and who uses it.
    """
    namespace = main_namespace()
    if all(_is_known(name, namespace, known, brought) for name in needs):
        return None
    with _lock:
        namespace = _current_namespace()
        definitions = _closure(needs, namespace, withheld | brought)
        stale = {name: d for name, d in definitions.items() if known.get(name) is not d}
        if not stale:
            return None
        _forget_rebound(namespace)
        while True:
            update = {name: _value(name, namespace) for name in stale}
            recording = record(update, defining=frozenset(stale), withheld=withheld)
            more = {
                name: d
                for name, d in _closure(recording.needs, namespace, withheld | brought).items()
                if name not in stale and known.get(name) is not d
            }
            if not more:
                return Draft(recording, delivers=dict(stale))
            stale.update(more)


def _is_known(
    name: str, namespace: dict[str, Any], known: Mapping[str, object], brought: frozenset[str]
) -> bool:
    """Tell, of most kernels at once, that what is known of one holds; it needs what comes with the task."""
    definition = known.get(name)
    return (
        isinstance(definition, _Definition)
        and definition.content is None
        and brought.issuperset(definition.needs)
        and definition.is_of(namespace.get(name, _ABSENT))
    )


def pack_with_data(content: object, data: dict[str, object]) -> Draft:
    """Pack an object, and with it the data among the globals of ``__main__`` that its functions use.

    Functions and classes go the usual way, each once per worker. Data (arrays, lists, objects …) is read now,
    for this message alone: the receiver gets what the globals are at this moment.

    Parameters
    ----------
    content : object
        What to pack; `data` is part of it.
    data : dict
        The globals are put here, by name. What is there already spares looking for it. Its keys are what
        `deliver` can leave out.

    Raises
    ------
    Exception
        Whatever pickling raises.
    """
    brought = frozenset(data)
    recording = record(content, defining=brought)
    namespace = main_namespace()
    if all(
        type(namespace.get(name)) is types.FunctionType and _is_known(name, namespace, _definitions, brought)
        for name in recording.needs
    ):
        return Draft(recording)
    with _lock:
        namespace = _current_namespace()
        while True:
            known = len(data)
            _closure(recording.needs, namespace, frozenset(data), data)
            if len(data) == known:
                return Draft(recording)
            recording = record(content, defining=frozenset(data))


def current(names: Iterable[str]) -> dict[str, object]:
    """Return what some names of ``__main__`` are now; those it lacks are left out."""
    namespace = main_namespace()
    return {name: namespace[name] for name in names if name in namespace}


def _current_namespace() -> dict[str, Any]:
    """The globals of ``__main__``; if they are others than last time, definitions are forgotten."""
    namespace = main_namespace()
    if _definitions_of != [id(namespace)]:
        _definitions.clear()
        _definitions_of[:] = [id(namespace)]
    return namespace


def _is_constant(value: object) -> bool:
    return type(value) in _CONSTANT_TYPES or isinstance(value, (type, np.dtype))


def _forget_rebound(namespace: dict[str, Any]) -> None:
    for name, definition in list(_definitions.items()):
        if not definition.is_of(_value(name, namespace)):
            definition.forget()
            del _definitions[name]


def _closure(
    needs: Iterable[str],
    namespace: dict[str, Any],
    withheld: frozenset[str],
    data: dict[str, object] | None = None,
) -> dict[str, _Definition]:
    """Return the definitions of some names and of all that these need.

    Functions and classes are not withheld: what is pickled by their name must find them. If there is a dict
    for `data`, what is not a function, a class or the like is put there and not defined.
    """
    found: dict[str, _Definition] = {}
    users = dict.fromkeys(needs, "the task")
    open_names = list(users)
    while open_names:
        name = open_names.pop()
        value = _value(name, namespace)
        if value is _ABSENT or (name in withheld and not isinstance(value, CODE_TYPES)):
            continue
        if data is not None and not _is_constant(value):
            data[name] = value
            continue
        definition = _definitions.get(name)
        try:
            if definition is None or not definition.holds(name, value):
                definition = _definitions[name] = _Definition(name, value)
        except Exception as error:
            _definitions.pop(name, None)
            raise UnsendableGlobalError(
                name, type(value).__qualname__, users[name], f"{type(error).__name__}: {error}"
            ) from error
        found[name] = definition
        for needed in definition.needs:
            if needed not in users:
                users[needed] = f"{name!r}"
                open_names.append(needed)
    return found


def _value(name: str, namespace: dict[str, Any]) -> object:
    if "." in name:  # the full name of a submodule, see functions.needs_of
        return sys.modules.get(name, _ABSENT)
    return namespace.get(name, _ABSENT)


def _needs(name: str, value: object, recording: Recording) -> Iterator[str]:
    """Yield what a value needs: what its pickle noted, and names that no callback sees."""
    yield from recording.needs - {name}
    stream = recording.parts[0]
    if len(stream) <= _SCANNED_MAX and b"__main__" in stream:
        hidden = names_in_pickle(stream)
        if name in hidden and not isinstance(value, type):
            raise TypeError(f"{type(value).__qualname__} objects pickle as nothing but their name")
        yield from hidden - {name} - recording.needs


def _content(recording: Recording) -> bytes | None:
    """Return a value's pickled bytes for comparison, or None if they are too many."""
    total = sum(map(len, recording.parts))
    pieces = list(recording.parts)
    for note in recording.notes:
        if isinstance(note, Placed):
            pieces.append(repr((note.block.uid, note.block.offset, *note[1:])).encode())
        else:
            raw = note if isinstance(note, np.ndarray) else np.frombuffer(note.raw(), np.uint8)
            total += raw.nbytes
            if total > _COMPARED_MAX:
                return None
            pieces.append(raw.tobytes())
    return b"".join(pieces) if total <= _COMPARED_MAX else None
