"""`SharedMemory` and `ShareableList` of today's standard library, for every Python that ndshare supports.

Whoever makes a segment has it unlinked when its program ends without doing so; whoever attaches has not:
that is what unlinks the memory of others in the standard library.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

__all__ = ["ShareableList", "SharedMemory"]


def _with_globals(function: Callable[..., Any], **names: object) -> Callable[..., Any]:
    """Return a function of the standard library that finds other things under some global names."""
    original: Any = function
    space = {**original.__globals__, **names}
    copy = types.FunctionType(original.__code__, space, original.__name__, original.__defaults__)
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy


def _no_tracking(_name: str, _kind: str) -> None:
    """Stand in for the functions of the resource tracker."""


_BASE: Any = shared_memory.SharedMemory
_UNTRACKED = types.SimpleNamespace(register=_no_tracking, unregister=_no_tracking)
_HAS_TRACK = sys.version_info >= (3, 13)


class SharedMemory(shared_memory.SharedMemory):
    """`multiprocessing.shared_memory.SharedMemory` of Python 3.13.

    Parameters
    ----------
    name : str, optional
        Its name; a new one by default.
    create : bool, optional
        Whether to make it.
    size : int, optional
        Bytes, if it is made.
    track : bool, optional
        Whether the resource tracker unlinks it when this program ends. By default whoever makes it has it
        tracked, and others have not.
    """

    def __init__(
        self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool | None = None
    ) -> None:
        track = create if track is None else track
        if _HAS_TRACK:
            _BASE.__init__(self, name, create, size, track=track)
            return
        self._track = track
        if track:
            _BASE.__init__(self, name, create, size)
        else:
            _with_globals(_BASE.__init__, resource_tracker=_UNTRACKED)(self, name, create, size)

    def close(self) -> None:
        """Give it up here; arrays that are made on `buf` keep it until they are gone."""
        # The standard library unmaps it, and the next look at such an array ends the program.
        mine: Any = self
        mine._buf = mine._mmap = None
        if mine._fd >= 0:
            os.close(mine._fd)
            mine._fd = -1

    def unlink(self) -> None:
        """Remove its name; the memory goes with the last process that has it attached."""
        if _HAS_TRACK or self._track:
            _BASE.unlink(self)
        else:
            _with_globals(_BASE.unlink, resource_tracker=_UNTRACKED)(self)

    def __reduce__(self) -> Any:
        return type(self), (self.name, False, self.size)


class ShareableList(shared_memory.ShareableList[Any]):
    """`multiprocessing.shared_memory.ShareableList` on `SharedMemory` of this module."""

    def __init__(self, sequence: Any = None, *, name: str | None = None) -> None:
        make = _with_globals(shared_memory.ShareableList.__init__, SharedMemory=SharedMemory)
        make(self, sequence, name=name)
