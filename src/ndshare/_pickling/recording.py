"""What is noted of an object when it is pickled, instead of being in the pickle.

::

    pickle bytes ──► parts      ... NEXT_BUFFER ... NEXT_BUFFER ...
                                     │               │
    notes ───────────────────────► an array to copy, a place in a segment, an open file

An open file travels with a message as references to memory do: a reducer puts a `Descriptor` where it needs
one in the other process, the message carries a duplicate, and what arrives is a `Descriptor` of the
receiver's own.
"""

from __future__ import annotations

import math
import os
import pickle
from typing import Any, NamedTuple, Protocol

import numpy as np

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


class Places(Protocol):
    """Who knows of copies of ordinary arrays that lie in shared memory already."""

    def place(self, array: np.ndarray[Any, Any], /) -> Placed | None:
        """Say where the content of an array lies; None if it is to be copied."""


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


FILE = -1
"""In place of a segment's kind: the descriptor is no segment."""


class Descriptor:
    """An open file on its way to another process.

    Has what a message asks of a block of memory.

    Parameters
    ----------
    fd : int
        The open file.
    owner : object
        Who closes it, kept alive. None: this object, unless somebody takes it.
    """

    __slots__ = ("_fd", "_owner")

    uid = size = offset = 0
    kind = FILE

    def __init__(self, fd: int, owner: Any = None) -> None:
        self._fd = fd
        self._owner = owner

    def take(self) -> int:
        """Return the file, which is the caller's to close from now on."""
        fd, self._fd = self._fd, -1
        return fd

    def lend(self) -> int:
        """Return a duplicate."""
        return os.dup(self._fd)

    def mark_lent(self) -> None:
        """Do nothing: only memory that may be reused needs it."""

    def release(self) -> None:
        """Do nothing: memory is given up so, and a file may be on its way more than once."""

    def raw(self) -> memoryview:
        """Return bytes that tell this file from others, as a `pickle.PickleBuffer` does with its own."""
        status = os.fstat(self._fd)
        return memoryview(b"%d:%d" % (status.st_dev, status.st_ino))

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        if self._owner is None and self._fd >= 0:
            close(self._fd)  # when the interpreter ends, modules may be empty
            self._fd = -1
