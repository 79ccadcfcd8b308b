"""Functions of the caller's ``__main__``: by name where they have one, else by their code.

A function that can be found as ``__main__.name`` travels as that name: sender and receiver share
one namespace (see `ndshare.mainspace`), so the receiver has it already. What cannot be found by
name - a lambda, a closure, a function replaced by its decorated self - travels as its code and is
given the receiver's ``__main__`` as its globals. cloudpickle makes a new, private namespace for
every message instead, so that ``global model`` in an initializer never reaches a task.

Guarantees
----------
* Closures may refer to themselves and share cells; both survive.
* `names_used` finds every global that the byte code names, in nested functions and class bodies
  too. Names made up at run time (``globals()[...]``, ``exec``) cannot be found.
"""

from __future__ import annotations

import builtins
import dis
import functools
import itertools
import marshal
import sys
import types
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

MAIN_NAMES = frozenset(("__main__", "__mp_main__"))
"""Names a main program goes by: multiprocessing's spawn runs it under the second."""

CODE_TYPES = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
"""Types of what is code, not data."""

_CACHE_MAX = 2048
_HERE = 0  # in place of "__main__": a pickle with that word in it is searched for names, which takes longer
_ASSIGNING_OPS = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL"))
_NAME_OPS = _ASSIGNING_OPS | {"LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_NAME"}

# Names every module has of its own: the receiver's are right there.
_OWN_NAMES = frozenset(
    ("__annotations__", "__builtins__", "__cached__", "__doc__", "__loader__", "__name__", "__spec__")
)

IMPORTS_FROM = frozenset(("__package__",))  # where a relative import inside a function starts


class Names(NamedTuple):
    """What a code object names, nested code included."""

    globals: frozenset[str]
    attributes: frozenset[str]
    imports: bool  # whether it imports anything


# Keyed by id, because hashing a code object hashes all of its constants; the value keeps the key alive.
_names: dict[int, tuple[types.CodeType, Names]] = {}
_marshalled: dict[int, tuple[types.CodeType, bytes]] = {}
_loaded: dict[bytes, types.CodeType] = {}
_imported: dict[tuple[str, frozenset[str]], tuple[int, tuple[str, ...]]] = {}  # valid for so many modules


def main_namespace() -> dict[str, Any]:
    """Return the namespace of this process's ``__main__``: the globals that its functions have."""
    namespace = sys.modules["__main__"].__dict__
    if namespace.get("__name__") == "__mp_main__":
        return _spawned_namespace(namespace)
    return namespace


_spawned: list[dict[str, Any]] = []  # the namespace of the module, that of its functions


def _spawned_namespace(namespace: dict[str, Any]) -> dict[str, Any]:
    """Find the globals of the program in a child that multiprocessing has spawned.

    There ``__main__`` is a module that has a *copy* of them (see `runpy.run_path`): what the program's
    functions assign does not show in it.
    """
    if not _spawned or _spawned[0] is not namespace:
        found = namespace
        for value in list(namespace.values()):
            attributes = list(vars(value).values()) if isinstance(value, type) else [value]
            for one in attributes:
                if type(one) is types.FunctionType and one.__globals__.get("__name__") == "__mp_main__":
                    found = one.__globals__
        _spawned[:] = [namespace, found]
    return _spawned[1]


def find_in_main(qualname: str) -> object:
    """Return what a dotted name means in ``__main__``, or None."""
    namespace = main_namespace()
    if "." not in qualname:
        return namespace.get(qualname)
    root, *rest = qualname.split(".")
    found = namespace.get(root)
    for part in rest:
        found = getattr(found, part, None)
    return found


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _scan(code: types.CodeType) -> Names:
    used: set[str] = set()
    assigned: set[str] = set()
    attributes: set[str] = set()
    imports = False
    for one in _nested(code):
        attributes.update(one.co_names)
        for instruction in dis.get_instructions(one):
            if instruction.opname in _NAME_OPS:
                used.add(instruction.argval)
                if instruction.opname in _ASSIGNING_OPS:
                    assigned.add(instruction.argval)
            elif instruction.opname == "IMPORT_NAME":
                used |= IMPORTS_FROM
                imports = True
    known = assigned | main_namespace().keys()
    return Names(
        frozenset(name for name in used - _OWN_NAMES if name in known or not hasattr(builtins, name)),
        frozenset(attributes),
        imports,
    )


def names_used(code: types.CodeType) -> Names:
    """Return the globals and attributes that a code object names; looked at once per code object."""
    found = _names.get(id(code))
    if found is None:
        if len(_names) >= _CACHE_MAX:
            _names.clear()
        found = _names[id(code)] = (code, _scan(code))
    return found[1]


def needs_of(function: types.FunctionType) -> Iterator[str]:
    """Yield what a function needs of its caller's ``__main__``.

    Plain names, and full names of submodules: ``import xml.etree`` binds only ``xml``, and a
    receiver that imports ``xml`` has no ``xml.etree``.
    """
    names = names_used(function.__code__)
    yield from names.globals
    namespace = function.__globals__
    for name in names.globals:
        yield from _submodules(namespace.get(name), names.attributes)
    for value in itertools.chain(*cell_contents(function)):
        yield from _submodules(value, names.attributes)


def is_package(value: object) -> bool:
    """Tell whether something is a module that has submodules."""
    return type(value) is types.ModuleType and hasattr(value, "__path__")


def _submodules(package: Any, attributes: frozenset[str]) -> tuple[str, ...]:
    if not is_package(package):
        return ()
    key = package.__name__, attributes
    count, found = _imported.get(key, (0, ()))
    if count != len(sys.modules):
        prefix = package.__name__ + "."
        count = len(sys.modules)
        found = tuple(
            name
            for name in list(sys.modules)
            if name.startswith(prefix) and attributes.issuperset(name[len(prefix) :].split("."))
        )
        if len(_imported) >= _CACHE_MAX:
            _imported.clear()
        _imported[key] = count, found
    return found


def reduce_function(function: types.FunctionType, given: Container[int] = ()) -> tuple[Any, ...]:
    """Return how to make the function anew in the receiver's ``__main__``.

    The cells of its closure must be pickled *empty* (`make_cell`): their contents follow in the
    state, after the function has been memoized, so that a closure may contain itself. The cells
    whose ids are in `given` are filled by the receiver (`given_cell`).
    """
    closure = function.__closure__
    state = (
        _HERE if function.__module__ == "__main__" else function.__module__,
        function.__qualname__,
        function.__doc__,
        function.__defaults__,
        function.__kwdefaults__,
        function.__annotations__,
        function.__dict__,
        getattr(function, "__type_params__", ()),
        cell_contents(function, given),
    )
    facts = (dumped(function.__code__), function.__name__, closure)
    return make_function, facts, state, None, None, fill_function


def reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """Return how to make a code object anew."""
    return load_code, (dumped(code),)


def dumped(code: types.CodeType) -> bytes:
    """Return a code object as bytes for `load_code`."""
    cached = _marshalled.get(id(code))
    if cached is None:
        if len(_marshalled) >= _CACHE_MAX:
            _marshalled.clear()
        cached = _marshalled[id(code)] = (code, marshal.dumps(code))
    return cached[1]


def load_code(data: bytes) -> types.CodeType:
    """Return the code object of `dumped`; the same one for the same bytes."""
    loaded = _loaded.get(data)
    if loaded is None:
        if len(_loaded) >= _CACHE_MAX:
            _loaded.clear()
        loaded = _loaded[data] = marshal.loads(data)
    return loaded


def contents(cell: types.CellType) -> tuple[Any, ...]:
    """Return what a cell of a closure holds: one object, or none."""
    try:
        return (cell.cell_contents,)
    except ValueError:  # a variable that is not assigned yet
        return ()


def cell_contents(function: types.FunctionType, given: Container[int] = ()) -> tuple[tuple[Any, ...], ...]:
    """Return what the cells of a closure hold; nothing for those that the receiver fills."""
    cells = function.__closure__
    if cells is None:
        return ()
    if not given:
        return tuple(map(contents, cells))
    return tuple([() if id(cell) in given else contents(cell) for cell in cells])


def make_cell() -> types.CellType:
    """Return an empty cell."""
    return types.CellType()


def cells_given(function: types.FunctionType, names: Container[str]) -> Iterator[tuple[int, str]]:
    """Yield id and name of the cells of a closure that the receiver fills: data under one of the names.

    Functions and classes stay: a decorator's ``function`` is not the value of that name.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name in names and not isinstance((*contents(cell), None)[0], CODE_TYPES):
            yield id(cell), name


given: dict[str, Any] = {}
"""What a worker was given by name: see `ndshare.workspace`."""

# In a worker: cells that have arrived before what they are to hold.
_unfilled: list[tuple[str, types.CellType]] | None = None


def expect_gifts() -> None:
    """Become a worker that may be given something."""
    global _unfilled
    given.clear()
    _unfilled = []


def given_cell(name: str) -> types.CellType:
    """Return a cell with what this worker was given under a name, or will be; elsewhere an empty one."""
    if name in given:
        return types.CellType(given[name])
    cell = types.CellType()
    if _unfilled is not None and not given:
        _unfilled.append((name, cell))
    return cell


def give(values: dict[str, Any]) -> None:
    """Take what this worker is given, once and for all."""
    given.update(values)
    for name, cell in _unfilled or ():
        cell.cell_contents = values[name]
    if _unfilled:
        _unfilled.clear()


def make_function(code: bytes, name: str, closure: tuple[types.CellType, ...] | None) -> types.FunctionType:
    """Return the function of `reduce_function`, still without its state."""
    return types.FunctionType(load_code(code), main_namespace(), name, None, closure)


def fill_function(function: Any, state: tuple[Any, ...]) -> None:
    """Give a function made by `make_function` its state."""
    module, qualname, doc, defaults, kwdefaults, annotations, attributes, type_params, contents = state
    function.__module__ = "__main__" if module == _HERE else module
    function.__qualname__ = qualname
    function.__doc__ = doc
    function.__defaults__ = defaults
    function.__kwdefaults__ = kwdefaults
    function.__annotations__ = annotations
    function.__dict__.update(attributes)
    if type_params:
        function.__type_params__ = type_params
    fill_cells(function, contents)


def fill_cells(function: types.FunctionType, contents: tuple[tuple[Any, ...], ...]) -> None:
    """Fill the cells of a closure with their `cell_contents`."""
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            cell.cell_contents = content[0]


def reduce_cached(cached: Any) -> tuple[Any, ...]:
    """Return how to make a `functools.lru_cache` of a function anew."""
    parameters = cached.cache_parameters()
    attributes = {
        name: value
        for name, value in cached.__dict__.items()
        if name not in ("__wrapped__", "cache_parameters")  # lru_cache sets these itself
    }
    return remake_cached, (cached.__wrapped__, parameters["maxsize"], parameters["typed"], attributes)


def remake_cached(
    wrapped: Callable[..., Any], maxsize: int | None, typed: bool, attributes: dict[str, Any]
) -> Any:
    """Return the cached function of `reduce_cached`; its cache is empty."""
    cached = functools.lru_cache(maxsize, typed)(wrapped)
    cached.__dict__.update(attributes)
    return cached


_DISPATCHING: types.CodeType = vars(types.FunctionType)["__code__"].__get__(functools.singledispatch(len))


def is_dispatching(function: types.FunctionType) -> bool:
    """Tell whether a function was made by `functools.singledispatch`."""
    return function.__code__ is _DISPATCHING and hasattr(function, "registry")


def reduce_dispatching(function: Any) -> tuple[Any, ...]:
    """Return how to make a `functools.singledispatch` function anew; its cache cannot be pickled."""
    return (
        functools.singledispatch,
        (function.registry[object],),
        dict(function.registry),
        None,
        None,
        _register,
    )


def _register(function: Any, registry: dict[type, Callable[..., Any]]) -> None:
    for cls, implementation in registry.items():
        function.register(cls, implementation)
