"""Locks of keys as the threads of this process have them: nesting is checked, exit publishes or drops."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from typing import Any, NoReturn

from ndshare._dict._store import Hold, Store
from ndshare._dict.values import refused
from ndshare._system import check_seconds
from ndshare.errors import KeyLockError

NO_LIMIT = -1.0


def checked_timeout(timeout: float | None) -> float:
    """Return a timeout as the store wants it."""
    if timeout is None:
        return NO_LIMIT
    check_seconds("timeout", timeout)
    if not timeout >= 0:
        raise ValueError(f"timeout is {timeout!r}; seconds from 0 on are allowed, or None for no limit")
    return timeout


class Locks(Hold):
    """The locks of keys, whose numbers ascend, for the length of a block.

    Raises
    ------
    KeyLockError
        If this thread has one of them or a later one already, or waiting for it would never end.
    KeyTimeoutError
        If another has one of them for too long.
    """

    def __init__(self, store: Store, keys: Iterable[Hashable], numbers: list[int], timeout: float) -> None:
        super().__init__(store, numbers)
        self._keys = keys
        self._numbers = numbers
        self._timeout = timeout

    def __enter__(self) -> Any:
        try:
            failure = self.take(self._timeout)
        except BaseException:  # Ctrl-C comes behind the call that has taken them
            self.free()
            raise
        if failure is not None:
            raise refused(self._keys, self._numbers, failure, self._timeout)


class Locked(Locks):
    """What `SharedDict.locked` returns: the block in which arrays are worked on in place."""

    def __init__(self, store: Store, keys: Iterable[Hashable], wanted: list[int], timeout: float) -> None:
        super().__init__(store, keys, sorted(wanted), timeout)
        self._store = store
        self._wanted = wanted
        self._pid = os.getpid()

    def __enter__(self) -> Any:
        if self.held:
            raise KeyLockError("of this block", "them already", "enter a block of `locked` once at a time")
        try:
            super().__enter__()
            begun = {number: self._store.begin(number) for number in self._numbers}
            self.arrays = arrays = [begun[number] for number in self._wanted]
            return arrays[0] if len(arrays) == 1 else tuple(arrays)
        except BaseException:
            self.free()
            raise

    def _refuse(self) -> NoReturn:
        """At the end of the block, without the locks."""
        if self._pid == os.getpid():
            raise RuntimeError("the block of `locked` is left where it was not entered: in another thread?")
        raise KeyLockError(
            "of this block",
            f"nothing: process {self._pid}, of which it is a fork, has the lock",
            "leave the block in the process that entered it (os._exit in the child)",
        )
