"""What a task raises arrives as it was, or as what can travel of it."""

from __future__ import annotations

import linecache
import threading
import traceback
from typing import Any

import pytest

import ndshare
from ndshare._transport import portable


class _Stuck(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class _Own(ExceptionGroup[Any]):
    def derive(self, members: Any) -> _Own:
        return _Own(self.message, members)


class _Underived(ExceptionGroup[Any]):
    """Whose members cannot be replaced as those of its base class can."""

    def __init__(self, message: str, members: Any) -> None:
        self.lock = threading.Lock()

    def derive(self, members: Any) -> _Underived:
        return _Underived(self.message, members)


@pytest.mark.parametrize(
    ("made", "arrives"),
    [(ExceptionGroup, ExceptionGroup), (_Own, _Own), (_Underived, ExceptionGroup)],
)
def test_group_with_members_that_cannot_travel_keeps_the_others(made: type, arrives: type) -> None:
    """In their order, at any depth; a stand-in says what the missing ones were."""
    group = made(
        "many", [ValueError(1), _Stuck("one"), ExceptionGroup("few", [_Stuck("two"), KeyError("k")])]
    )
    group.add_note("seen at night")
    error, text = portable(group)
    assert type(error) is arrives
    assert isinstance(error, ExceptionGroup)
    assert error.message == "many"
    assert error.__notes__ == ["seen at night"]
    first, second, inner = error.exceptions
    assert repr(first) == "ValueError(1)"
    assert isinstance(second, ndshare.RemoteError)
    assert "_Stuck" in str(second)
    assert isinstance(inner, ExceptionGroup)
    assert isinstance(inner.exceptions[0], ndshare.RemoteError)
    assert repr(inner.exceptions[1]) == "KeyError('k')"
    assert "one" in text


def test_group_of_any_exceptions_keeps_them() -> None:
    """Those that are no `Exception`, too."""
    error, _ = portable(BaseExceptionGroup("all", [KeyboardInterrupt(), _Stuck("one")]))
    assert isinstance(error, BaseExceptionGroup)
    assert [type(member) for member in error.exceptions] == [KeyboardInterrupt, ndshare.RemoteError]


def test_group_that_can_travel_is_as_it_was() -> None:
    """Nothing is replaced."""
    error, _ = portable(ExceptionGroup("few", [ValueError(1), OSError(2, "x")]))
    assert repr(error) == "ExceptionGroup('few', [ValueError(1), FileNotFoundError(2, 'x')])"


def test_traceback_has_the_code_of_cells_of_a_notebook() -> None:
    """Only the caller has their lines; a worker that was forked has them as well, and they are there once."""
    name, code = "<cell of a test>", "def fails():\n    number = 1\n    raise ValueError(number)\n"
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name
    try:
        namespace: dict[str, Any] = {}
        exec(compile(code, name, "exec"), namespace)
        for start in ("clean", "fork"):
            with ndshare.ProcessPoolExecutor(1, start=start) as executor:
                error = executor.submit(namespace["fails"]).exception()
            assert error is not None
            told = "".join(traceback.format_exception(error))
            assert told.count("    raise ValueError(number)\nValueError: 1") == 1, told
    finally:
        del linecache.cache[name]
