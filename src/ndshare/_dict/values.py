"""What may be stored under a key: casting and broadcasting as NumPy does them, before anything is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ndshare._dict import directory as _dict_directory
from ndshare._dict import snapshot as _dict_snapshot
from ndshare._dict._store import Store
from ndshare._dict.directory import Spec
from ndshare._system import is_alive
from ndshare.errors import KeyLockError, KeyTimeoutError

if TYPE_CHECKING:
    from ndshare._dict._store import Failure

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
    known: dict[tuple[tuple[int, ...], np.dtype[Any]], Spec] = {}  # most keys are like others
    specs = {}
    for key, value in arrays.items():
        like = value.shape, value.dtype
        specs[key] = known.get(like) or known.setdefault(like, Spec(*like))
    return specs


def fitting(store: Store, key: Hashable, number: int, spec: Spec, value: Any) -> Array:
    """Return `value` as an array that can be stored under a key byte by byte."""
    if store.fits(number, value):
        array: Array = value
        return array
    return fitted(key, spec, value)


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
        error.add_note(f"key {key!r} holds {spec.dtype} of shape {spec.shape}; nothing was written")
        raise
    return target


def names(keys: Iterable[Hashable], numbers: Iterable[int]) -> str:
    """Return the keys with these numbers as text."""
    known = list(keys)
    return ", ".join(repr(known[number]) for number in numbers)


def refused(
    keys: Iterable[Hashable], wanted: Sequence[int], failure: Failure, timeout: float
) -> KeyLockError | KeyTimeoutError:
    """Return the error that says why a thread did not get the locks it wanted."""
    reason, number, holder, held = failure
    known = list(keys)
    if reason == "order":
        again = [number for number in wanted if number in held]
        if again:
            remedy = "use the array that this thread has of it, or leave the block first"
            return KeyLockError(names(known, again), names(known, held), remedy)
        remedy = "nest in the order of keys(), or lock them together with locked(key, other, ...)"
        return KeyLockError(names(known, wanted), names(known, held), remedy)
    if reason == "deadlock":
        mine = names(known, held) or "keys of other dicts"
        remedy = (
            f"process {holder} has it and waits for what this thread has; nest dicts in one order everywhere"
        )
        return KeyLockError(names(known, [number]), mine, remedy)
    alive = holder > 0 and is_alive(holder)
    who = f"process {holder} has it" if alive else "its holder has just changed or ended"
    return KeyTimeoutError(f"the lock of key {names(known, [number])}", timeout, who)


def own_keys(written: list[Hashable], wanted: Mapping[Hashable, Any]) -> list[Hashable]:
    """Return the keys of a file in its order, as whoever wants them calls them."""
    mine = dict(zip(_dict_directory.written_keys(wanted), wanted, strict=True))
    return [mine[key] for key in written]


def check_same(what: str, have: dict[Hashable, Spec], wanted: Mapping[Hashable, Array]) -> None:
    names = _dict_directory.written_keys(wanted)
    asked = dict(zip(names, specs_of(wanted).values(), strict=True))
    found = list(_dict_directory.differences(have, asked))
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
    return list(wanted), dict(zip(_dict_directory.written_keys(wanted), wanted.values(), strict=True))
