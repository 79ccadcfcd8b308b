"""What ndshare adds to exceptions of the user's, also to those that refuse to be changed.

A frozen dataclass may be an exception: setting an attribute of it raises. What belongs to every exception is
set here past what its class says.
"""

from __future__ import annotations

from typing import Any

_TRACEBACK: Any = BaseException.__dict__["__traceback__"]
_CAUSE: Any = BaseException.__dict__["__cause__"]
_CONTEXT: Any = BaseException.__dict__["__context__"]


def add_note(error: BaseException, note: str) -> None:
    """Add a note, as `BaseException.add_note` does."""
    state = object.__getattribute__(error, "__dict__")
    notes = state.setdefault("__notes__", [])
    if isinstance(notes, list):
        notes.append(note)


def set_cause(error: BaseException, cause: BaseException | None) -> None:
    """Say what an exception was raised from."""
    _CAUSE.__set__(error, cause)


def forget_traceback(error: BaseException) -> None:
    """Let go of the frames that an exception holds."""
    _TRACEBACK.__set__(error, None)


def forget_origin(error: BaseException) -> None:
    """Let go of the frames that an exception holds, and of what it was raised from."""
    for member in (_TRACEBACK, _CAUSE, _CONTEXT):
        member.__set__(error, None)
