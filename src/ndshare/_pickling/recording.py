"""What is noted of an object when it is pickled, instead of being in the pickle.

::

    pickle bytes ──► parts      ... NEXT_BUFFER ... NEXT_BUFFER ...
                                     │               │
    notes ───────────────────────► an array to copy, a place in a segment, an open file
"""

from __future__ import annotations

import math
import pickle
from typing import Any, NamedTuple

from ndshare._memory import Block

SLOT = pickle.PickleBuffer(bytearray(1))
"""What stands for a note in the pickle; writable: a read-only one would be followed by another opcode."""


class Placed(NamedTuple):
    """A noted array that lies in a segment; the array itself is not kept alive."""

    block: Block
    offset: int  # of its lowest byte, within the block
    dtype: str | bytes
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    writeable: bool
    private: bool = False  # the receiver maps it copy-on-write: an ordinary array

    @property
    def nbytes(self) -> int:
        """Bytes of its items."""
        return math.prod(self.shape, start=self.itemsize)


class CopyOnWrite:
    """Stands for an array in a message: its receivers map the memory copy-on-write, nothing is copied.

    Parameters
    ----------
    note : Placed
        Where the array lies, `private`. Nobody may write there while the message exists.
    """

    __slots__ = ("note",)

    def __init__(self, note: Placed) -> None:
        self.note = note


class Recording:
    """One pickled object.

    Attributes
    ----------
    parts : tuple of bytes
        The pickle.
    notes : tuple
        What goes out of band, in the order of the pickle: `numpy.ndarray`, `Placed`,
        `pickle.PickleBuffer`.
    needs : frozenset of str
        Names of ``__main__`` it refers to.
    """

    __slots__ = ("needs", "notes", "parts")

    def __init__(
        self, parts: tuple[bytes, ...], notes: tuple[Any, ...] = (), needs: frozenset[str] = frozenset()
    ) -> None:
        self.parts = parts
        self.notes = notes
        self.needs = needs
