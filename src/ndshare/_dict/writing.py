"""The writing half of a `SharedDict`: write, update, locked.

Locks of keys are had by threads: nesting is checked, and leaving the block publishes or drops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ndshare._dict._store import Hold, Store, own, set_memory
from ndshare._dict.files import stopped_users
from ndshare._dict.reading import Array, ReadableDict, checked_timeout, fitted
from ndshare._memory import recycled_memory, value_handler
from ndshare._system import is_alive
from ndshare.errors import KeyLockError, KeyTimeoutError

if TYPE_CHECKING:
    from ndshare._dict._store import Failure

set_memory(value_handler())


def _names(keys: Iterable[Hashable], numbers: Iterable[int]) -> str:
    """Return the keys with these numbers as text."""
    known = list(keys)
    return ", ".join(repr(known[number]) for number in numbers)


def _refused(
    store: Store, keys: Iterable[Hashable], wanted: Sequence[int], failure: Failure, timeout: float
) -> KeyLockError | KeyTimeoutError:
    """Return the error that says why a thread did not get the locks it wanted."""
    reason, number, holder, held = failure
    known = list(keys)
    if reason == "order":
        again = [number for number in wanted if number in held]
        if again:
            remedy = "use the array that this thread has of it, or leave the block first"
            return KeyLockError(_names(known, again), _names(known, held), remedy)
        remedy = "nest in the order of keys(), or lock them together with locked(key, other, ...)"
        return KeyLockError(_names(known, wanted), _names(known, held), remedy)
    if reason == "deadlock":
        mine = _names(known, held) or "keys of other dicts"
        remedy = (
            f"process {holder} has it and waits for what this thread has; nest dicts in one order everywhere"
        )
        return KeyLockError(_names(known, [number]), mine, remedy)
    if reason == "readers":
        stopped = ", ".join(map(str, stopped_users(store.fd)))
        who = f"process {stopped} is stopped" if stopped else "somebody copies it slowly"
        return KeyTimeoutError(f"the end of reading key {_names(known, [number])}", timeout, who)
    alive = holder > 0 and is_alive(holder)
    who = f"process {holder} has it" if alive else "its holder has just changed or ended"
    return KeyTimeoutError(f"the lock of key {_names(known, [number])}", timeout, who)


class _Locks(Hold):
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
        self._store = store
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
            raise _refused(self._store, self._keys, self._numbers, failure, self._timeout)
        return self

    def store(self, values: Sequence[Array]) -> None:
        """Publish values of all keys, in their order, at one instant."""
        failure = self.put(values)
        if failure is not None:
            raise _refused(self._store, self._keys, self._numbers, failure, self._timeout)


class Locked(_Locks):
    """What `SharedDict.locked` returns: the block in which arrays are worked on in place."""

    def __init__(self, store: Store, keys: Iterable[Hashable], wanted: list[int], timeout: float) -> None:
        super().__init__(store, keys, sorted(wanted), timeout)
        self._wanted = wanted
        self._pid = os.getpid()

    def __enter__(self) -> Any:
        if self.held:
            raise KeyLockError("of this block", "them already", "enter a block of `locked` once at a time")
        try:
            super().__enter__()
            begun = self.begin()
            if isinstance(begun, tuple):
                raise _refused(self._store, self._keys, self._numbers, begun, self._timeout)
            arrays = dict(zip(self._numbers, begun, strict=True))
            wanted = tuple([arrays[number] for number in self._wanted])
            return wanted[0] if len(wanted) == 1 else wanted
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


class WritableDict(ReadableDict):
    """What takes the locks of keys."""

    # Writing ------------------------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        self.write({key: value})

    def write(self, new: Mapping[Any, Any], *, atomic: bool = False, timeout: float | None = None) -> None:
        """Store new values of some keys.

        Parameters
        ----------
        new : mapping
            Keys and what to store, cast and broadcast as NumPy does it (``same_kind``).
        atomic : bool
            Whether all of them become visible at one instant, or none if this process dies before.
        timeout : float, optional
            Seconds to wait for a lock at most.

        Raises
        ------
        TypeError, ValueError
            If a value cannot be cast or broadcast; nothing is written then.
        KeyTimeoutError
            If somebody has a lock for too long.
        """
        self._check_open()
        limit = checked_timeout(timeout)
        values = {}
        for key, value in new.items():
            number = self._number(key)
            values[number] = self._fitting(key, number, value)
        store, keys = self._store, self._keys
        if atomic:
            numbers = sorted(values)
            with _Locks(store, keys, numbers, limit) as locks:
                locks.store([values[number] for number in numbers])
            return
        for number, array in values.items():
            with _Locks(store, keys, [number], limit) as locks:
                locks.store((array,))

    def update(
        self,
        new: Mapping[Any, Any],
        func: Callable[[Any, Any], Any],
        *,
        atomic: bool = False,
        copy: bool = True,
        timeout: float | None = None,
    ) -> dict[Any, Array]:
        """Replace values by a function of them, which nobody else changes meanwhile.

        Parameters
        ----------
        new : mapping
            Keys to update and what `func` gets for each.
        func : callable
            Called as ``func(new, old)`` once per key, with the lock of the key held; what it returns is
            stored, cast and broadcast as NumPy does it (``same_kind``). If it raises, the key is left as it
            was.
        atomic : bool
            Whether the locks of all keys are held throughout, and all new values become visible at one
            instant. Otherwise the keys are updated one after the other, so that several processes pipeline.
        copy : bool
            Whether `old` and what is returned are private copies. With False they are read-only views, valid
            until the second update from now begins (see `view`).
        timeout : float, optional
            Seconds to wait for a lock at most.

        Returns
        -------
        dict
            Key to what was stored, in the order of `new`.

        Raises
        ------
        KeyTimeoutError
            If somebody has a lock for too long.
        KeyLockError
            If `func` asks for a lock in an order that could deadlock.

        Examples
        --------
        >>> import ndshare
        >>> with ndshare.SharedDict({"a": [1.0, 2.0]}) as d:
        ...     d.update({"a": 10.0}, lambda new, old: 0.1 * new + 0.5 * old)
        {'a': array([1.5, 2. ])}
        """
        self._check_open()
        limit = checked_timeout(timeout)
        numbers = [self._number(key) for key in new]
        if atomic:
            return self._update_together(new, numbers, func, copy, limit)
        results: dict[Any, Array] = {}
        for (key, given), number in zip(new.items(), numbers, strict=True):
            result = self._store.update(number, given, func, copy, limit)
            if isinstance(result, tuple):
                raise _refused(self._store, self._keys, [number], result, limit)
            results[key] = result
        return results

    def _fitting(self, key: Any, number: int, value: Any) -> Array:
        """Return `value` as an array that can be stored under a key byte by byte."""
        if self._store.fits(number, value):
            array: Array = value
            return array
        return fitted(key, self._specs[key], value)

    def _update_together(
        self,
        new: Mapping[Any, Any],
        numbers: list[int],
        func: Callable[[Any, Any], Any],
        copy: bool,
        limit: float,
    ) -> dict[Any, Array]:
        store, order = self._store, sorted(range(len(numbers)), key=numbers.__getitem__)
        look = store.load if copy else store.view
        with _Locks(store, self._keys, [numbers[i] for i in order], limit) as locks, recycled_memory():
            values = [
                self._fitting(key, number, func(given, look(number)))
                for number, (key, given) in zip(numbers, new.items(), strict=True)
            ]
            locks.store([values[i] for i in order])
            if copy:
                own(values, list(new.values()))
            else:
                values = [store.view(number) for number in numbers]
            return dict(zip(new, values, strict=True))

    def locked(self, *keys: Any, timeout: float | None = None) -> Locked:
        """Work on values in place, with their locks held.

        Parameters
        ----------
        *keys : keys
            Which ones, one at least.
        timeout : float, optional
            Seconds to wait for a lock at most.

        Returns
        -------
        context manager
            Its value is a writable array with the current value, or a tuple of them for several keys. Left
            normally, the block publishes all of them at one instant; left by an exception, or by death, none.
            Afterwards the arrays are read-only.

        Raises
        ------
        KeyLockError
            If this thread has one of the keys already, or one that comes later: that could deadlock.
        KeyTimeoutError
            If somebody has a lock for too long.

        Examples
        --------
        >>> import ndshare
        >>> with ndshare.SharedDict({"from": [3.0], "to": [0.0]}) as d:
        ...     with d.locked("from", "to") as (a, b):
        ...         a -= 1
        ...         b += 1
        ...     float(d["from"][0]), float(d["to"][0])
        (2.0, 1.0)
        """
        self._check_open()
        if not keys:
            raise TypeError("locked() takes at least one key and got none; name the keys to lock")
        numbers = [self._number(key) for key in keys]
        if len(set(numbers)) < len(numbers):
            raise KeyLockError(", ".join(map(repr, keys)), "the same key, named twice", "name each key once")
        return Locked(self._store, self._keys, numbers, checked_timeout(timeout))

    def __delitem__(self, key: Any) -> NoReturn:
        raise TypeError("keys of a SharedDict cannot be deleted: they are fixed when it is made")
