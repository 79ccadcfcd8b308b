"""What goes through the socket for one object, and how it is laid out.

::

    bare    0 │ pickle
    table   1 │ table length, stream length │ table │ stream │ small pieces
    stored  2 │ segment, place, lengths     ╎ table │ stream ╎   (the right part lies in a segment)
    alone   3 │ table length │ uid, size, piece │ stream       (one array; no stream: nothing else)

*Table* is two marshalled lists: the segments (uid, size, kind) in the order of their descriptors, and
for every noted array its piece (segment or -1, lowest byte, dtype code, shape, strides, flags). *Stream* is
the pickle; it asks for the pieces in their order. A stored parcel has one descriptor more, the first,
for the segment that holds its body.

Guarantees
----------
* `Parcel.data` is at most `INLINE_MAX` bytes, whatever the object.
* A parcel can be sent any number of times; every sending lends anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ndshare._memory import Block
from ndshare.errors import TransportError

INLINE_MAX = 48 * 1024
"""Most bytes of a parcel's data; far below what the smallest default socket buffer takes."""

BARE, TABLE, STORED, ALONE = 0, 1, 2, 3
BARE_TAG = bytes((BARE,))

ALONE_HEAD = struct.Struct("<B3xI")
TABLE_HEAD = struct.Struct("<B7xQQ")
STORED_HEAD = struct.Struct("<B7xQQQQQQ")

# One piece: (segment or INLINE, offset of its lowest byte, dtype code, shape, strides or None, flags).
Piece = tuple[int, int, str | bytes, tuple[int, ...], tuple[int, ...] | None, int]
INLINE = -1
READ_ONLY = 1
RAW = 2  # not an array: the bytes of some library's PickleBuffer

COPIED_BELOW = 64 * 1024
"""Smaller by-value arrays are copied by their receiver: they would keep a whole segment from its owner."""

_NOTHING: frozenset[str] = frozenset()


class Parcel:
    """A packed object, ready to be sent.

    Attributes
    ----------
    data : bytes
        The message.
    blocks : tuple of Block or Descriptor
        Memory and open files the message refers to, one for each of its descriptors, in their order.
    needs : frozenset of str
        Names of the caller's ``__main__`` that the receiver must have (`ndshare._transport.mainspace`).
    neighbours : tuple of Block
        Further blocks of the same segments: no descriptor of their own, but lent all the same.
    nbytes_copied, nbytes_lent : int
        Bytes of arrays that were copied into the message or a segment, and that go by reference.
    """

    __slots__ = ("blocks", "data", "nbytes_copied", "nbytes_lent", "needs", "neighbours")

    def __init__(
        self,
        data: bytes,
        blocks: tuple[Block, ...] = (),
        needs: frozenset[str] = _NOTHING,
        nbytes_copied: int = 0,
        nbytes_lent: int = 0,
        neighbours: tuple[Block, ...] = (),
    ) -> None:
        self.data = data
        self.blocks = blocks
        self.needs = needs
        self.nbytes_copied = nbytes_copied
        self.nbytes_lent = nbytes_lent
        self.neighbours = neighbours

    def descriptors(self) -> list[int]:
        """Return new descriptors that hold the memory, one per block; the caller sends and closes them."""
        if not self.blocks:
            return []
        held: list[int] = []
        try:
            for block in self.blocks:
                held.append(block.lend())  # noqa: PERF401 - those made so far must be closed on failure
        except BaseException:
            close_all(held)
            raise
        # The descriptors keep the owner from reusing any part of these segments; what is still missing
        # is that freeing one of these blocks has to wait for them.
        for block in self.neighbours:
            block.mark_lent()
        return held

    def release(self) -> None:
        """Drop the references to the memory; what was sent stays with the receiver."""
        for block in (*self.blocks, *self.neighbours):
            block.release()
        self.blocks = self.neighbours = ()


def release(block: Block) -> None:
    """Drop a reference to a block, or leave that to the garbage collector.

    An exception that is under way keeps the frames, and so the memoryviews, of where it was raised.
    """
    try:  # noqa: SIM105 - twice for most messages, and in a third of the time
        block.release()
    except BufferError:
        pass


def take_descriptor(fds: list[int]) -> int:
    """Take the next descriptor of a message: the last one of the list."""
    if not fds:
        raise TransportError(
            "a message was refused",
            "it arrived without some of its descriptors",
            "raise the limit of open files (ulimit -n) or keep fewer arrays",
        )
    return fds.pop()


def handed_out(arrays: list[Any]) -> Iterator[Any]:
    """Yield the arrays of a list from its end; the list keeps none of them."""
    while arrays:
        yield arrays.pop()


def copied(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an ordinary copy with the same order of axes."""
    return array.copy("C" if array.flags.c_contiguous else "K")  # "K" zeroes the strides of an empty array


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
