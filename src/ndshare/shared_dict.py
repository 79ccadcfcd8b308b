"""`SharedDict`: named arrays that many processes read and update, safe against death at any instant.

::

    process A                   /dev/shm, one file                    process B
    d.update(new, func) ──▶  key: lock │ slot 0 │ slot 1   ◀──  SharedDict.attach(d.name).read()

Each key has two slots: who writes fills the one that is not current, and one store makes it current. So a
reader needs no lock, and a writer that is killed leaves the value as it was.

Guarantees
----------
* A reader never sees a half-written value, nor a part of what was written to several keys as one.
* Whoever dies, by ``kill -9`` too, holds no lock any more, and what it had begun has no effect.
* A reader is never kept waiting by a writer for longer than a copy takes, nor a writer by a reader.
* The last user that closes removes the dict, unless it is persistent.

Not guaranteed
--------------
* Order among those who wait for a lock.
* Protection from programs of the same user that write to or truncate the file.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Callable, Hashable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any, NoReturn, Self

import numpy as np

from ndshare import _dict, _dict_file, _dict_fork, _dict_layout, _dict_locked, _dict_snapshot
from ndshare._dict import Store
from ndshare._dict_layout import Spec
from ndshare._dict_locked import Locked, checked_timeout
from ndshare._dict_values import Array, fitting, initial, specs_of
from ndshare.errors import KeyLockError, KeyTimeoutError, LayoutError

__all__ = ["SharedDict"]

_CLOSE_POLL_S = 0.001  # while other threads of this process finish what they do with it
_SYNC_BYTE = (1 << 60) - 1  # locked while a snapshot is written, so that an older one never comes last
_SHOWN_KEYS = 4


class SharedDict(Mapping[Any, Array]):
    """A mapping from keys to arrays in shared memory, for any number of processes of one user.

    Parameters
    ----------
    arrays : mapping, optional
        Keys and first values. Each key keeps dtype and shape of its first value. Keys of str, int, bool, None
        and tuples of these are known to everybody who attaches; of another key others see its index. May be
        left out if there is a snapshot at `path`.
    name : str, optional
        Under what others find it. Default: a random one.
    path : str or path-like, optional
        A snapshot on disk. If there is one, the values are those of the snapshot. It is written whole by
        `sync` and `close`.
    persistent : bool
        Whether it stays when the last user has closed it, until the machine is restarted or `unlink`.

    Raises
    ------
    FileExistsError
        If a dict of that name is in use or persistent.
    CapacityError
        If there is not enough shared memory: twice the bytes of the arrays are needed.
    LayoutError
        If the snapshot is not whole.
    TypeError
        For dtypes that cannot be shared (objects).
    ValueError
        If the snapshot has other keys, dtypes or shapes than `arrays`.

    Notes
    -----
    Everybody who has it sees the same values, threads and forked children included. It travels to other
    processes as its name: somebody has to keep it open until the receiver has attached. `read` makes private
    copies, at the speed of a copy; `update` holds the lock of a key while the function runs and copies once
    in and once out. Close it, use it in a ``with`` statement, or let it go: a process that ends has
    closed it.

    Examples
    --------
    >>> import ndshare
    >>> with ndshare.SharedDict({"weights": [1.0, 2.0], "steps": 0}) as d:
    ...     d.update({"weights": [1.0, 1.0]}, lambda new, old: old - 0.5 * new)["weights"]
    ...     d["steps"] = 1
    ...     int(d["steps"])
    array([0.5, 1.5])
    1
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __init__(
        self,
        arrays: Mapping[Any, Any] | None = None,
        name: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        persistent: bool = False,
    ) -> None:
        wanted = None if arrays is None else initial(arrays)
        file = None if name is None else _dict_file.file_of(name)
        where = None if path is None else os.path.abspath(os.fspath(path))
        keys, values = _first_values(wanted, where)
        layout, head = _dict_layout.encode(specs_of(values), time.time(), where, persistent)
        fd = _dict_file.make(layout, head)
        store = _store(fd, layout)
        for number, array in enumerate(values.values()):
            store.fill(number, array)
        while True:
            chosen = name or secrets.token_hex(8)
            if _dict_file.publish(fd, chosen):
                break
            if name is not None and not _dict_file.remove_dead(name):
                raise FileExistsError(
                    f"a SharedDict named {name!r} exists already, or something else is at {file}; use "
                    "SharedDict.attach(name), SharedDict.open(name, arrays), or another name"
                )
        self._take(chosen, store, layout, keys)

    @classmethod
    def attach(cls, name: str) -> SharedDict:
        """Return the dict of that name, which any process of this user has made.

        Parameters
        ----------
        name : str
            Its name.

        Returns
        -------
        SharedDict
            Of the same arrays.

        Raises
        ------
        FileNotFoundError
            If there is none.
        LayoutError
            If what is under that name is foreign or damaged.
        """
        fd = _dict_file.connect(name)
        file = _dict_file.file_of(name)
        try:
            layout = _dict_file.layout_of(fd, file)
        except BaseException:
            os.close(fd)
            raise
        store = _store(fd, layout)
        damage = store.check()
        if damage is not None:
            key = list(layout.specs)[damage[0]]
            raise LayoutError(file, f"{damage[1]!r} of key {key!r}", "inconsistent", "what writing leaves")
        self = cls.__new__(cls)
        self._take(name, store, layout, list(layout.specs))
        return self

    @classmethod
    def open(
        cls,
        name: str,
        arrays: Mapping[Any, Any],
        *,
        path: str | os.PathLike[str] | None = None,
        persistent: bool = False,
    ) -> SharedDict:
        """Attach to the dict of that name, or make it: whoever comes first makes it.

        Parameters
        ----------
        name : str
            Its name.
        arrays : mapping
            As for the constructor. If the dict is there already, only keys, dtypes and shapes count.
        path : str or path-like, optional
            As for the constructor; not used if the dict is there already.
        persistent : bool
            As for the constructor; not used if the dict is there already.

        Returns
        -------
        SharedDict
            The one of that name.

        Raises
        ------
        ValueError
            If there is one with other keys, dtypes or shapes.
        """
        wanted = initial(arrays)
        while True:
            try:
                self = cls.attach(name)
            except FileNotFoundError:
                try:
                    return cls(wanted, name, path=path, persistent=persistent)
                except FileExistsError:
                    continue
            try:
                _check_same(f"the SharedDict {name!r}", self._specs, wanted)
            except ValueError:
                self._finalizer()
                raise
            if self._keys != list(wanted):
                self._take_keys(_own_keys(self._keys, wanted))
            return self

    def _take(self, name: str, store: Store, layout: _dict_layout.Layout, keys: list[Hashable]) -> None:
        self._name = name
        self._store = store
        self._layout = layout
        status = os.fstat(store.fd)
        self._file = (status.st_dev, status.st_ino)
        self._take_keys(keys)
        _dict_fork.watch(store)
        self._finalizer = weakref.finalize(self, _end, store, _dict_file.file_of(name))
        _end_with_multiprocessing(self)

    def _take_keys(self, keys: list[Hashable]) -> None:
        self._keys = keys
        self._numbers: dict[Hashable, int] = {key: number for number, key in enumerate(keys)}
        self._specs: dict[Hashable, Spec] = dict(zip(keys, self._layout.specs.values(), strict=True))

    # What it is ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Under what others attach to it."""
        return self._name

    @property
    def path(self) -> str | None:
        """Where its snapshots go, or None."""
        return self._layout.path

    @property
    def closed(self) -> bool:
        """Whether it is closed here."""
        return self._store.shutting or self._store.fd < 0

    @property
    def specs(self) -> dict[Any, Spec]:
        """Shape and dtype of each key."""
        return dict(self._specs)

    @property
    def nbytes(self) -> int:
        """Bytes of all values; twice as much memory is used."""
        return sum(spec.nbytes for spec in self._specs.values())

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._numbers)

    def __contains__(self, key: object) -> bool:
        return key in self._numbers

    def __repr__(self) -> str:
        shown = [
            f"{key!r}: {spec.dtype} {spec.shape}" for key, spec in list(self._specs.items())[:_SHOWN_KEYS]
        ]
        if len(self._specs) > _SHOWN_KEYS:
            shown.append(f"... {len(self._specs)} keys")
        state = "closed" if self.closed else f"{self.nbytes} bytes"
        return f"<ndshare.SharedDict {self._name!r}, {state}: {{{', '.join(shown)}}}>"

    def __reduce__(self) -> tuple[Any, ...]:
        written = list(self._layout.specs)
        return _attach, (self._name, None if written == self._keys else self._keys)

    def _number(self, key: Any) -> int:
        number = self._numbers.get(key)
        if number is None:
            known = ", ".join(map(repr, self._keys[: 2 * _SHOWN_KEYS]))
            more = ", ..." if len(self._keys) > 2 * _SHOWN_KEYS else ""
            raise KeyError(f"{key!r} is not a key of the SharedDict {self._name!r}; it has {known}{more}")
        return number

    def _check_open(self) -> None:
        if self._store.shutting:
            raise ValueError(
                f"the SharedDict {self._name!r} is closed in this process; attach to it with "
                f"SharedDict.attach({self._name!r}) while others have it"
            )

    # Reading ------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Array:
        self._check_open()
        return self._store.load(self._number(key))

    def read(self, keys: Iterable[Any] | None = None) -> dict[Any, Array]:
        """Return private copies of several values, all of one instant.

        Parameters
        ----------
        keys : iterable of keys, optional
            Which ones. Default: all.

        Returns
        -------
        dict
            Key to array, in the order asked for.

        Notes
        -----
        Takes no lock. A reader that was overtaken by writers twice makes them wait while it copies.
        """
        self._check_open()
        if isinstance(keys, str):
            raise TypeError(
                f"read takes several keys, and got the str {keys!r}; use [{keys!r}] or d[{keys!r}]"
            )
        wanted = self._keys if keys is None else list(dict.fromkeys(keys))
        copies, _ = self._store.snapshot([self._number(key) for key in wanted])
        return dict(zip(wanted, copies, strict=True))

    def items(self) -> ItemsView[Any, Array]:
        """Return keys and private copies of the values, all of one instant."""
        return self.read().items()

    def values(self) -> ValuesView[Array]:
        """Return private copies of the values, all of one instant."""
        return self.read().values()

    def view(self, key: Any) -> Array:
        """Return the value of a key without a copy, as a read-only array.

        Parameters
        ----------
        key : key
            Which one.

        Returns
        -------
        ndarray
            Shows the value of now until the second update from now begins. `is_intact` tells whether it still
            does.

        Examples
        --------
        >>> import ndshare
        >>> d = ndshare.SharedDict({"a": [1.0, 2.0]})
        >>> a = d.view("a")
        >>> total = a.sum()
        >>> d.is_intact(a)
        True
        >>> d["a"] = 5.0
        >>> d["a"] = 6.0
        >>> d.is_intact(a)
        False
        >>> d.close()
        """
        self._check_open()
        return self._store.view(self._number(key))

    @staticmethod
    def is_intact(view: Array) -> bool:
        """Tell whether a view still shows the value that it was made for.

        Parameters
        ----------
        view : ndarray
            What `view` returned, or a view of it. To be asked after the data were used: True says that
            everything read so far belongs to one value.

        Returns
        -------
        bool
            False once another value has begun to be written there.
        """
        intact = _dict.intact(view)
        if intact is None:
            raise TypeError(
                f"is_intact got {type(view).__name__}, which is no view of a SharedDict; pass what view() "
                "returned"
            )
        return intact

    def version(self, key: Any) -> int:
        """Return how many values a key has had: 1 for the first one.

        Parameters
        ----------
        key : key
            Which one.
        """
        self._check_open()
        return self._store.version(self._number(key))

    def wait(self, key: Any, version: int | None = None, timeout: float | None = None) -> int:
        """Wait until a key has a newer value.

        Parameters
        ----------
        key : key
            Which one.
        version : int, optional
            Newer than which. Default: the one of now.
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        int
            The version that is there.

        Raises
        ------
        KeyTimeoutError
            If none comes in time; a TimeoutError.
        """
        self._check_open()
        number = self._number(key)
        limit = checked_timeout(timeout)
        seen = self._store.version(number) if version is None else version
        newer = self._store.wait(number, max(seen, 0), limit)
        if newer is None:
            raise KeyTimeoutError(
                f"a value of key {key!r} newer than version {seen}", limit, "there is none yet"
            )
        return newer

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
            values[number] = fitting(self._store, number, key, self._specs[key], value)
        store, file, keys = self._store, self._file, self._keys
        if atomic:
            numbers = sorted(values)
            with _dict_locked.locks(store, file, keys, numbers, limit):
                store.put(numbers, [values[number] for number in numbers])
            return
        for number, array in values.items():
            with _dict_locked.locks(store, file, keys, [number], limit):
                store.put((number,), (array,))

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
        results = {}
        if atomic:
            with _dict_locked.locks(self._store, self._file, self._keys, sorted(numbers), limit):
                values = {
                    number: self._apply(number, key, given, func, copy)
                    for number, (key, given) in zip(numbers, new.items(), strict=True)
                }
                self._store.put(sorted(numbers), [values[number] for number in sorted(numbers)])
                for number, (key, given) in zip(numbers, new.items(), strict=True):
                    results[key] = self._returned(number, values[number], given, copy)
            return results
        store, file, keys = self._store, self._file, self._keys
        for key, given in new.items():
            number = self._numbers[key]
            one = [number]
            _dict_locked.check(file, keys, one)
            try:
                _dict_locked.acquire(store, file, keys, one, limit)
                value = self._apply(number, key, given, func, copy)
                store.put(one, (value,))
                results[key] = self._returned(number, value, given, copy)
            finally:
                _dict_locked.release(store, file, one)
        return results

    def _apply(self, number: int, key: Any, given: Any, func: Callable[[Any, Any], Any], copy: bool) -> Array:
        old = self._store.load(number) if copy else self._store.view(number)
        return fitting(self._store, number, key, self._specs[key], func(given, old))

    def _returned(self, number: int, value: Array, given: Any, copy: bool) -> Array:
        if not copy:
            return self._store.view(number)
        # What func made is the caller's own; what it was given, or a part of something, is not.
        if value is given or value.base is not None or type(value) is not np.ndarray:
            return np.array(value, order="C")
        return value

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
        return Locked(self._store, self._file, self._keys, numbers, checked_timeout(timeout))

    # Life ---------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Write a snapshot of all values, of one instant, to `path`; returns when it is on the disk.

        Raises
        ------
        ValueError
            If the dict has no path.
        OSError
            If it cannot be written. The snapshot before it is still there.
        """
        self._check_open()
        if self._layout.path is None:
            raise ValueError(f"the SharedDict {self._name!r} has no path; give one when it is made")
        self._save(self._layout.path)

    def _save(self, path: str) -> None:
        layout = self._layout
        _, head = _dict_layout.encode(layout.specs, layout.created, path, self._store.persistent)
        with _sync_lock, _SyncLock(self._store.fd):
            copies, _ = self._store.snapshot(range(len(self._keys)))
            arrays = dict(zip(layout.specs, copies, strict=True))
            _dict_snapshot.save(path, arrays, head[_dict_layout.HEADER_BYTES :], self._name)

    def close(self) -> None:
        """Give it up in this process; the last one who does removes it, unless it is persistent.

        With a path, a snapshot is written first. What other threads of this process do with it is waited for.
        Closing again does nothing.

        Raises
        ------
        KeyLockError
            Inside a block of `locked`, or a function of `update`, of this thread.
        """
        mine = [
            number
            for number in _dict_locked.held(self._file)
            if self._store.owner(number) == threading.get_ident()
        ]
        if mine and not self.closed:
            raise KeyLockError(
                "of all others, to close the dict,",
                ", ".join(repr(self._keys[number]) for number in mine),
                "leave the block first",
            )
        self._store.shut()
        while self._store.busy:
            time.sleep(_CLOSE_POLL_S)
        try:
            if self._store.fd >= 0 and self._layout.path is not None:
                self._save(self._layout.path)
        finally:
            self._finalizer()

    def unlink(self) -> None:
        """Make a persistent dict an ordinary one: the last user that closes removes it."""
        self._check_open()
        self._store.persistent = False

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __delitem__(self, key: Any) -> NoReturn:
        raise TypeError("keys of a SharedDict cannot be deleted: they are fixed when it is made")


_sync_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: _sync_lock._at_fork_reinit())  # type: ignore[attr-defined]


class _SyncLock:
    """The right to write the snapshot, among all processes."""

    _RANGE = struct.Struct("hhqqi4x")  # struct flock

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def _set(self, kind: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW, self._RANGE.pack(kind, os.SEEK_SET, _SYNC_BYTE, 1, 0))

    def __enter__(self) -> None:
        self._set(fcntl.F_WRLCK)

    def __exit__(self, *_: object) -> None:
        self._set(fcntl.F_UNLCK)


def _store(fd: int, layout: _dict_layout.Layout) -> Store:
    try:
        return Store(fd, layout.size, layout.cells, layout.data, layout.entries)
    except BaseException:
        os.close(fd)
        raise


def _end(store: Store, file: str) -> None:
    """Close; remove the file if nobody else uses it."""
    store.shut()
    if store.fd >= 0:
        try:
            _dict_file.remove_unused(store.fd, file)
        finally:
            store.close()


def _end_with_multiprocessing(shared: SharedDict) -> None:
    # Processes of multiprocessing end without running what `atexit` and `weakref.finalize` have.
    import multiprocessing.util

    multiprocessing.util.register_after_fork(shared, _finalize_with_process)
    if multiprocessing.parent_process() is not None:
        _finalize_with_process(shared)


def _finalize_with_process(shared: SharedDict) -> None:
    import multiprocessing.util

    arguments = (shared._store, _dict_file.file_of(shared._name))
    multiprocessing.util.Finalize(shared, _end, arguments, exitpriority=0)


def _attach(name: str, keys: list[Hashable] | None) -> SharedDict:
    shared = SharedDict.attach(name)
    if keys is not None:
        shared._take_keys(keys)
    return shared


def _own_keys(written: list[Hashable], wanted: Mapping[Hashable, Any]) -> list[Hashable]:
    """Return the keys of a file in its order, as whoever wants them calls them."""
    mine = dict(zip(_dict_layout.written_keys(wanted), wanted, strict=True))
    return [mine[key] for key in written]


def _check_same(what: str, have: dict[Hashable, Spec], wanted: Mapping[Hashable, Array]) -> None:
    names = _dict_layout.written_keys(wanted)
    asked = dict(zip(names, specs_of(wanted).values(), strict=True))
    found = list(_dict_layout.differences(have, asked))
    if found:
        more = f" and {len(found) - 1} more differences" if len(found) > 1 else ""
        raise ValueError(
            f"{what} has other arrays than those asked for: {found[0]}{more}; use the same keys, dtypes and "
            "shapes, or another name or path"
        )


def _first_values(
    wanted: dict[Hashable, Array] | None, path: str | None
) -> tuple[list[Hashable], dict[Hashable, Array]]:
    """Return the keys of a new dict as its maker calls them, and the values by the keys of the file."""
    saved = None if path is None else _dict_snapshot.load(path)
    if saved is not None:
        if wanted is None:
            return list(saved), saved
        _check_same(f"the snapshot {path}", specs_of(saved), wanted)
        return _own_keys(list(saved), wanted), saved
    if wanted is None:
        where = "no path was given" if path is None else f"there is no snapshot at {path}"
        raise TypeError(f"SharedDict got no arrays, and {where}; pass a mapping from keys to arrays")
    return list(wanted), dict(zip(_dict_layout.written_keys(wanted), wanted.values(), strict=True))
