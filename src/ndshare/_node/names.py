"""The values of a workspace in a worker on a node: arrays of its own to write to, compared after each call.

::

    image   one memory, mapped copy-on-write     holds one large block of the caller's, or many small ones
    base    what it held when the round began    shared, never written to

    call ──► writes into images ──► changes() ──► [Change] ──► the caller merges
                                       └──► the images hold again what the bases hold

Pages that were never written to are neither compared nor held twice (`_heap.altered`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ndshare._memory import altered, decode_dtype, view_of
from ndshare._node.twins import Change, find_changes
from ndshare._node.worker import Answer, Opened, call_function
from ndshare._pickling import give
from ndshare._processes import invoke
from ndshare._transport import Bytes, open_crate

#: Compared at a time.
_PIECE_BYTES = 1 << 20
#: What has changed in a base is brought in by stretches of this size: others stay unwritten pages.
_STRETCH_BYTES = 1 << 16

Table = dict[int, tuple[int, int, int]]
"""Image, place there and size of each block, by its number."""


class Spot(NamedTuple):
    """Stands for an array in a block of the workspace's values."""

    number: int
    offset: int
    code: str | bytes
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


class Names:
    """The memory behind the names.

    Parameters
    ----------
    images : list of (ndarray of uint8, ndarray of uint8 or None)
        Memory mapped copy-on-write, and what it holds; None: zeros.
    table : dict
        Where blocks are.
    """

    def __init__(self, images: list[tuple[Bytes, Bytes | None]], table: Table) -> None:
        self._images = [image for image, _ in images]
        self._first = [base for _, base in images]
        self._bases = list(self._first)
        self._table = table
        self._round: Hashable = None
        self._written = False  # and not compared, because of Ctrl-C

    def view(self, spot: Spot) -> np.ndarray[Any, Any]:
        """Return an array."""
        image, start, _ = self._table[spot.number]
        dtype = decode_dtype(spot.code)
        return view_of(self._images[image], start + spot.offset, dtype, spot.shape, spot.strides)

    def begin(self, number: Hashable, bases: Mapping[int, Bytes | None]) -> None:
        """Bring in what the values are in a round of calls.

        Parameters
        ----------
        number : hashable
            Of the round.
        bases : mapping
            Those of the images that have not got their first ones.
        """
        if self._written:
            self.changes()
        self._written = True
        if number == self._round:
            return
        for image, first in enumerate(self._first):
            base = bases.get(image, first)
            if base is not self._bases[image]:
                _bring_in(self._images[image], base)
                self._bases[image] = base
        self._round = number

    def changes(self) -> list[Change]:
        """Return what has changed since the call began, and put it back."""
        found: list[Change] = []
        changed = [altered(image) is not False for image in self._images]
        for number, (image, start, nbytes) in self._table.items():
            if changed[image]:
                found += self._changes_of(number, image, start, start + nbytes)
        self._written = False
        return found

    def _changes_of(self, number: int, image: int, start: int, end: int) -> Iterator[Change]:
        base = self._bases[image]
        for low in range(start, end, _PIECE_BYTES):
            now = self._images[image][low : min(low + _PIECE_BYTES, end)]
            if now.size == _PIECE_BYTES and altered(now) is False:
                continue
            before = None if base is None else base[low : low + now.size]
            change = find_changes(number, low - start, now, before)
            if change is not None:
                now[:] = 0 if before is None else before
                yield change


def _bring_in(image: Bytes, base: Bytes | None) -> None:
    for low in range(0, image.size, _STRETCH_BYTES):
        now = image[low : low + _STRETCH_BYTES]
        if base is None:
            if now.any():
                now[:] = 0
        elif not np.array_equal(now, base[low : low + _STRETCH_BYTES]):
            now[:] = base[low : low + _STRETCH_BYTES]


# ---------------------------------------------------------------------- in the worker

_names: Names | None = None


Content = tuple[Opened, list[tuple[Any, Bytes | None]], Table]
"""Pickles and their arrays (what functions need; values, initializer and its arguments); images and table."""


class Give:
    """The initializer of a node's workers: opens the values, then runs the user's initializer.

    Parameters
    ----------
    content : callable
        Returns what it brings; called anew for each worker.
    called : str
        Name of the user's initializer, for messages; empty if there is none.
    """

    def __init__(self, content: Callable[[], Content], called: str) -> None:
        self.content = content
        if called:
            module, _, self.__qualname__ = called.removesuffix("()").rpartition(".")
            self.__module__ = module

    def __reduce__(self) -> Any:
        return functools.partial, (give_names, *self.content())

    def end(self) -> None:
        """Let go of the content: no worker is made any more."""
        self.content = _ended

    def __call__(self) -> None:
        raise NotImplementedError  # it is the worker that is given something


def _ended() -> Content:
    raise NotImplementedError


def give_names(crates: Opened, images: list[tuple[Bytes, Bytes | None]], table: Table) -> None:
    """Let this worker's functions find the values of a workspace."""
    global _names
    _names = Names(images, table)
    needed, content = _resolved(crates)
    open_crate(*needed)  # binds them
    values, initializer, initargs = open_crate(*content)
    give(values)
    if initializer is not None:
        invoke(initializer, initargs, {})
    _names.changes()


def call_named(number: Hashable, bases: Mapping[int, Bytes | None], crates: Opened) -> Answer:
    """Call a function that finds the names; the answer has what it has written there, too."""
    assert _names is not None
    _names.begin(number, bases)
    answer = call_function(_resolved(crates), invoke)
    return answer._replace(changes=tuple(_names.changes()))


def _resolved(crates: Opened) -> Opened:
    names = _names
    assert names is not None
    return [
        (
            stream,
            [(names.view(array) if isinstance(array, Spot) else array, flags) for array, flags in arrays],
        )
        for stream, arrays in crates
    ]
