"""SHMArrays on ndshare: a dict of arrays that several processes read and update, for Python 3.

::

    SHMArrays(d)             ndshare.SharedDict of the arrays, by their positions
    SHMArrays(d, keys)       the same one, in another process
    update_arrays(new, f)    partition by partition, each under its locks: updaters pipeline

A program says ``from ndshare.compat.SHMArrays import SHMArrays``.

References
----------
SHMArrays, https://github.com/mharradon/SHMArrays
"""

from __future__ import annotations

import secrets
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

import ndshare

# `import *` gave what the original had imported, too.
__all__ = ["OrderedDict", "SHMArrays", "mem_keys", "np", "partition_sizes", "split_dicts", "var_spec"]


def partition_sizes(sizes: Any, min_size: int = 20000) -> list[np.ndarray[Any, Any]]:
    """Return how arrays are grouped: indices, from the largest down, no group above the largest array.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of elements.
    min_size : int, optional
        All are one group if none has so many.

    Returns
    -------
    list of ndarray of int

    Examples
    --------
    >>> [part.tolist() for part in partition_sizes([30000, 10000, 25000, 4000, 100])]
    [[0], [2], [1, 3, 4]]
    """
    sizes = np.asarray(sizes)
    order = np.argsort(sizes, kind="stable")[::-1]
    if not order.size or sizes[order[0]] < min_size:
        return [order]
    largest, parts = sizes[order[0]], []
    while order.size:
        fitting = max(1, int(np.searchsorted(np.cumsum(sizes[order]), largest, side="right")))
        parts.append(order[:fitting])
        order = order[fitting:]
    return parts


def split_dicts(ordered_dict: Mapping[Any, Any], partitioning: Sequence[Any]) -> list[OrderedDict[Any, Any]]:
    """Return one dict per group of indices."""
    pairs = list(ordered_dict.items())
    return [OrderedDict(pairs[i] for i in part) for part in partitioning]


def _holders(made: Any) -> int:
    """Return how many references there are, those of the calls on the way here included."""
    return sys.getrefcount(made)


def _holders_of_own() -> int:
    made = np.empty(0)
    return _holders(made)


#: What `_holders` says of an array that only a variable of its caller has: versions of Python differ.
_OWN = _holders_of_own()


def _is_finished(made: Any, dtype: np.dtype[Any]) -> bool:
    """Tell whether an object is a plain writable array of this dtype, with memory of its own."""
    return type(made) is np.ndarray and made.dtype == dtype and made.base is None and made.flags.writeable


class mem_keys(NamedTuple):  # noqa: N801 - SHMArrays' word, as the next one
    """What a partition is found by."""

    memory_key: int
    semaphore_key: int


class var_spec(NamedTuple):  # noqa: N801
    """What an array is."""

    size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Arrays = OrderedDict[Any, np.ndarray[Any, Any]]


def _average(new: Any, old: Any) -> Any:
    return 0.1 * new + 0.9 * old


class SHMArrays:
    """Arrays in shared memory, each under its key.

    Parameters
    ----------
    param_dict : mapping of hashable to numpy.ndarray
        First values. With `keys`, only shapes and dtypes count.
    keys : list of mem_keys, optional
        What `get_keys` returned where the arrays were made; it has to be open there still.
    store_dtype : dtype-like, optional
        Kept as an attribute only: each array is stored in its own dtype.

    Attributes
    ----------
    specs : OrderedDict
        Key to ``var_spec(size, shape, dtype)``.
    partitioning : list of ndarray of int
        Indices of the arrays that are updated together.
    total_size : int
        Bytes of all elements in `store_dtype`.
    store_dtype : numpy.dtype
        As given, or that of the first array.
    """

    def __init__(self, param_dict: Mapping[Any, Any], keys: Any = None, store_dtype: Any = None) -> None:
        arrays = OrderedDict((key, np.asarray(value)) for key, value in param_dict.items())
        self.specs = OrderedDict((k, var_spec(a.size, a.shape, a.dtype)) for k, a in arrays.items())
        first = next(iter(arrays.values())).dtype if store_dtype is None else store_dtype
        self.store_dtype = np.dtype(first)
        self.total_size = sum(a.size for a in arrays.values()) * self.store_dtype.itemsize
        self.partitioning = partition_sizes([a.size for a in arrays.values()])
        self._numbers: dict[Hashable, int] = {key: number for number, key in enumerate(arrays)}
        if keys is None:
            self._dict, memory_key = _make(dict(enumerate(arrays.values())))
            keys = [mem_keys(memory_key, number) for number in range(len(self.partitioning))]
        else:
            self._dict = ndshare.SharedDict.attach(_name(keys[0].memory_key))
            self._check_equal()
        self.keys = list(keys)

    def _check_equal(self) -> None:
        there = [shape for shape, _ in self._dict.specs.values()]
        here = [spec.shape for spec in self.specs.values()]
        if there != here:
            self._dict.close()
            raise ValueError(
                f"SHMArrays: the arrays under these keys have the shapes {there}, param_dict has {here}; "
                "they have to be the same, in the same order"
            )

    def get_keys(self) -> list[Any]:
        """Return what another process needs to attach, one `mem_keys` of two int per partition."""
        return self.keys

    def write_arrays(self, param_dict: Mapping[Any, Any]) -> None:
        """Store arrays by their keys, all of them at one instant."""
        self._dict.write({self._numbers[key]: value for key, value in param_dict.items()}, atomic=True)

    def read_arrays(self, _ignored: object = None) -> Arrays:
        """Return private copies of all arrays, of one instant; any argument is ignored."""
        values = self._dict.read().values()
        pairs = zip(self.specs.items(), values, strict=True)
        return OrderedDict((key, a.astype(spec.dtype, copy=False)) for (key, spec), a in pairs)

    def add_updates(self, diff_dict: Mapping[Any, Any]) -> Arrays:
        """Add to the arrays; see `update_arrays`."""
        return self.update_arrays(diff_dict, lambda new, old: new + old)

    def update_arrays(
        self, new_val_dict: Mapping[Any, Any], update_func: Callable[[Any, Any], Any] = _average
    ) -> Arrays:
        """Replace arrays by a function of them.

        Parameters
        ----------
        new_val_dict : mapping
            New values by key; some of the keys are enough.
        update_func : callable, optional
            Called as ``update_func(new, old)`` for each, while nobody else changes them. The result is cast
            to the dtype of `new`, stored and returned. By default ``0.1 * new + 0.9 * old``.

        Returns
        -------
        OrderedDict
            Of private arrays, in the order of the keys.

        Notes
        -----
        The arrays of a partition change at one instant. An error leaves its partition as it was. Of each
        array one copy is made for `update_func` and one into shared memory; its result is copied only if
        somebody else has it, or its dtype is another.
        """
        given = {self._numbers[key]: np.asarray(value) for key, value in new_val_dict.items()}
        results: dict[int, np.ndarray[Any, Any]] = {}
        others: dict[int, np.ndarray[Any, Any]] = {}  # of another dtype or shape than what is stored

        def update(number: int, old: Any) -> Any:
            new, shape, dtype = given[number], old.shape, old.dtype
            # Views only where they are needed: what has none is the caller's own as it is.
            if old.dtype != new.dtype:
                old = old.astype(new.dtype)
            if shape != new.shape:
                old = old.reshape(new.shape)
            made = update_func(new, old)
            del old
            if _holders(made) > _OWN or not _is_finished(made, new.dtype):
                made = np.array(made, new.dtype)  # the caller's own, whoever has the other
            if made.dtype == dtype and made.shape == shape:
                return made  # the dict gives it to the caller
            others[number] = made
            return made if made.shape == shape else made.reshape(shape)

        for part in self.partitioning:
            numbers = sorted(set(part.tolist()) & set(given))
            results |= self._dict.update({number: number for number in numbers}, update, atomic=True) | others
        return OrderedDict(
            (key, results[number]) for key, number in self._numbers.items() if number in results
        )

    def close(self) -> None:
        """Give the arrays up in this process; the last one who does removes them."""
        self._dict.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _name(memory_key: int) -> str:
    return f"SHMArrays-{memory_key}"


def _make(arrays: dict[int, Any]) -> tuple[ndshare.SharedDict, int]:
    while True:
        memory_key = secrets.randbits(31)
        try:
            return ndshare.SharedDict(arrays, _name(memory_key)), memory_key
        except FileExistsError:
            continue
