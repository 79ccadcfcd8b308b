"""What the file of a `SharedDict` begins with: a header and a directory that says everything else.

::

    header      magic, format, sizes, digest of the rest of the header and of the directory
    directory   JSON: keys, dtypes, shapes, path of the snapshot. No offsets: they follow from the shapes
    cells       one per key, see `_dict/dict.h`
    data        two slots per key

Guarantees
----------
* No pickle: reading a file runs no code of its maker.
* Whatever the bytes are, the outcome is a `Layout` that lies within the file, or a `LayoutError`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import struct
from collections.abc import Hashable
from typing import Any, Final

import numpy as np

from ndshare._dict._store import CELL_BYTES, LARGE_BYTES, MAX_KEYS
from ndshare._dict.directory import Spec, decode_directory, encode_directory
from ndshare.errors import LayoutError

MAGIC: Final = b"NDSHDICT"
FORMAT: Final = 1
HEADER_BYTES: Final = 128
_SLOT_ALIGNMENT: Final = 64
_DIGEST_BYTES: Final = 16
_HEADER: Final = struct.Struct(f"<8sIIQQQ{_DIGEST_BYTES}s")
_PERSISTENT: Final = struct.Struct("<I")
_PERSISTENT_OFFSET: Final = 64


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything is in a file.

    Parameters
    ----------
    specs
        One per key, in the order of the file.
    created
        Time of creation, seconds since the epoch.
    path
        Where snapshots go, or None.
    cells, data, size
        Byte offsets of the cells and of the slots, and of the end.
    """

    specs: dict[Hashable, Spec]
    created: float
    path: str | None
    cells: int
    data: int
    size: int

    @property
    def entries(self) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        """What a `Store` wants to know of each key."""
        return [(spec.dtype, spec.shape) for spec in self.specs.values()]


def plan(specs: dict[Hashable, Spec], directory_bytes: int, created: float, path: str | None) -> Layout:
    """Return where everything goes for a directory of that length."""
    cells = _up(HEADER_BYTES + directory_bytes, CELL_BYTES)
    data = _up(cells + CELL_BYTES * len(specs), _SLOT_ALIGNMENT)
    size = data
    room: dict[int, tuple[int, int]] = {}  # by the identity of specs, which many keys have in common
    for spec in specs.values():
        found = room.get(id(spec))
        if found is None:
            alignment = _SLOT_ALIGNMENT if spec.nbytes < LARGE_BYTES else mmap.PAGESIZE
            found = room[id(spec)] = alignment, 2 * _up(spec.nbytes, alignment)
        size = -(-size // found[0]) * found[0] + found[1]
    return Layout(specs, created, path, cells, data, size)


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def encode(
    specs: dict[Hashable, Spec], created: float, path: str | None, persistent: bool
) -> tuple[Layout, bytes]:
    """Return the layout of a new file, and the bytes it begins with. The keys are `written_keys`.

    Raises
    ------
    TypeError
        For a dtype that cannot be shared.
    ValueError
        For too many keys.
    """
    if len(specs) > MAX_KEYS:
        raise ValueError(f"a SharedDict of {len(specs)} keys was asked for, and {MAX_KEYS} are allowed")
    directory = encode_directory(specs, created, path)
    layout = plan(specs, len(directory), created, path)
    head = _HEADER.pack(
        MAGIC, FORMAT, HEADER_BYTES, layout.size, len(specs), len(directory), bytes(_DIGEST_BYTES)
    )
    head = head[:-_DIGEST_BYTES] + _digest(head, directory)
    return layout, b"".join(
        (
            head.ljust(_PERSISTENT_OFFSET, b"\0"),
            _PERSISTENT.pack(persistent).ljust(HEADER_BYTES - _PERSISTENT_OFFSET, b"\0"),
            directory,
        )
    )


def _digest(head: bytes, directory: bytes) -> bytes:
    hashed = hashlib.blake2b(head[:-_DIGEST_BYTES], digest_size=_DIGEST_BYTES)
    hashed.update(directory)
    return hashed.digest()


def header_of(head: bytes, size: int, file: str) -> int:
    """Check the first `HEADER_BYTES` of a file of `size` bytes; return the length of its directory.

    Raises
    ------
    LayoutError
        Naming the field that is wrong.
    """
    if len(head) < HEADER_BYTES:
        raise LayoutError(file, "length", f"{size} bytes", f"at least {HEADER_BYTES}")
    magic, version, header_bytes, total, keys, directory_bytes, _ = _HEADER.unpack_from(head)
    (persistent,) = _PERSISTENT.unpack_from(head, _PERSISTENT_OFFSET)
    for field, got, allowed in (
        ("magic", magic, MAGIC),
        ("format", version, FORMAT),
        ("header length", header_bytes, HEADER_BYTES),
        ("size", total, size),
    ):
        if got != allowed:
            raise LayoutError(file, field, repr(got), repr(allowed))
    if keys > MAX_KEYS:
        raise LayoutError(file, "number of keys", str(keys), f"at most {MAX_KEYS}")
    if directory_bytes > size - HEADER_BYTES:
        raise LayoutError(file, "directory length", str(directory_bytes), f"at most {size - HEADER_BYTES}")
    if persistent not in (0, 1):
        raise LayoutError(file, "persistent flag", str(persistent), "0 or 1")
    return int(directory_bytes)


def decode(head: bytes, directory: bytes, file: str) -> Layout:
    """Return the layout of a file whose header has passed `header_of`.

    Raises
    ------
    LayoutError
        Naming the field that is wrong.
    """
    head = head[: _HEADER.size]
    *_, total, count, _, digest = _HEADER.unpack(head)
    if digest != _digest(head, directory):
        raise LayoutError(
            file, "digest", digest.hex(), f"{_digest(head, directory).hex()}, that of the content"
        )
    specs, created, path = decode_directory(directory, file)
    if len(specs) != count:
        raise LayoutError(file, "number of keys", f"{count}, with {len(specs)} in the directory", "the same")
    layout = plan(specs, len(directory), created, path)
    if layout.size != total:
        raise LayoutError(file, "size", str(total), f"{layout.size}, what the shapes need,")
    return layout
