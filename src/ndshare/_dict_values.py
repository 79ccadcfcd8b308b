"""What may be stored under a key: casting and broadcasting as NumPy does them, before anything is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from ndshare import _dict_layout, _dict_snapshot
from ndshare._dict import Store
from ndshare._dict_layout import Spec
from ndshare.errors import KeyLockError, KeyTimeoutError

Array = np.ndarray[Any, Any]


def initial(arrays: Mapping[Any, Any]) -> dict[Hashable, Array]:
    """Return the values of a new dict as contiguous arrays."""
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"a SharedDict is made of a mapping from keys to arrays; got {type(arrays).__name__}: "
            "use dict(enumerate(arrays)) for a list"
        )
    # `order="C"` with asarray keeps 0-d arrays as they are; ascontiguousarray does not.
    return {key: np.asarray(value, order="C") for key, value in arrays.items()}


def specs_of(arrays: Mapping[Hashable, Array]) -> dict[Hashable, Spec]:
    """Return shape and dtype of each array."""
    return {key: Spec(value.shape, value.dtype) for key, value in arrays.items()}


def fitting(store: Store, number: int, key: Hashable, spec: Spec, value: Any) -> Array:
    """Return `value` as an array that can be stored under a key byte by byte.

    Raises
    ------
    TypeError
        If it cannot be cast under the rule ``same_kind``.
    ValueError
        If it cannot be broadcast to the shape.
    """
    if store.fits(number, value):
        array: Array = value
        return array
    if value is None:
        raise TypeError(
            f"key {key!r} holds {spec.dtype} of shape {spec.shape} and cannot take None; an update function "
            "has to return the new value"
        )
    target = np.empty(spec.shape, spec.dtype)
    try:
        np.copyto(target, value, casting="same_kind")
    except (TypeError, ValueError) as error:
        error.add_note(f"key {key!r} holds {spec.dtype} of shape {spec.shape}; nothing was written")
        raise
    return target


def names(keys: Iterable[Hashable], numbers: Iterable[int]) -> str:
    """Return the keys with these numbers as text."""
    known = list(keys)
    return ", ".join(repr(known[number]) for number in numbers)


def timed_out(
    keys: Iterable[Hashable], failed: tuple[int, int], timeout: float, alive: bool
) -> KeyTimeoutError:
    """Return the error for a lock that did not come in time."""
    number, holder = failed
    who = f"process {holder} has it" if alive else "its holder has just changed or ended"
    return KeyTimeoutError(f"the lock of key {names(keys, [number])}", timeout, who)


def check_order(keys: Iterable[Hashable], wanted: list[int], held: list[int]) -> None:
    """Refuse a nesting of locks that could deadlock.

    Raises
    ------
    KeyLockError
        If a key is held already, or comes before one that is.
    """
    if not held or min(wanted) > max(held):
        return
    known = list(keys)
    again = [number for number in wanted if number in held]
    if again:
        remedy = "use the array that this thread has of it, or leave the block first"
        raise KeyLockError(names(known, again), names(known, held), remedy)
    remedy = "nest in the order of keys(), or lock them together with locked(key, other, ...)"
    raise KeyLockError(names(known, wanted), names(known, held), remedy)


def own_keys(written: list[Hashable], wanted: Mapping[Hashable, Any]) -> list[Hashable]:
    """Return the keys of a file in its order, as whoever wants them calls them."""
    mine = dict(zip(_dict_layout.written_keys(wanted), wanted, strict=True))
    return [mine[key] for key in written]


def check_same(what: str, have: dict[Hashable, Spec], wanted: Mapping[Hashable, Array]) -> None:
    names = _dict_layout.written_keys(wanted)
    asked = dict(zip(names, specs_of(wanted).values(), strict=True))
    found = list(_dict_layout.differences(have, asked))
    if found:
        more = f" and {len(found) - 1} more differences" if len(found) > 1 else ""
        raise ValueError(
            f"{what} has other arrays than those asked for: {found[0]}{more}; use the same keys, dtypes and "
            "shapes, or another name or path"
        )


def first_values(
    wanted: dict[Hashable, Array] | None, path: str | None
) -> tuple[list[Hashable], dict[Hashable, Array]]:
    """Return the keys of a new dict as its maker calls them, and the values by the keys of the file."""
    saved = None if path is None else _dict_snapshot.load(path)
    if saved is not None:
        if wanted is None:
            return list(saved), saved
        check_same(f"the snapshot {path}", specs_of(saved), wanted)
        return own_keys(list(saved), wanted), saved
    if wanted is None:
        where = "no path was given" if path is None else f"there is no snapshot at {path}"
        raise TypeError(f"SharedDict got no arrays, and {where}; pass a mapping from keys to arrays")
    return list(wanted), dict(zip(_dict_layout.written_keys(wanted), wanted.values(), strict=True))
