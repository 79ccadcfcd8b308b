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

import os
import secrets
import time
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

from ndshare._dict import file as _dict_file
from ndshare._dict import fork
from ndshare._dict import layout as _dict_layout
from ndshare._dict import life as _dict_life
from ndshare._dict._store import Store
from ndshare._dict.life import ClosableDict
from ndshare._dict.values import check_same, first_values, initial, own_keys, specs_of
from ndshare.errors import LayoutError

__all__ = ["SharedDict"]


class SharedDict(ClosableDict):
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
        keys, values = first_values(wanted, where)
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
                check_same(f"the SharedDict {name!r}", self._specs, wanted)
            except ValueError:
                self._finalizer()
                raise
            if self._keys != list(wanted):
                self._take_keys(own_keys(self._keys, wanted))
            return self

    def _take(self, name: str, store: Store, layout: _dict_layout.Layout, keys: list[Hashable]) -> None:
        self._name = name
        self._store = store
        self._layout = layout
        self._file = _dict_file.identity(store.fd)
        self._take_keys(keys)
        fork.watch(store, self._file)
        file = _dict_file.file_of(name)
        self._finalizer = weakref.finalize(self, _dict_life.end, store, file)
        _dict_life.end_with_multiprocessing(self, store, file)

    def __reduce__(self) -> tuple[Any, ...]:
        written = list(self._layout.specs)
        return _attach, (self._name, None if written == self._keys else self._keys)


def _store(fd: int, layout: _dict_layout.Layout) -> Store:
    try:
        return Store(fd, layout.size, layout.cells, layout.data, layout.entries)
    except BaseException:
        os.close(fd)
        raise


def _attach(name: str, keys: list[Hashable] | None) -> SharedDict:
    shared = SharedDict.attach(name)
    if keys is not None:
        shared._take_keys(keys)
    return shared
