"""What the ledger of a crew says to whoever looks from outside, as ``ndshare top`` does.

The other half of this layout is `_heap/ledger.c`.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

_LINE = struct.Struct("<9Q56x")


class HeapFigures(NamedTuple):
    """Segments of a process, in bytes.

    Parameters
    ----------
    own
        Of its own making: in use, idle and lent.
    idle
        Kept warm for the next array.
    lent
        Given up there: with another process, or on their way.
    held, held_by_value
        Of other processes, in use there; and those of it that are arguments and results.
    cached
        Of other processes, kept mapped for the next message.
    shared
        Of its own making, shared arrays with a segment to themselves.
    """

    own: int
    idle: int
    lent: int
    held: int
    held_by_value: int
    cached: int
    shared: int


def ledger(fd: int) -> dict[int, HeapFigures]:
    """Read the ledger of a crew from its file; returns the figures by process.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    found = {}
    for line in _LINE.iter_unpack(os.pread(fd, os.fstat(fd).st_size, 0)):
        _, own, pid, *figures = line
        if pid:
            found[pid] = HeapFigures(own, *figures)
    return found
