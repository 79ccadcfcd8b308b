"""Functions of the caller's ``__main__``: by name where they have one, else by their code.

A function that can be found as ``__main__.name`` travels as that name: sender and receiver share
one namespace (see `ndshare._transport.mainspace`), so the receiver has it already. What cannot be found by
name - a lambda, a closure, a function replaced by its decorated self - travels as its code and is
given the receiver's ``__main__`` as its globals. cloudpickle makes a new, private namespace for
every message instead, so that ``global model`` in an initializer never reaches a task.

Guarantees
----------
* Closures may refer to themselves and share cells; both survive.
"""

from __future__ import annotations
import __future__

import functools
import importlib
import itertools
import sys
import types
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from ndshare._pickling.cells import cell_contents, fill_cells
from ndshare._pickling.codes import CACHE_MAX, dumped, load_code, names_used
from ndshare._pickling.namespace import EVERYTHING, PERHAPS, look_up, main_namespace

_STRINGS_ONLY = __future__.annotations.compiler_flag
_HERE = 0  # in place of "__main__": a pickle with that word in it is searched for names, which takes longer

_imported: dict[tuple[str, frozenset[str]], tuple[int, tuple[str, ...]]] = {}  # valid for so many modules


def needs_of(function: types.FunctionType) -> Iterator[str]:
    """Yield what a function needs of its caller's ``__main__``.

    Plain names, and full names of submodules: ``import xml.etree`` binds only ``xml``, and a
    receiver that imports ``xml`` has no ``xml.etree``.
    """
    names = names_used(function.__code__)
    if function.__name__ == "__annotate__":  # they may name what is there for type checkers only
        yield from (PERHAPS + name for name in names.globals)
        return
    yield from names.globals
    namespace = function.__globals__
    if names.looked_up is not None:
        yield EVERYTHING
        yield from (PERHAPS + name for name in names.looked_up & main_namespace().keys())
    for name in names.globals:
        yield from _submodules(look_up(namespace, name), names.attributes)
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
        if len(_imported) >= CACHE_MAX:
            _imported.clear()
        _imported[key] = count, found
    return found


def reduce_function(
    function: types.FunctionType,
    given: Container[int] = (),
    part: Callable[[Any], Any] | None = None,
    home: types.ModuleType | None = None,
) -> tuple[Any, ...]:
    """Return how to make the function anew, on the globals of the receiver's ``__main__`` or of a module.

    The cells of its closure must be pickled *empty* (`make_cell`): their contents follow in the
    state, after the function has been memoized, so that a closure may contain itself. The cells
    whose ids are in `given` are filled by the receiver (`given_cell`). What is in defaults, attributes and
    cells is replaced by its `part`.
    """
    closure = function.__closure__
    defaults, keywords, attributes = function.__defaults__, function.__kwdefaults__, function.__dict__
    contents = cell_contents(function, given)
    if part is not None:
        defaults = defaults and tuple(map(part, defaults))
        keywords = keywords and {name: part(value) for name, value in keywords.items()}
        attributes = {name: part(value) for name, value in attributes.items()}
        contents = tuple([tuple(map(part, content)) for content in contents])
    state = (
        _HERE if function.__module__ == "__main__" else function.__module__,
        function.__qualname__,
        function.__doc__,
        defaults,
        keywords,
        annotations_of(function),
        attributes,
        getattr(function, "__type_params__", ()),
        contents,
    )
    facts: tuple[Any, ...] = (dumped(function.__code__), function.__name__, closure)
    if home is not None:
        facts = *facts, home
    return make_function, facts, state, None, None, fill_function


def annotations_of(function: Any) -> Any:
    """Return the annotations of a function; from Python 3.14 on who makes them: some cannot be evaluated."""
    maker = getattr(function, "__annotate__", None)
    if maker is None or function.__code__.co_flags & _STRINGS_ONLY:
        return function.__annotations__
    return maker


def annotate(function: Any, annotations: Any) -> None:
    """Give a function what `annotations_of` has returned."""
    if type(annotations) is dict:
        function.__annotations__ = annotations
    else:
        function.__annotate__ = annotations


def make_function(
    code: bytes, name: str, closure: tuple[types.CellType, ...] | None, home: types.ModuleType | None = None
) -> types.FunctionType:
    """Return the function of `reduce_function`, still without its state."""
    namespace = main_namespace() if home is None else vars(home)
    return types.FunctionType(load_code(code), namespace, name, None, closure)


def fill_function(function: Any, state: tuple[Any, ...]) -> None:
    """Give a function made by `make_function` its state."""
    module, qualname, doc, defaults, kwdefaults, annotations, attributes, type_params, contents = state
    function.__module__ = "__main__" if module == _HERE else module
    function.__qualname__ = qualname
    function.__doc__ = doc
    function.__defaults__ = defaults
    function.__kwdefaults__ = kwdefaults
    annotate(function, annotations)
    function.__dict__.update(attributes)
    if type_params:
        function.__type_params__ = type_params
    fill_cells(function, contents)


class Named(dict[int, str]):
    """Names of globals of ``__main__`` by the ids of their values; notes which were `used`."""

    def __init__(self, names: Iterable[tuple[int, str]] = ()) -> None:
        super().__init__(names)
        self.used: set[str] = set()
        #: Module and name, by id, of those that the script has from elsewhere, and the receiver as well.
        self.origins: dict[int, tuple[str, str]] = {}


class NamedValue:
    """Stands for the value of a global of ``__main__`` where it is part of another one."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return named_value, (self.name,)


def of_module(module: str, name: str, cls: Any) -> Any:
    """Return the instance of a class that a module has under a name; if it has none it is given a new one."""
    try:
        home = importlib.import_module(module)
    except Exception:  # here it goes without
        return object.__new__(cls)
    found = getattr(home, name, None)
    if type(found) is not cls:
        found = object.__new__(cls)
        setattr(home, name, found)
    return found


def fill_plain(obj: Any, state: dict[str, Any]) -> None:
    """Give an object the attributes of another one."""
    vars(obj).clear()
    vars(obj).update(state)


delivered: dict[str, Any] = {}
"""What this process was sent of globals, by name: its own code may have bound the name anew since."""


def named_value(name: str) -> Any:
    """Return what this process was sent of a global."""
    return delivered[name]


def reduce_cached(cached: Any) -> tuple[Any, ...]:
    """Return how to make a `functools.lru_cache` of a function anew."""
    parameters = cached.cache_parameters()
    attributes = {
        name: value
        for name, value in cached.__dict__.items()
        if name not in ("__wrapped__", "cache_parameters")  # lru_cache sets these itself
    }
    return remake_cached, (cached.__wrapped__, parameters["maxsize"], parameters["typed"], attributes)


def reduce_cached_of_library(cached: Any) -> Any:
    """Return how to find a `functools.lru_cache` that others can import."""
    module, qualname = cached.__module__, cached.__qualname__
    if module not in sys.modules:
        return reduce_cached(cached)
    for found in (_found, _found_beneath):
        if found(module, qualname) is cached:
            return cached.__reduce__() if found is _found else (found, (module, qualname))
    return reduce_cached(cached)


def _found(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _found_beneath(module: str, qualname: str) -> Any:
    """Return what a class method or static method of a class is made of."""
    importlib.import_module(module)
    owner, _, name = qualname.rpartition(".")
    return getattr(getattr(_found(module, owner), "__dict__", {}).get(name), "__func__", None)


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
