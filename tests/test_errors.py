"""Every error class survives pickling and can be caught as the builtin it stands for."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures.process import BrokenProcessPool

import pytest

import ndshare
from ndshare import errors
from ndshare.errors import ShutDown, broken

_CLASSES = sorted(
    {
        thing
        for module in (errors, broken)
        for thing in vars(module).values()
        if isinstance(thing, type)
        and issubclass(thing, Exception)
        and thing.__module__.startswith("ndshare")
        and thing is not errors.ShutDown  # the standard library's, from Python 3.13 on
    },
    key=lambda cls: cls.__name__,
)

BUILTINS = {
    "SegmentError": OSError,
    "SegmentGoneError": OSError,
    "CapacityError": MemoryError,
    "TransportError": RuntimeError,
    "UnsendableGlobalError": TypeError,
    "WorkerError": RuntimeError,
    "WorkerDiedError": BrokenProcessPool,
    "InitializerError": BrokenProcessPool,
    "ExitError": SystemExit,
    "InheritedError": RuntimeError,
    "TaskTimeoutError": TimeoutError,
    "TaskKilledError": RuntimeError,
    "WorkerMemoryError": MemoryError,
    "RemoteError": RuntimeError,
    "OwnerDiedError": RuntimeError,
    "LayoutError": ValueError,
    "KeyLockError": RuntimeError,
    "KeyTimeoutError": TimeoutError,
    "WriterDiedError": ShutDown,
    "NdshareWarning": UserWarning,
    "RepeatedCopyWarning": UserWarning,
    "SilentWriteWarning": UserWarning,
}


def _example(cls: type[Exception]) -> Exception:
    """Return an instance with a plausible fact for each positional argument."""
    if not any("__init__" in vars(base) for base in cls.__mro__ if base.__module__.startswith("ndshare")):
        return cls("something")
    facts: list[object] = []
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            continue
        annotation = str(parameter.annotation)
        if "str" in annotation:
            facts.append("text")
        elif "tuple" in annotation:
            facts.append((3, 4))
        elif "dtype" in annotation:
            facts.append("float64")
        else:
            facts.append(7)
    return cls(*facts)


@pytest.mark.parametrize("cls", _CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_error_pickled_keeps_type_facts_and_text(cls: type[Exception], protocol: int) -> None:
    """An error arrives as the same class with the same arguments, attributes and text."""
    error = _example(cls)
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(twin) is cls
        assert twin.args == error.args
        assert str(twin) == str(error)
        assert {k: v for k, v in vars(twin).items() if k != "__notes__"} == vars(error)


@pytest.mark.parametrize("cls", _CLASSES, ids=lambda cls: cls.__name__)
def test_error_class_derives_from_the_root_and_a_builtin(cls: type[Exception]) -> None:
    """Every class hangs under one of the two roots and under the builtin that callers catch."""
    if issubclass(cls, Warning):
        assert issubclass(cls, errors.NdshareWarning)
    else:
        assert issubclass(cls, errors.NdshareError)
    if cls is not errors.NdshareError:
        assert issubclass(cls, BUILTINS[cls.__name__])


@pytest.mark.parametrize("cls", _CLASSES, ids=lambda cls: cls.__name__)
def test_error_class_is_public(cls: type[Exception]) -> None:
    """Whatever can be raised can be caught by a public name."""
    assert getattr(ndshare, cls.__name__) is cls


def test_error_text_names_no_placeholder() -> None:
    """The text of each error is a sentence, not the repr of its arguments."""
    for cls in _CLASSES:
        text = str(_example(cls))
        assert text, f"{cls.__name__} has no text"
        assert not text.startswith("("), f"{cls.__name__} prints its arguments as a tuple: {text}"
