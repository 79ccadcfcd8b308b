"""The reading half of a `SharedDict`: facts, private copies, views, waiting."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any

import numpy as np

from ndshare._dict._store import Store, intact
from ndshare._dict.layout import Layout, Spec
from ndshare._system import check_seconds
from ndshare.errors import KeyTimeoutError, add_note

Array = np.ndarray[Any, Any]

_NO_LIMIT = -1.0
_SHOWN_KEYS = 4


def checked_timeout(timeout: float | None) -> float:
    """Return a timeout as the store wants it."""
    if timeout is None:
        return _NO_LIMIT
    check_seconds("timeout", timeout)
    if not timeout >= 0:
        raise ValueError(f"timeout is {timeout!r}; seconds from 0 on are allowed, or None for no limit")
    return timeout


def fitted(key: Hashable, spec: Spec, value: Any) -> Array:
    """Return `value` as a new array of this shape and dtype.

    Raises
    ------
    TypeError
        If it cannot be cast under the rule ``same_kind``.
    ValueError
        If it cannot be broadcast to the shape.
    """
    if value is None:
        raise TypeError(
            f"key {key!r} holds {spec.dtype} of shape {spec.shape} and cannot take None; an update function "
            "has to return the new value"
        )
    target = np.empty(spec.shape, spec.dtype)
    try:
        np.copyto(target, value, casting="same_kind")
    except (TypeError, ValueError) as error:
        add_note(error, f"key {key!r} holds {spec.dtype} of shape {spec.shape}; nothing was written")
        raise
    return target


class ReadableDict(Mapping[Any, Array]):
    """What needs no lock."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    _name: str
    _store: Store
    _layout: Layout
    _file: tuple[int, int]
    _finalizer: weakref.finalize[Any, Any]

    def _take_keys(self, keys: list[Hashable]) -> None:
        self._keys = keys
        self._numbers: dict[Hashable, int] = dict(zip(keys, range(len(keys)), strict=True))
        self._specs: dict[Hashable, Spec] = dict(zip(keys, self._layout.specs.values(), strict=True))
        specs = list(self._layout.specs.values())
        # Must not refer to self: the store has to go with it.
        self._store.fitting = lambda number, value: fitted(keys[number], specs[number], value)

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

    def _number(self, key: Any) -> int:
        number = self._numbers.get(key)
        if number is None:
            known = ", ".join(map(repr, self._keys[: 2 * _SHOWN_KEYS]))
            more = ", ..." if len(self._keys) > 2 * _SHOWN_KEYS else ""
            raise KeyError(
                f"{key!r} is not a key of the SharedDict {self._name!r}; it has {known}{more}; the "
                "keys are fixed when it is made"
            )
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
        numbers = [self._number(key) for key in wanted]
        copies, _ = self._store.snapshot(numbers)
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
        whether = intact(view)
        if whether is None:
            raise TypeError(
                f"is_intact got {type(view).__name__}, which is no view of a SharedDict; pass what view() "
                "returned"
            )
        return whether

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
