"""What the board of a crew says to whoever looks from outside, as ``ndshare top`` does.

Its processes do nothing for that but the stores into shared memory that they make anyway, or once a message.

Not guaranteed
--------------
- That what is read belongs to one moment: processes go on meanwhile. Nothing is decided by it.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ndshare._processes import frames

_NUMBER = struct.Struct("<Q")


class Row(NamedTuple):
    """A worker as its board shows it.

    Parameters
    ----------
    pid
        Its process.
    tasks
        How many it has looked at.
    began
        When it began the one that it is at, as of `time.monotonic`; None if it waits for the next.
    name
        The function that it runs, or has run last; empty before the first.
    """

    pid: int
    tasks: int
    began: float | None
    name: str


class MapNote(NamedTuple):
    """A map that runs in workers of a crew.

    Parameters
    ----------
    began
        When, as of `time.monotonic`.
    file
        Device and inode of the segment that its board lies in.
    offset, workers, items
        Where there, and how large it is.
    name
        The kernel.
    """

    began: float
    file: tuple[int, int]
    offset: int
    workers: int
    items: int
    name: str


def board(fd: int) -> tuple[list[Row], list[MapNote]]:
    """Read the board of a crew from its file, which may be of any process.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is no board.
    """
    content = os.pread(fd, frames.BOARD_BYTES, 0)
    if len(content) < frames.BOARD_BYTES:
        raise ValueError("not the board of a crew")
    rows = [_row(content, number * frames.ROW_BYTES) for number in range(frames.BOARD_ROWS)]
    notes = [_note(content, number) for number in range(frames.MAP_NOTES)]
    return [row for row in rows if row.pid], [note for note in notes if note.began]


def _row(content: bytes, at: int) -> Row:
    pid, seen, began, reached = [
        _NUMBER.unpack_from(content, at + field)[0]
        for field in (frames.PID_AT, frames.SEEN_AT, frames.BEGAN_AT, frames.REACHED_AT)
    ]
    name = content[at + frames.NAME_AT : at + frames.NAME_AT + frames.NAME_BYTES]
    return Row(pid, seen, began / 1e9 if seen != reached else None, _text(name))


def _note(content: bytes, number: int) -> MapNote:
    at = frames.MAP_NOTES_AT + number * frames.MAP_NOTE.size
    began, device, inode, offset, workers, items, name = frames.MAP_NOTE.unpack_from(content, at)
    return MapNote(began / 1e9, (device, inode), offset, workers, items, _text(name))


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="replace")
