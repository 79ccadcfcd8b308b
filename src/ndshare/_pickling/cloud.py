"""The second attempt: what pickle cannot do, cloudpickle can.

Imported, and cloudpickle with it (20 ms), when the first object turns up that needs it: a class made
in a function, a lambda of an importable module that names globals.
Functions of ``__main__`` still go the way of `ndshare._pickling.functions`, so that they share one namespace,
and classes that of `ndshare._pickling.classes`.
"""

from __future__ import annotations

import io
import itertools
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import cloudpickle.cloudpickle as _impl
import numpy as np

from ndshare._pickling import cells, classes, per_process
from ndshare._pickling.exceptions import reduce_exception
from ndshare._pickling.functions import Named, annotations_of
from ndshare._pickling.namespace import MAIN_NAMES, main_namespace
from ndshare._pickling.recording import Places, Recording
from ndshare._pickling.session import Session, WrapperTable
from ndshare._system import selective


class _TableAfresh(WrapperTable):
    """A dispatch table that also knows what every process has for itself."""

    def __missing__(self, cls: type) -> Any:
        return per_process.reducer(cls) or super().__missing__(cls)


class _CloudSession(Session):
    """A session that takes apart what `Session` gives up."""

    def __init__(self, pickler: Any, *, afresh: bool) -> None:
        super().__init__()
        self.pickler = pickler
        self.afresh = afresh
        ours = dict(self.table)
        self.table.update(_impl.Pickler._dispatch_table)
        self.table.update(ours)
        self.table[io.TextIOWrapper] = _reduce_file
        self.look_for_late()
        if afresh:
            self.table.__class__ = _TableAfresh

    def set_named(self, named: Named) -> None:
        super().set_named(named)
        if self.afresh and named:
            namespace = main_namespace()
            for name in named.values():
                if per_process.is_per_process(value := namespace.get(name)):
                    self._watch_for(type(value))

    def on_named(self, obj: Any) -> Any:
        reduced = super().on_named(obj)
        if reduced is NotImplemented and obj.__module__ not in MAIN_NAMES and not _is_found_by_name(obj):
            reduced = _impl.Pickler.reducer_override(self.pickler, obj)
            if type(reduced) is not tuple:
                return reduced
            if isinstance(obj, type):
                return self.on_class(obj) if len(reduced) > 2 else reduced
            if isinstance(obj, types.FunctionType) and obj.__globals__ is main_namespace():
                return self.on_unnamed(obj)  # its decorator gave it the name of something else
            if isinstance(obj, types.FunctionType) and (home := self.home_of(obj)) is not None:
                return self.on_wrapper(obj, home)
            if isinstance(obj, types.FunctionType):
                return self.on_dynamic(obj, reduced)
        return reduced

    def beyond(self, obj: Any) -> Any:
        if isinstance(obj, type):
            return self.on_class(obj) if classes.can_copy(obj) else _impl._class_reduce(obj)
        if isinstance(obj, types.FunctionType):
            return self.on_dynamic(obj, self.pickler._dynamic_function_reduce(obj))
        if isinstance(obj, types.ModuleType):
            facts = {name: value for name, value in list(vars(obj).items()) if name != "__builtins__"}
            return types.ModuleType, (obj.__name__,), facts, None, None, _fill_module
        return _impl.Pickler._dispatch_table[type(obj)](obj)

    def on_dynamic(self, function: types.FunctionType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Have cells of a closure arrive as those of `Session` do, which may be the same ones.

        Leaves out what the receiver has of the globals.
        """
        make, facts, (attributes, slots), *_ = reduced
        if self.withheld:
            for name in self.withheld & slots["__globals__"].keys():
                del slots["__globals__"][name]
        if function.__closure__ is None:
            return reduced
        self.note_cells(function)
        state = attributes, {**slots, "__closure__": None}, cells.cell_contents(function, self.given)
        return make, (*facts[:-1], function.__closure__), state, None, None, fill_dynamic


def _reduce_file(file: io.TextIOWrapper) -> Any:
    """Pickle the content of a text file that is open for reading only: what is written to a copy is lost."""
    mode = getattr(file, "mode", "")
    if "+" in mode and file is not sys.stdout and file is not sys.stderr:
        raise pickle.PicklingError(
            f"cannot pickle the file {file.name!r}, which is open for writing (mode {mode!r})"
        )
    return _impl.Pickler._dispatch_table[io.TextIOWrapper](file)


class _CloudPickler(_impl.Pickler):  # type: ignore[misc, unused-ignore]
    session: ClassVar[None]
    reducer_override: Callable[[Any], Any]

    def _dynamic_function_reduce(self, func: types.FunctionType) -> tuple[Any, ...]:
        """Do what cloudpickle does, without evaluating annotations."""
        code, namespace = func.__code__, func.__globals__
        used = {name: namespace[name] for name in _impl._extract_code_globals(code) if name in namespace}
        values = itertools.chain(used.values(), *cells.cell_contents(func))
        annotations = annotations_of(func)
        slots = {
            "__name__": func.__name__,
            "__qualname__": func.__qualname__,
            "__annotations__" if type(annotations) is dict else "__annotate__": annotations,
            "__kwdefaults__": func.__kwdefaults__,
            "__defaults__": func.__defaults__,
            "__module__": func.__module__,
            "__doc__": func.__doc__,
            "__closure__": func.__closure__,
            "_cloudpickle_submodules": _impl._find_imported_submodules(code, values),
            "__globals__": used,
        }
        state = dict(func.__dict__), slots
        return (
            _impl._make_function,
            self._function_getnewargs(func),
            state,
            None,
            None,
            _impl._function_setstate,
        )


def record(
    obj: object,
    *,
    lend: bool,
    defining: frozenset[str],
    withheld: frozenset[str],
    inputs: Places | None,
    named: Named,
    afresh: bool,
) -> Recording:
    """Pickle an object as `ndshare._pickling.pickler.record` does, with cloudpickle's help."""
    pickler = _CloudPickler.__new__(_CloudPickler)
    session = _CloudSession(pickler, afresh=afresh)
    session.lend = lend
    session.defining = defining
    session.withheld = withheld
    session.inputs = inputs
    # Read by __init__, and by nobody later: cloudpickle's class attribute hides the C pickler's member.
    pickler.dispatch_table = session.table
    pickler.__init__(session, 5, buffer_callback=session.notes.append)  # type: ignore[misc]
    pickler.reducer_override = selective(session.on_named, np.ndarray, session.on_subclass, reduce_exception)
    try:
        session.set_named(named)
        pickler.dump(obj)
        return session.finish()
    finally:
        pickler.clear_memo()
        session.close()
        session.pickler = None  # a cycle: nothing of this message may wait for the garbage collector


def _is_found_by_name(obj: Any) -> bool:
    """Whether an object is what its module has under its name; cloudpickle takes longer to see it."""
    module = sys.modules.get(obj.__module__)
    return (
        module is not None
        and not _impl._PICKLE_BY_VALUE_MODULES  # `cloudpickle.register_pickle_by_value`
        and module.__dict__.get(obj.__qualname__) is obj
    )


def fill_dynamic(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Give a function of `_CloudSession.on_dynamic` its state."""
    *facts, contents = state
    _impl._function_setstate(function, facts)
    cells.fill_cells(function, contents)


def _fill_module(module: types.ModuleType, facts: dict[str, Any]) -> None:
    vars(module).update(facts)
