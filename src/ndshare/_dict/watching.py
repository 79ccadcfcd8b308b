"""What the dicts of this user look like to whoever does not use them, as ``ndshare top`` does.

The cells are read, nothing is locked, and nobody sees it: a dict is not in use because somebody looks at it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from ndshare._dict import files
from ndshare._dict._store import CELL_BYTES
from ndshare._system import is_byte_locked
from ndshare.errors import LayoutError

# commit, settled; begun, done, link, version of both slots; two seals; wake, waiters, freed, lock waiters,
# holder, slow; wanted. `_store/dict.h` is the other half.
_CELL = struct.Struct("<2Q 4Q 4Q 2Q 6I Q")
_LOCKS = 1 << 60  # byte of the file that is locked by who has the first key
#: Of a dict with more keys only those are looked at that come first.
_KEYS_MOST = 4096


class KeyState(NamedTuple):
    """A key of a dict.

    Parameters
    ----------
    key
        Which one.
    version
        How often it was written.
    holder
        Process that has its lock, as far as is known; 0 for none.
    waiting
        How many threads wait for the lock.
    watching
        How many threads wait for a new value.
    """

    key: Hashable
    version: int
    holder: int
    waiting: int
    watching: int


class DictState(NamedTuple):
    """A dict: what `infos` says of it, and its keys."""

    info: files.DictInfo
    keys: tuple[KeyState, ...]


def states() -> list[DictState]:
    """Return the state of each SharedDict of this user, by name."""
    found = []
    for info in files.infos():
        with contextlib.suppress(OSError, LayoutError):
            file = files.file_of(info.name)
            fd = files.open_file(file)
            try:
                layout = files.layout_of(fd, file)
                keys = list(layout.specs)[:_KEYS_MOST]
                cells = os.pread(fd, len(keys) * CELL_BYTES, layout.cells)
                found.append(DictState(info, tuple(_keys(fd, keys, cells))))
            finally:
                os.close(fd)
    return found


def _keys(fd: int, keys: list[Hashable], cells: bytes) -> Iterator[KeyState]:
    for number, key in enumerate(keys):
        fields = _CELL.unpack_from(cells, number * CELL_BYTES)
        slots, (_, watching, _, waiting, holder, _, _) = fields[2:10], fields[12:]
        version = max([slots[at + 3] for at in (0, 4) if slots[at + 1]], default=0)
        if holder and not is_byte_locked(fd, _LOCKS + number):
            holder = 0  # it has let go, and nobody came after it
        yield KeyState(key, version, holder, waiting, watching)
