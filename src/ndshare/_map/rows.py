r"""Arrays with rows per worker or per block of items: which they are, and how their rows are reduced.

Rows per worker are reduced as NumPy does. Rows per block are reduced as a fixed binary tree::

    row 0   row 1   row 2   row 3   row 4
       \     /         \     /        │
        0 + 1           2 + 3         4
            \           /            │
             (0+1) + (2+3)            4
                     \              /
                      ((0+1)+(2+3)) + 4

The tree depends on the number of rows only, and what is in a row depends on its items only: the result
has the same bits with any number of workers, in any context, whatever the timing.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows are kept up to this size if nothing is said: copying one takes 2 µs, and a share 2 ms, ...
_KEPT_ROW_MOST = 64 << 10
#: ... and arrays with rows per block, of which the caller makes a copy, up to this.
_KEPT_BLOCKS_MOST = 16 << 20


class Rows:
    """Arrays with rows per worker or per block that are alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], str, int | None, bool | None]] = {}

    def note(
        self, array: NDArray[Any], order: str, per_block: int | None, rollback: bool | None = None
    ) -> None:
        """Remember an array: its memory layout, the items per row (None: rows per worker), what was asked."""
        key = id(array)
        reference = weakref.ref(array, lambda _: self._known.pop(key, None))
        self._known[key] = reference, order, per_block, rollback

    def of(self, array: NDArray[Any]) -> tuple[str, int | None] | None:
        """Return what was noted of an array; None for any other, views included."""
        known = self._known.get(id(array))
        return known[1:3] if known is not None and known[0]() is array else None

    def all(self) -> list[NDArray[Any]]:
        """Return the arrays that are alive."""
        if not self._known:
            return []
        known = [reference() for reference, *_ in list(self._known.values())]
        return [array for array in known if array is not None]

    def per_worker(self) -> list[NDArray[Any]]:
        """Return those with rows per worker."""
        return [array for array in self.all() if (noted := self.of(array)) and noted[1] is None]

    def keeps(self, array: NDArray[Any], *, asked: bool = False) -> bool:
        """Whether the death of a worker is to take back what it has added to its row.

        Parameters
        ----------
        array : ndarray
            One that is known.
        asked : bool, optional
            Whether that holds for large rows as well, if nothing was said about them.
        """
        _, _, per_block, rollback = self._known[id(array)]
        if rollback is not None or asked:
            return rollback is not False
        if per_block is not None and array.nbytes > _KEPT_BLOCKS_MOST:
            return False
        axis = array.ndim - 1 if per_block is None and array.flags.fnc else 0
        return bool(array.nbytes // max(1, array.shape[axis]) <= _KEPT_ROW_MOST)

    def block(self) -> int:
        """Return how many items belong together, for all such arrays."""
        if not self._known:
            return 1
        return math.lcm(*(n for _, _, n, _ in list(self._known.values()) if n))


known_rows = Rows()


class Arrays:
    """Other arrays from `alloc` that are alive, and lie in memory only."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Any]] = {}

    def note(self, array: NDArray[Any]) -> None:
        """Remember an array."""
        key = id(array)
        self._known[key] = weakref.ref(array, lambda _: self._known.pop(key, None))

    def all(self) -> list[NDArray[Any]]:
        """Return those that are alive."""
        return [array for reference in list(self._known.values()) if (array := reference()) is not None]


in_memory = Arrays()


def reduce_rows(
    array: NDArray[Any],
    op: Callable[[Any, Any], Any] = np.add,
    axis: int | None = None,
    *,
    tree: bool = False,
) -> Any:
    """Combine the rows of an array into one.

    Parameters
    ----------
    array : numpy.ndarray
        One row per worker or per block of items.
    op : numpy.ufunc or callable
        A ufunc of two arguments, or a function of two rows that returns one; it may write to the first.
    axis : int, optional
        The axis of the rows. By default the first, and the last if `array` is in Fortran order: where
        ``alloc(per_worker=True)`` and ``alloc(per_block=n)`` put it.
    tree : bool
        Combine neighbours, then neighbours of the results, and so on: for rows per block, whose
        bits must not depend on the schedule.

    Returns
    -------
    numpy.ndarray or scalar
        An array of its own, without that axis; a scalar if nothing is left, as in NumPy's reductions. Its
        dtype is that of ``op.reduce``: sums of small integers are of the platform's integer.

    Raises
    ------
    TypeError
        If `op` is a ufunc of another number of arguments or results, or cannot be called.
    ValueError
        If there are no rows and `op` has no identity.

    Notes
    -----
    An array of shape (n, 1) or (1, n) is in both orders, and its first axis is taken: name the axis where
    it is known.

    Examples
    --------
    >>> import numpy as np
    >>> from ndshare._map.rows import reduce_rows
    >>> reduce_rows(np.arange(6).reshape(3, 2), tree=True)
    array([6, 9])
    """
    array = np.asarray(array)
    if isinstance(op, np.ufunc):
        if op.nin != 2 or op.nout != 1:
            raise TypeError(
                f"reduce: {op.__name__} takes {op.nin} arguments and gives {op.nout} results; a reduction "
                "needs an operation of two that gives one, such as np.add or np.maximum"
            )
    elif not callable(op):
        raise TypeError(f"reduce: op is {op!r}; a ufunc of two arguments or a function of two rows is needed")
    if array.ndim == 0:
        raise ValueError(
            "reduce: the array has no axis, so it has no rows; give one from alloc(per_worker=True)"
        )
    if axis is None:
        axis = array.ndim - 1 if array.flags.fnc else 0
    rows = np.moveaxis(array, axis, 0)
    if len(rows) == 0 and getattr(op, "identity", None) is None:
        name = getattr(op, "__name__", repr(op))
        raise ValueError(
            f"reduce: there are no rows (shape {array.shape}, axis {axis}), and {name} has no identity to "
            "return for them; reduce only if something was mapped"
        )
    if not isinstance(op, np.ufunc):
        return np.asarray(_tree(list(rows), op) if tree else _chain(rows, op))[()]
    if not tree or len(rows) == 0:
        return op.reduce(rows, axis=0)
    return _ufunc_tree(rows, op)


def _chain(rows: NDArray[Any], op: Callable[[Any, Any], Any]) -> Any:
    return functools.reduce(op, rows[1:], rows[0].copy())


def _tree(rows: list[Any], op: Callable[[Any, Any], Any]) -> Any:
    rows = [row.copy() for row in rows]  # `op` may write to its first argument
    while len(rows) > 1:
        odd = rows[-1:] if len(rows) % 2 else []
        rows = [op(left, right) for left, right in zip(rows[::2], rows[1::2], strict=False)] + odd
    return rows[0]


def _ufunc_tree(rows: NDArray[Any], op: np.ufunc) -> Any:
    dtype = op.reduce(rows[:1], axis=0).dtype  # NumPy's rule: bool and small integers are added as integers
    rows = rows.astype(dtype, copy=len(rows) == 1)  # the result is memory of its own
    while (count := len(rows)) > 1:
        pairs = op(rows[: count - 1 : 2], rows[1::2])
        rows = np.concatenate([pairs, rows[-1:]]) if count % 2 else pairs
    return rows[0]
