"""Locks of keys as the threads of this process have them: nesting is checked, exit publishes or drops."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ndshare import _platform
from ndshare._dict import Store
from ndshare._dict_values import check_order, timed_out
from ndshare.errors import KeyLockError

NO_LIMIT = -1.0


class _Held(threading.local):
    """Which keys this thread has, per file: a thread may be attached to one file several times."""

    def __init__(self) -> None:
        self.keys: dict[tuple[int, int], list[int]] = {}


_held = _Held()


def forget() -> None:
    """In the child of a fork: this thread has nothing."""
    _held.keys = {}


def held(file: tuple[int, int]) -> list[int]:
    """Return the numbers of the keys of a file that this thread has locked."""
    return _held.keys.get(file, [])


def checked_timeout(timeout: float | None) -> float:
    """Return a timeout as the store wants it."""
    if timeout is None:
        return NO_LIMIT
    if not timeout >= 0:
        raise ValueError(f"timeout is {timeout!r}; seconds from 0 on are allowed, or None for no limit")
    return timeout


def check(file: tuple[int, int], keys: Iterable[Hashable], numbers: list[int]) -> None:
    """Refuse locks that could deadlock with what this thread has; to be called before `acquire`."""
    mine = _held.keys.get(file)
    if mine:
        check_order(keys, numbers, mine)


def acquire(
    store: Store, file: tuple[int, int], keys: Iterable[Hashable], numbers: list[int], timeout: float
) -> None:
    """Lock keys, whose numbers ascend; `release` has to follow in any case.

    Raises
    ------
    KeyTimeoutError
        If another has one of them for too long.
    """
    mine = _held.keys.setdefault(file, [])
    failed = store.acquire(numbers, timeout)
    if failed is not None:
        alive = failed[1] > 0 and _platform.is_alive(failed[1])
        raise timed_out(keys, failed, timeout, alive)
    mine += numbers


def release(store: Store, file: tuple[int, int], numbers: Sequence[int]) -> None:
    """Free what this thread has of these keys."""
    mine = _held.keys.get(file)
    if mine is None:
        return  # a forked child, which has nothing
    try:
        store.release(numbers)
    finally:
        for number in numbers:
            with contextlib.suppress(ValueError):
                mine.remove(number)
        if not mine:
            _held.keys.pop(file, None)


@contextlib.contextmanager
def locks(
    store: Store, file: tuple[int, int], keys: Iterable[Hashable], numbers: list[int], timeout: float
) -> Iterator[None]:
    """Have the locks of keys, whose numbers ascend, for the length of a block."""
    check(file, keys, numbers)
    try:
        acquire(store, file, keys, numbers, timeout)
        yield
    finally:
        release(store, file, numbers)


class Locked:
    """What `SharedDict.locked` returns: the block in which arrays are worked on in place."""

    def __init__(
        self, store: Store, file: tuple[int, int], keys: Iterable[Hashable], wanted: list[int], timeout: float
    ) -> None:
        self._store = store
        self._file = file
        self._wanted = wanted
        self._numbers = sorted(wanted)
        self._pid = os.getpid()
        self._arrays: list[np.ndarray[Any, Any]] = []
        self._locks = locks(store, file, keys, self._numbers, timeout)

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
