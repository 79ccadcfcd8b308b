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
from typing import Any, Self

import numpy as np

from ndshare._dict import files, life, snapshot
from ndshare._dict._store import Store
from ndshare._dict.layout import HEADER_BYTES, Layout, Spec, differences, encode, written_keys
from ndshare._dict.reading import Array
from ndshare._dict.writing import WritableDict
from ndshare.errors import KeyLockError, LayoutError

_CLOSE_POLL_S = 0.001  # while other threads of this process finish what they do with it


class SharedDict(WritableDict):
    """A mapping from keys to arrays in shared memory, for any number of processes of one user.

    Page: docs/shared_dict.md.

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
        wanted = None if arrays is None else _initial(arrays)
        file = None if name is None else files.file_of(name)
        where = None if path is None else os.path.abspath(os.fspath(path))
        keys, values = _first_values(wanted, where)
        layout, head = encode(_specs_of(values), time.time(), where, persistent)
        fd = files.make(layout, head)
        store = _store(fd, layout)
        for number, array in enumerate(values.values()):
            store.fill(number, array)
        while True:
            chosen = name or secrets.token_hex(8)
            if files.publish(fd, chosen):
                break
            if name is not None and not files.remove_dead(name):
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
        fd = files.connect(name)
        file = files.file_of(name)
        try:
            layout = files.layout_of(fd, file)
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
        wanted = _initial(arrays)
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

    def _take(self, name: str, store: Store, layout: Layout, keys: list[Hashable]) -> None:
        self._name = name
        self._store = store
        self._layout = layout
        self._file = files.identity(store.fd)
        self._take_keys(keys)
        life.watch(store, self._file)
        file = files.file_of(name)
        self._finalizer = weakref.finalize(self, life.end, store, file)
        life.end_with_multiprocessing(self, store, file)

    # How it ends --------------------------------------------------------------------------------------

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
        _, head = encode(layout.specs, layout.created, path, self._store.persistent)
        with snapshot.writing(self._store.fd):
            copies, _ = self._store.snapshot(range(len(self._keys)))
            arrays = dict(zip(layout.specs, copies, strict=True))
            snapshot.save(path, arrays, head[HEADER_BYTES:], self._name)

    def close(self) -> None:
        """Give it up in this process; the last one who does removes it, unless it is persistent.

        With a path, a snapshot is written first. What other threads of this process do with it is waited for.
        Closing again does nothing.

        Raises
        ------
        KeyLockError
            Inside a block of `locked`, or a function of `update`, of this thread.
        """
        mine = self._store.held()
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

    def __reduce__(self) -> tuple[Any, ...]:
        written = list(self._layout.specs)
        return _attach, (self._name, None if written == self._keys else self._keys)


def _store(fd: int, layout: Layout) -> Store:
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


def _initial(arrays: Mapping[Any, Any]) -> dict[Hashable, Array]:
    """Return the values of a new dict as contiguous arrays."""
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"a SharedDict is made of a mapping from keys to arrays; got {type(arrays).__name__}: "
            "use dict(enumerate(arrays)) for a list"
        )
    # `order="C"` with asarray keeps 0-d arrays as they are; ascontiguousarray does not.
    return {key: np.asarray(value, order="C") for key, value in arrays.items()}


def _specs_of(arrays: Mapping[Hashable, Array]) -> dict[Hashable, Spec]:
    """Return shape and dtype of each array."""
    known: dict[tuple[tuple[int, ...], np.dtype[Any]], Spec] = {}  # most keys are like others
    specs = {}
    for key, value in arrays.items():
        like = value.shape, value.dtype
        specs[key] = known.get(like) or known.setdefault(like, Spec(*like))
    return specs


def _own_keys(written: list[Hashable], wanted: Mapping[Hashable, Any]) -> list[Hashable]:
    """Return the keys of a file in its order, as whoever wants them calls them."""
    mine = dict(zip(written_keys(wanted), wanted, strict=True))
    return [mine[key] for key in written]


def _check_same(what: str, have: dict[Hashable, Spec], wanted: Mapping[Hashable, Array]) -> None:
    names = written_keys(wanted)
    asked = dict(zip(names, _specs_of(wanted).values(), strict=True))
    found = list(differences(have, asked))
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
    saved = None if path is None else snapshot.load(path)
    if saved is not None:
        if wanted is None:
            return list(saved), saved
        _check_same(f"the snapshot {path}", _specs_of(saved), wanted)
        return _own_keys(list(saved), wanted), saved
    if wanted is None:
        where = "no path was given" if path is None else f"there is no snapshot at {path}"
        raise TypeError(f"SharedDict got no arrays, and {where}; pass a mapping from keys to arrays")
    return list(wanted), dict(zip(written_keys(wanted), wanted.values(), strict=True))
