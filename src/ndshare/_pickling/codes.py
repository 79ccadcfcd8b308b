"""Code objects: which names they use, how they travel, what is remembered of them.

`names_used` finds every global that the byte code names, in nested functions and class bodies too. Names
made up at run time (``globals()[...]``, ``exec``) cannot be found; what might be such names can.
"""

from __future__ import annotations

import builtins
import dis
import itertools
import marshal
import re
import types
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from ndshare._pickling.namespace import main_namespace

_T = TypeVar("_T")

CACHE_MAX = 2048
"""What is remembered of so many things is forgotten before it becomes more."""

_ASSIGNING_OPS = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL"))
_NAME_OPS = _ASSIGNING_OPS | {"LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_NAME"}

# Names every module has of its own: the receiver's are right there.
_OWN_NAMES = frozenset(("__builtins__", "__cached__", "__loader__", "__name__"))

# Code with one of these may look up names that it makes up at run time: by itself, or in the frame of its
# caller, as `DataFrame.query` does; or lists what is there.
_LOOKING_UP = frozenset(
    (
        "__subclasses__", "dir", "getmembers", "cProfile", "doctest", "timeit",
        "dmatrix", "dmatrices", "from_formula",
        "globals", "eval", "exec", "vars", "query", "evaluate", "get_type_hints", "f_globals", "__globals__",
        "_getframe", "currentframe", "stack", "__main__",
    )
)  # fmt: skip
_WORD = re.compile(r"[^\W\d]\w*")

IMPORTS_FROM = frozenset(("__package__",))  # where a relative import inside a function starts


class Names(NamedTuple):
    """What a code object names, nested code included."""

    globals: frozenset[str]
    attributes: frozenset[str]
    imports: bool  # whether it imports anything
    looked_up: frozenset[str] | None = None  # words of its strings, if it may look names up at run time


class CodeMemory(Generic[_T]):
    """What was found out about code objects. Of thousands of them the memory begins anew."""

    def __init__(self) -> None:
        # By id, because hashing a code object hashes all of its constants; the value keeps the key alive.
        self._known: dict[int, tuple[types.CodeType, _T]] = {}

    def get(self, code: types.CodeType) -> _T | None:
        """Return what is known of a code object; None if nothing is."""
        known = self._known.get(id(code))
        return None if known is None else known[1]

    def put(self, code: types.CodeType, value: _T) -> _T:
        """Remember it."""
        if len(self._known) >= CACHE_MAX:
            self._known.clear()
        self._known[id(code)] = code, value
        return value


_names: CodeMemory[Names] = CodeMemory()
_marshalled: CodeMemory[bytes] = CodeMemory()
_loaded: dict[bytes, types.CodeType] = {}


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
    strings: list[str] = []
    for one in _nested(code):
        attributes.update(one.co_names)
        strings += [constant for constant in one.co_consts if type(constant) is str]
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
        _words(strings) if attributes & _LOOKING_UP or "__main__" in strings else None,
    )


def _words(strings: list[str]) -> frozenset[str]:
    return frozenset(itertools.chain(*map(_WORD.findall, strings)))


def names_used(code: types.CodeType) -> Names:
    """Return the globals and attributes that a code object names; looked at once per code object."""
    return _names.get(code) or _names.put(code, _scan(code))


def dumped(code: types.CodeType) -> bytes:
    """Return a code object as bytes for `load_code`."""
    return _marshalled.get(code) or _marshalled.put(code, marshal.dumps(code))


def load_code(data: bytes) -> types.CodeType:
    """Return the code object of `dumped`; the same one for the same bytes."""
    loaded = _loaded.get(data)
    if loaded is None:
        if len(_loaded) >= CACHE_MAX:
            _loaded.clear()
        loaded = _loaded[data] = marshal.loads(data)
    return loaded


def reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """Return how to make a code object anew."""
    return load_code, (dumped(code),)
