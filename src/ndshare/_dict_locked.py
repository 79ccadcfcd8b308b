"""Locks of keys as the threads of this process have them: nesting is checked, exit publishes or drops."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np

from ndshare._arguments import check_seconds
from ndshare._dict import Store
from ndshare._dict_values import refused
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


@contextlib.contextmanager
def locks(store: Store, keys: Iterable[Hashable], numbers: list[int], timeout: float) -> Iterator[None]:
    """Have the locks of keys, whose numbers ascend, for the length of a block.

    Raises
    ------
    KeyLockError
        If this thread has one of them or a later one already, or waiting for it would never end.
    KeyTimeoutError
        If another has one of them for too long.
    """
    failure = store.acquire(numbers, timeout)
    if failure is not None:
        raise refused(keys, numbers, failure, timeout)
    try:
        yield
    finally:
        store.release(numbers)


class Locked:
    """What `SharedDict.locked` returns: the block in which arrays are worked on in place."""

    def __init__(self, store: Store, keys: Iterable[Hashable], wanted: list[int], timeout: float) -> None:
        self._store = store
        self._wanted = wanted
        self._numbers = sorted(wanted)
        self._pid = os.getpid()
        self._arrays: list[np.ndarray[Any, Any]] = []
        self._locks = locks(store, keys, self._numbers, timeout)

    def __enter__(self) -> Any:
        self._locks.__enter__()
        try:
            arrays = {number: self._store.begin(number) for number in self._numbers}
            self._arrays = [arrays[number] for number in self._wanted]
        except BaseException as error:
            self._locks.__exit__(type(error), error, error.__traceback__)
            raise
        return self._arrays[0] if len(self._arrays) == 1 else tuple(self._arrays)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for array in self._arrays:
            array.flags.writeable = False  # from now on others read there
        self._arrays = []
        try:
            if kind is None:
                if self._pid != os.getpid():
                    raise KeyLockError(
                        "of this block",
                        f"nothing: process {self._pid}, of which it is a fork, has the lock",
                        "leave the block in the process that entered it (os._exit in the child)",
                    )
                self._store.publish(self._numbers)
        finally:
            self._locks.__exit__(None, None, None)
