"""How an object is compared with what it was: by its bytes, or element by element.

`watch_array` and `watch_container` note an object and return a question: was it changed since?
"""

from __future__ import annotations

import array as arrays
import collections
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ndshare._memory import altered, detach, digest, inherited, rewritten, span

_SMALL = 1 << 12  # bytes; so little is copied sooner than looked at
_COPY_MAX = 1 << 20  # bytes; of larger arrays 128 bits are kept instead of a copy
_DETACH_MIN = 1 << 20  # bytes; from here on mapping anew costs less than looking at everything

_TEXT = "T"  # of StringDType

Question = Callable[[], bool]

BUFFERS = (bytearray, arrays.array)
"""Containers that are compared by their bytes."""


class Forker:
    """The memory of the process that this one was forked from: arrays of before are still there as they were.

    Parameters
    ----------
    fd : int
        Of its ``/proc/self/mem``, opened there.

    Notes
    -----
    To be made in the child. Only pages that the child has to itself are compared, so that an array which
    nobody wrote to costs nothing. Where the forker has changed an array meanwhile, from another thread, pages
    that both have written to differ, and with one child those that the forker has written to.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._forked = False
        os.register_at_fork(before=self._before_fork)

    def _before_fork(self) -> None:
        self._forked = True

    def watch(self, array: np.ndarray[Any, Any]) -> Question | None:
        """Return whether an array was changed, as a question; None if it is not, or no more, the forker's."""
        edges = inherited(array)
        return None if edges is None else functools.partial(self._differs, array, edges)

    def _differs(self, array: np.ndarray[Any, Any], edges: bytes) -> bool:
        try:
            return rewritten(array, edges, self._fd, self._forked)
        except OSError:  # it is no more, or has let the memory go: then nobody can miss what was written
            return False


def watch_array(array: np.ndarray[Any, Any], forker: Forker | None = None) -> Question:
    """Note the bytes of an array.

    Parameters
    ----------
    array : numpy.ndarray
        Of any layout and dtype; of objects the identity is compared, not their content.
    forker : Forker, optional
        In a child of a fork: who has the array, too.

    Returns
    -------
    callable
        Tells whether any byte of it is another one now; those between the fields of a structure are nobody's.
    """
    by_value = array.dtype.names is not None or array.dtype.char == _TEXT
    if array.nbytes <= (_COPY_MAX if by_value else _SMALL):
        model = array.copy()
        return lambda: not _equal(array, model)
    dense = span(array.shape, array.strides, array.itemsize) == array.nbytes
    if dense and not array.dtype.hasobject:
        before = altered(array)
        if before is None and array.nbytes >= _DETACH_MIN and detach(array):
            before = altered(array)
        if before is False:  # else it was written to before: the file is no picture of it
            return lambda: bool(altered(array))
        if array.nbytes > _COPY_MAX:
            if forker is not None and (question := forker.watch(array)) is not None:
                return question
            kept_bits = digest(array)
            return lambda: digest(array) != kept_bits
    kept = array.copy()  # of objects the pointers are compared; the copy keeps them alive
    return lambda: not _equal(array, kept)


def _equal(array: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> bool:
    """Tell whether an array has the bytes of its copy, as far as they mean anything."""
    if array.dtype.names is not None:  # a copy has other bytes between the fields
        return all(_equal(array[name], kept[name]) for name in array.dtype.names)
    if array.dtype.char == _TEXT:  # the bytes say where the text lies
        return not _differ(array.ravel().tolist(), kept.ravel().tolist())
    return bool(array.tobytes() == kept.tobytes())


def watch_container(value: Any) -> Question:
    """Note the elements of a list, deque, dict, set, bytearray or `array.array`.

    Returns
    -------
    callable
        Tells whether elements came, went or were replaced by others; what is inside of them is not looked at.
    """
    if isinstance(value, BUFFERS):
        return functools.partial(_buffer_differs, value, bytes(value))
    if isinstance(value, dict):
        return functools.partial(_dict_differs, value, elements(value), list(dict.values(value)))
    return functools.partial(
        _set_differs if isinstance(value, set) else _items_differ, value, elements(value)
    )


def is_table(kind: type) -> bool:
    """Tell whether a class is a table or column of pandas."""
    frame = getattr(sys.modules.get("pandas.core.generic"), "NDFrame", None)
    return frame is not None and issubclass(kind, frame)


def watch_table(table: Any) -> Question:
    """Note the labels of a table of pandas, and which arrays it is made of; their bytes are theirs.

    Returns
    -------
    callable
        Tells whether rows or columns came, went, were named anew or replaced by others of another content.
    """
    axes, names, blocks = table.axes, _names(table), _blocks(table)
    texts = [getattr(values, "_pa_array", None) for values, _ in blocks]  # of Arrow; replaced as a whole

    def differs() -> bool:
        if not all(map(_same_labels, axes, table.axes)) or _names(table) != names:
            return True
        for (values, _), text in zip(blocks, texts, strict=True):
            if text is not None and values._pa_array is not text and not values._pa_array.equals(text):
                return True
        now = _blocks(table)
        if len(now) == len(blocks) and all(
            new is old for (new, _), (old, _) in zip(now, blocks, strict=True)
        ):
            return False
        series = sys.modules["pandas"].Series  # they may lie together in other ways than before
        was, is_now = _columns(blocks), _columns(now)
        return was.keys() != is_now.keys() or not all(
            series(old).equals(series(is_now[number])) for number, old in was.items()
        )

    return differs


def _blocks(table: Any) -> list[tuple[Any, list[int]]]:
    return [(block.values, list(block.mgr_locs)) for block in table._mgr.blocks]


def _columns(blocks: list[tuple[Any, list[int]]]) -> dict[int, Any]:
    return {
        number: values[place] if values.ndim == 2 else values
        for values, numbers in blocks
        for place, number in enumerate(numbers)
    }


def _names(table: Any) -> list[Any]:
    return [getattr(table, "name", None), *(list(axis.names) for axis in table.axes)]


def _same_labels(old: Any, new: Any) -> bool:
    return old is new or (len(old) == len(new) and bool(old.equals(new)))


def hidden_arrays(table: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the arrays behind dates, texts and categories in a table of pandas, which are no attributes."""
    for values, _ in _blocks(table):
        if isinstance(array := getattr(values, "_ndarray", None), np.ndarray):
            yield array


def elements(value: Any) -> list[Any]:
    """Return the elements of a container, or keys of a dict, whatever a subclass makes of iteration."""
    base = next(base for base in (list, tuple, dict, set, collections.deque) if isinstance(value, base))
    return list(base.__iter__(value))


def same(old: Any, new: Any) -> bool:
    """Tell whether two objects are the same, or equal so that nobody could tell them apart."""
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, np.ndarray):
        if old.shape != new.shape or old.dtype != new.dtype:
            return False
        return _equal(new, old)
    try:
        return bool(old == new) or bool(old != old and new != new)  # NaN
    except Exception:
        return False


def _items_differ(value: Any, kept: list[Any]) -> bool:
    now = value if type(value) is list else elements(value)
    return _differ(now, kept)


def _differ(now: list[Any], kept: list[Any]) -> bool:
    if len(now) != len(kept):
        return True
    try:
        equal = now == kept  # in C, and by identity first
    except Exception:  # an element's __eq__ raised, as that of arrays does: one by one, then
        equal = False
    return not equal and not all(map(same, kept, now))


def _dict_differs(value: dict[Any, Any], keys: list[Any], contents: list[Any]) -> bool:
    return _differ(elements(value), keys) or _differ(list(dict.values(value)), contents)


def _set_differs(value: set[Any], kept: list[Any]) -> bool:
    return set(map(id, elements(value))) != set(map(id, kept))


def _buffer_differs(value: Any, kept: bytes) -> bool:
    return bytes(value) != kept
