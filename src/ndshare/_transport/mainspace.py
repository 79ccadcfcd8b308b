"""One ``__main__`` for the caller and its workers.

Workers never import the user's program, so what its functions need of it is brought to them::

    caller                                             worker
    task uses f ──► needs = {"f"}
    deliver(needs, known) ─► {"f": f, "model": …} ──►  unpickled: bound in *the* __main__
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
* Names that ``__main__`` does not have are skipped: an initializer may yet make them. Those that it no longer
  has are unbound.

Not guaranteed
--------------
* Large data that a task names at run time, by a string not of its own, is not found in ``globals()``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ndshare._pickling import (
    MAIN_NAMES,
    Named,
    NamedValue,
    Recording,
    delivered,
    expect_gifts,
    main_namespace,
    record,
)
from ndshare._transport import definitions, imported
from ndshare._transport.transport import Draft
from ndshare.errors import UnsendableGlobalError

LookedAt = dict[tuple[frozenset[str], frozenset[str]], tuple[dict[str, definitions.Definition], set[str]]]
"""Definitions, and names that cannot be sent, by the names that were asked for and those brought."""

_replaced: list[types.ModuleType] = []  # a module that nobody refers to would lose its globals


_annotations = vars(types.ModuleType)["__annotations__"]


class _Main(types.ModuleType):
    """A ``__main__`` that asks for what it lacks."""

    def __getattr__(self, name: str) -> Any:
        if _ask is not None and (name == "__file__" or not name.startswith("__")):
            own = self.__dict__
            for asked in (name, "__getattr__"):  # the program may have a function for what it lacks itself
                _ask(asked)
                if asked in own:
                    return own[name] if asked is name else own[asked](name)
        raise AttributeError(f"module '__main__' has no attribute {name!r}")

    def _annotated(self) -> dict[str, Any]:
        """Return the program's annotations: a module makes empty ones of its own, and would never ask."""
        own = self.__dict__
        for name in ("__annotations__", "__annotate__"):
            if _ask is not None and not own.keys() & {"__annotations__", "__annotate__"}:
                _ask(name)
        annotations: dict[str, Any] = _annotations.__get__(self)
        return annotations

    __annotations__ = property(_annotated, _annotations.__set__, _annotations.__delete__)


_ask: Callable[[str], None] | None = None


def install(ask: Callable[[str], None] | None = None) -> types.ModuleType:
    """Give this process a fresh, empty ``__main__``. Called in every worker, for every executor anew.

    Names that it lacks are asked for when somebody looks them up as attributes of the module.
    """
    global _ask
    _ask = ask
    expect_gifts()
    delivered.clear()
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


def knows(known: dict[str, object], needs: frozenset[str], brought: frozenset[str]) -> bool:
    """Tell at once, as for most tasks, whether a receiver has all that a task needs and does not bring."""
    namespace = main_namespace()
    ahead = list(needs)
    for name in ahead:  # grows meanwhile
        if name in brought:
            continue
        definition = known.get(name)
        if type(definition) is not definitions.Definition or not definition.holds(
            definitions.value_of(name, namespace)
        ):
            return False
        if definition.needs:
            ahead += [needed for needed in definition.needs if needed not in ahead]
    return True


def deliver(
    needs: frozenset[str],
    known: dict[str, object],
    withheld: frozenset[str] = frozenset(),
    brought: frozenset[str] = frozenset(),
    looked_at: LookedAt | None = None,
    *,
    stand_in: bool = False,
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

    stand_in : bool
        Whether something is to stand for a global that cannot be sent, and raise when it is used.

    Returns
    -------
    Draft or None
        A dict whose values are bound in the receiver's ``__main__`` when it is unpickled; None if the worker
        has everything.

    Raises
    ------
    UnsendableGlobalError
        If a global cannot be pickled and nothing is to stand for it; a TypeError that names it and its user.
    """
    found, left_out = (looked_at or {}).get((needs, brought), (None, set[str]()))
    if found is not None and not _stale(found, known):
        return None
    with definitions.lock:
        namespace = definitions.current_namespace()
        if found is None:
            found = definitions.closure(
                needs, namespace, withheld | brought, left_out=left_out, stand_in=stand_in
            )
            if looked_at is not None:
                looked_at[needs, brought] = found, left_out
        stale = _stale(found, known) | _deleted(known, namespace, withheld | brought)
        if not stale:
            return None
        definitions.forget_rebound(namespace)
        named = definitions.names_by_id(namespace)
        while True:
            update = {
                name: stale[name].stand_in or definitions.value_of(name, namespace)
                for name in _in_order(stale, namespace)
            }
            there = Named((number, name) for number, name in named.items() if name in found)
            there.origins = definitions.origins(update)
            recording = record(
                _Update(update, there),
                defining=frozenset(name for name, one in stale.items() if one.stand_in is None),
                withheld=withheld,
                named=there,
                afresh=True,
            )
            needed = definitions.closure(
                recording.needs, namespace, withheld | brought, left_out=left_out, stand_in=stand_in
            )
            more = {n: d for n, d in _stale(needed, known).items() if n not in stale}
            if not more:
                return Draft(recording, delivers=dict(stale))
            stale.update(more)
            found = found | needed  # a new one: other threads go through what was looked at
            if looked_at is not None:
                looked_at[needs, brought] = found, left_out


def inherited(content: Iterable[object], withheld: frozenset[str]) -> dict[str, definitions.Definition]:
    """Return what a process that is forked now has of what some objects need: it need not be told.

    It must not be, where the first of them to run changes globals. What cannot be pickled is left out.
    """
    with definitions.lock:
        namespace = definitions.current_namespace()
        needs: set[str] = set()
        for one in content:
            with contextlib.suppress(Exception):
                needs |= record(one).needs
        left_out: set[str] = set()
        while True:
            try:
                return definitions.closure(needs, namespace, withheld, left_out=left_out)
            except UnsendableGlobalError as error:
                left_out.add(error.name)


def _stale(
    found: dict[str, definitions.Definition], known: dict[str, object]
) -> dict[str, definitions.Definition]:
    return {name: d for name, d in found.items() if definitions.is_stale(known.get(name), d)}


def _deleted(
    known: dict[str, object], namespace: dict[str, Any], withheld: frozenset[str]
) -> dict[str, definitions.Definition]:
    """Return the names that were sent once, if only because they might be looked up, and are gone here."""
    return {
        name: definitions.GONE
        for name, known_as in list(known.items())  # another thread may empty it
        if definitions.is_stale(known_as, definitions.GONE)
        and name not in withheld
        and definitions.value_of(name, namespace) is definitions.ABSENT
    }


class _Update:
    """Names and values on their way; each is bound as soon as it is there, as those after it may use it."""

    def __init__(self, values: dict[str, Any], there: Named) -> None:
        self._values = values
        self._there = there

    def __reduce__(self) -> Any:
        bindings: list[_Binding | _Unbinding] = []
        for name, value in self._values.items():
            if value is definitions.ABSENT:
                bindings.append(_Unbinding(name))
                continue
            first = self._there.get(id(value), name)  # the receiver may have it under another name
            found = value if first in self._values else NamedValue(first)
            origin = definitions.origin_of(name) if imported.is_container(value) else None
            bindings.append(_Binding(name, found, origin))
        return dict, (bindings,)


class _Binding(NamedTuple):
    name: str
    value: Any
    origin: imported.Origin | None

    def __reduce__(self) -> Any:
        return _bind, (self.name, self.value, *(self.origin or ()))


class _Unbinding(NamedTuple):
    name: str

    def __reduce__(self) -> Any:
        return _unbind, (self.name,)


def _unbind(name: str) -> tuple[str, Any]:
    """Forget a name that the caller had once."""
    main_namespace().pop(name, None)
    delivered.pop(name, None)
    return name, None


def _bind(name: str, value: Any, *origin: Any) -> tuple[str, Any]:
    """Bind a name while a message is unpickled."""
    if origin:
        imported.give_back(origin[0], origin[1], value)
    # A dotted key is a submodule: its import was the purpose.
    if "." not in name and not (name in (namespace := main_namespace()) and _binding.gently):
        namespace[name] = delivered[name] = value
    return name, value


class _Manner(threading.local):
    gently = False  # names that are there stay as they are


_binding = _Manner()


@contextlib.contextmanager
def gently() -> Iterator[None]:
    """Have updates that this thread unpickles meanwhile bind only what ``__main__`` lacks."""
    _binding.gently = True
    try:
        yield
    finally:
        _binding.gently = False


def _in_order(stale: dict[str, definitions.Definition], namespace: dict[str, Any]) -> list[str]:
    """Return names with those before them that they need, and data last: rebuilding it may run code."""
    ordered: dict[str, None] = {}
    code = [
        name
        for name, one in stale.items()
        if one.stand_in is not None or definitions.is_code(definitions.value_of(name, namespace))
    ]
    for among in (frozenset(code), frozenset(stale)):
        ahead = [(name, False) for name in reversed(stale) if name in among]
        begun: set[str] = set()
        while ahead:
            name, ready = ahead.pop()
            if ready:
                ordered[name] = None
            elif name not in begun:
                begun.add(name)
                ahead.append((name, True))
                before = (*stale[name].needs, *stale[name].contains)
                ahead += [(needed, False) for needed in before if needed in among]
    return list(ordered)


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
    with definitions.lock:
        namespace = definitions.current_namespace()
        sentinels = definitions.sentinels(namespace)
        while True:
            known = len(data)
            recording = record(content, defining=frozenset(data), named=sentinels)
            needs = recording.needs | sentinels.used
            definitions.closure(needs, namespace, frozenset(data), data)
            if len(data) == known:
                return Draft(Recording(recording.parts, recording.notes, needs))


def current(names: Iterable[str]) -> dict[str, object]:
    """Return what some names of ``__main__`` are now; those it lacks are left out."""
    namespace = main_namespace()
    return {name: namespace[name] for name in names if name in namespace}
