"""Open files that travel with a message, as references to memory do.

A reducer puts a `Descriptor` where it needs an open file in the other process. The message then carries
a duplicate; what arrives is a `Descriptor` of the receiver's own.
"""

from __future__ import annotations

import os
from typing import Any

FILE = -1
"""In place of a segment's kind: the descriptor is no segment."""


class Descriptor:
    """An open file on its way to another process.

    Has what `ndshare._transport.parcel.Parcel` asks of a block.

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
        """Do nothing: `Parcel.release` gives up memory, and a file may be on its way more than once."""

    def raw(self) -> memoryview:
        """Return bytes that tell this file from others, as a `pickle.PickleBuffer` does with its own."""
        status = os.fstat(self._fd)
        return memoryview(b"%d:%d" % (status.st_dev, status.st_ino))

    def __del__(self) -> None:
        if self._owner is None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
