"""Random generators that tasks and kernels use without being given them: each process has a copy of its own.

A copy draws the numbers that every other copy draws, and nobody sees that it has moved on. So what arrives in
a worker is noted with its state, and looked at again when the task is over.

The generators behind the functions of the modules `random` and `numpy.random` are no copies: a worker has its
own, seeded when it began, and they travel by name.
"""

from __future__ import annotations

import collections
import functools
import pickle
import sys
import types
from collections.abc import Iterable
from typing import Any

from ndshare._pickling.cells import given
from ndshare._pickling.uses import held

#: Classes by module; looked up only where the module is imported already.
_KINDS = {
    "random": ("Random",),
    "numpy.random": ("Generator", "RandomState", "BitGenerator", "SeedSequence"),
    "torch": ("Generator",),
}


_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)

#: What has arrived since the last look, and its state then. NumPy's cannot be referred to weakly.
arrived: collections.deque[tuple[Any, bytes]] = collections.deque(maxlen=16)


def is_random(value: object) -> bool:
    """Tell whether an object is a generator of random numbers, or seeds them, and is not a module's own."""
    for module, names in _KINDS.items():
        found = sys.modules.get(module)
        if found is not None:
            kinds = tuple(kind for name in names if isinstance(kind := getattr(found, name, None), type))
            if issubclass(type(value), kinds):  # and not isinstance: a proxy would run code
                return name_of(value) is None
    return False


def name_of(value: object) -> tuple[str, str] | None:
    """Return module and attribute of a generator behind a module's functions; None for any other."""
    for module, attribute in (("random", "_inst"), ("numpy.random.mtrand", "_rand")):
        if value is getattr(sys.modules.get(module), attribute, sys):
            return module, attribute
    return None


def state_of(value: Any) -> bytes | None:
    """Return what a generator will draw, and spawn, next; None if it has no state, as that of the system."""
    try:
        if hasattr(value, "getstate"):
            return pickle.dumps(value.getstate())
        if hasattr(value, "n_children_spawned"):
            return pickle.dumps(value.n_children_spawned)
        if hasattr(value, "bit_generator") or hasattr(value, "_bit_generator"):
            bits = getattr(value, "bit_generator", None) or value._bit_generator
            # RandomState keeps the second of a pair of normal numbers itself.
            own = value.get_state(legacy=False) if hasattr(value, "get_state") else None
            return pickle.dumps((own, state_of(bits)))
        if hasattr(value, "state"):
            seeds = getattr(value, "seed_seq", None)
            return pickle.dumps((value.state, getattr(seeds, "n_children_spawned", None)))
        data: bytes = value.get_state().numpy().tobytes()
    except Exception:  # random.SystemRandom; one of the user's own class
        return None
    return data


def reduce_random(value: Any) -> Any:
    """Take a generator apart so that the receiver notes its arrival."""
    if (name := name_of(value)) is not None:
        return getattr_of, name
    return arrive, (_Plain(value),)


class _Plain:
    """A generator that pickles in its own way: its class has a reducer that would be asked again."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> Any:
        return self._value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def getattr_of(module: str, attribute: str) -> Any:
    """Return this process's own generator."""
    __import__(module)
    return getattr(sys.modules[module], attribute)


def arrive(value: Any) -> Any:
    """Note a generator that has come from another process."""
    if (state := state_of(value)) is not None:
        arrived.append((value, state))
    return value


def advanced_by(function: Any, args: Iterable[Any]) -> list[tuple[str, str]]:
    """Return name and kind of the generators that a function, or one it is given, has brought along and used.

    Those that have been used are forgotten, by whatever name; one that is an argument is its receiver's own.
    """
    used = [(value, state_of(value) != state) for value, state in arrived]
    for entry in [entry for entry, (_, moved) in zip(list(arrived), used, strict=True) if moved]:
        arrived.remove(entry)
    moved = {id(value) for value, has_moved in used if has_moved}
    if not moved:
        return []
    functions = _functions(function)
    functions += [arg for arg in args if isinstance(arg, _FUNCTIONS)]
    found: dict[int, tuple[str, str]] = {}
    for name, value in held([*(("", one) for one in functions), *given.items()]):
        if id(value) in moved:
            found.setdefault(id(value), (name, describe_random(value)))
    return list(found.values())


def _functions(function: Any) -> list[Any]:
    """Return what a task runs: joblib sends several calls as one object, arguments included."""
    kind = getattr(sys.modules.get("joblib.parallel"), "BatchedCalls", None)
    if isinstance(kind, type) and isinstance(function, kind):
        calls: Any = function
        return [call[0] for call in calls.items]
    return [function]


def describe_random(value: Any) -> str:
    """Return what kind of generator it is."""
    bits = getattr(value, "bit_generator", None) or getattr(value, "_bit_generator", None)
    return f"random generator {type(value).__name__}" + (f"({type(bits).__name__})" if bits else "")


def random_types(numpy_random: Any) -> dict[type, Any]:
    """Return the reducers of NumPy's generators."""
    names = ("Generator", "RandomState", "MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64", "SeedSequence")
    return {getattr(numpy_random, name): reduce_random for name in names}
