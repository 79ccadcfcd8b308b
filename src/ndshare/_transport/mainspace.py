"""One ``__main__`` for the caller and its workers.

Workers never import the user's program, so what its functions need of it is brought to them::

    caller                                             worker
    task uses f ──► needs = {"f"}
    deliver(needs, known) ─► {"f": f, "model": …} ──►  apply(): bound in *the* __main__
    task: "__main__.f" by name                   ──►   found there

All functions of the program share that one namespace, as under the standard library with fork: an
initializer's ``global model`` is there for every later task, a cache in a global stays, a constant
is sent once.

A name is sent when the worker lacks it or when the caller's value is another one than was sent: bound to
another object, or changed in place (`ndshare._transport.definitions`). What the worker assigned itself stays
until then.

Guarantees
----------
* Everything a delivered name needs in turn is delivered with it, in one pickle: identities among
  the names of one delivery are kept.
* Names that ``__main__`` does not have are skipped: an initializer may yet make them.

Not guaranteed
--------------
* Large data that a task names at run time, by a string not of its own, is not found in ``globals()``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ndshare._pickling import MAIN_NAMES, expect_gifts, main_namespace, record
from ndshare._transport import definitions
from ndshare._transport.transport import Draft

LookedAt = dict[tuple[frozenset[str], frozenset[str]], tuple[dict[str, definitions.Definition], set[str]]]
"""Definitions, and names that cannot be sent, by the names that were asked for and those brought."""

_replaced: list[types.ModuleType] = []  # a module that nobody refers to would lose its globals


class _Main(types.ModuleType):
    """A ``__main__`` that asks for what it lacks."""

    def __getattr__(self, name: str) -> Any:
        if _ask is not None and not name.startswith("__"):
            _ask(name)
            if name in self.__dict__:
                return self.__dict__[name]
        raise AttributeError(f"module '__main__' has no attribute {name!r}")


_ask: Callable[[str], None] | None = None


def install(ask: Callable[[str], None] | None = None) -> types.ModuleType:
    """Give this process a fresh, empty ``__main__``. Called in every worker, for every executor anew.

    Names that it lacks are asked for when somebody looks them up as attributes of the module.
    """
    global _ask
    _ask = ask
    expect_gifts()
    main = _Main("__main__")
    main.__dict__["__builtins__"] = __builtins__
    old = sys.modules.get("__main__")
    if old is not None and not _replaced:
        _replaced.append(old)
    for name in MAIN_NAMES:
        sys.modules[name] = main
    return main


def keep() -> None:
    """Keep the ``__main__`` that was inherited, in a worker that was forked from the program."""
    expect_gifts()
    for name in MAIN_NAMES:
        sys.modules[name] = sys.modules["__main__"]


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


def deliver(
    needs: frozenset[str],
    known: dict[str, object],
    withheld: frozenset[str] = frozenset(),
    brought: frozenset[str] = frozenset(),
    looked_at: LookedAt | None = None,
) -> Draft | None:
    """Pack what a worker lacks of the names a task needs.

    Parameters
    ----------
    needs : frozenset of str
        `Draft.needs` of the task.
    known : dict
        What this worker was sent before. Call ``known.update(draft.delivers)`` once the draft is sent.
    withheld : frozenset of str
        Names whose values the worker has already: data that goes by one of them here is not sent.
    brought : frozenset of str
        Names of globals that the task brings itself (`pack_with_data`).
    looked_at : dict, optional
        What was found of these names a moment ago: it is not looked for again. Of tasks that wait together it
        is enough to look once after the last one was submitted.

    Returns
    -------
    Draft or None
        A dict for `apply`; None if the worker has everything.

    Raises
    ------
    UnsendableGlobalError
        If a global cannot be pickled; a TypeError that names it and who uses it.
    """
    found, left_out = (looked_at or {}).get((needs, brought), (None, set[str]()))
    if found is None and not (withheld or brought):
        found = definitions.still_known(needs, main_namespace(), known)
        if found is not None:
            if looked_at is not None:
                looked_at[needs, brought] = found, left_out
            return None
    if found is not None and all(known.get(name) is definition for name, definition in found.items()):
        return None
    with definitions.lock:
        namespace = definitions.current_namespace()
        if found is None:
            found = definitions.closure(needs, namespace, withheld | brought, left_out=left_out)
            if looked_at is not None:
                looked_at[needs, brought] = found, left_out
        stale = {name: d for name, d in found.items() if known.get(name) is not d}
        if not stale:
            return None
        definitions.forget_rebound(namespace)
        while True:
            update = {name: definitions.value_of(name, namespace) for name in stale}
            recording = record(update, defining=frozenset(stale), withheld=withheld)
            needed = definitions.closure(recording.needs, namespace, withheld | brought, left_out=left_out)
            more = {n: d for n, d in needed.items() if n not in stale and known.get(n) is not d}
            if not more:
                return Draft(recording, delivers=dict(stale))
            stale.update(more)


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
    with definitions.lock:
        namespace = definitions.current_namespace()
        while True:
            known = len(data)
            definitions.closure(recording.needs, namespace, frozenset(data), data)
            if len(data) == known:
                return Draft(recording)
            recording = record(content, defining=frozenset(data))


def current(names: Iterable[str]) -> dict[str, object]:
    """Return what some names of ``__main__`` are now; those it lacks are left out."""
    namespace = main_namespace()
    return {name: namespace[name] for name in names if name in namespace}
