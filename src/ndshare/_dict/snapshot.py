"""A SharedDict on disk: one file, written whole.

::

    magic, length of the directory, length of the data, directory, data, digest of all before it

It is written under another name, flushed to the disk and renamed, so that whatever happens the path leads
to the last snapshot that was finished. Memory maps are not used: their pages reach the disk in any order, and
not at all in the same way on network file systems.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Hashable, Iterator
from typing import Any, Final

import numpy as np

from ndshare._dict.layout import Spec, decode_directory
from ndshare.errors import LayoutError

_MAGIC: Final = b"NDSHSNAP"
_HEAD: Final = struct.Struct("<8sQQ")
_DIGEST_BYTES: Final = 32
_TEMPORARY: Final = ".tmp"
_STALE_S: Final = 3600  # nobody writes one snapshot for so long
_SYNC_BYTE = (1 << 60) - 1  # locked while a snapshot is written, so that an older one never comes last
_FLOCK = struct.Struct("hhqqi4x")  # struct flock
_writing = threading.Lock()
os.register_at_fork(after_in_child=lambda: _writing._at_fork_reinit())  # type: ignore[attr-defined]


@contextlib.contextmanager
def writing(fd: int) -> Iterator[None]:
    """Have the right to write the snapshot, among all threads and processes."""

    def lock(kind: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, _SYNC_BYTE, 1, 0))

    with _writing:
        try:  # Ctrl-C comes behind the call that has locked it
            lock(fcntl.F_WRLCK)
            yield
        finally:
            lock(fcntl.F_UNLCK)


def save(path: str, arrays: dict[Hashable, np.ndarray[Any, Any]], directory: bytes, owner: str) -> None:
    """Write a snapshot; the path leads to the old one or to the new one at any time.

    Parameters
    ----------
    path
        Where it goes.
    arrays
        One per key, in the order of the directory.
    directory
        What the file in shared memory says of the keys.
    owner
        Name of the dict; part of the temporary name.
    """
    temporary = f"{path}.{owner}{_TEMPORARY}"
    _remove_stale(path)
    hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    nbytes = sum(array.nbytes for array in arrays.values())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            for part in (
                _HEAD.pack(_MAGIC, len(directory), nbytes),
                directory,
                *map(_bytes_of, arrays.values()),
            ):
                hashed.update(part)
                file.write(part)
            file.write(hashed.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    where = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(where)
    finally:
        os.close(where)


def _remove_stale(path: str) -> None:
    """Remove what killed writers have left; others may be writing on another machine just now."""
    directory, start = os.path.split(path)
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(f"{start}.") and entry.name.endswith(_TEMPORARY):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S:
                        os.unlink(entry.path)


def _bytes_of(array: np.ndarray[Any, Any]) -> bytes | memoryview:
    if array.nbytes == 0:
        return b""
    flat: np.ndarray[Any, Any] = array.reshape(-1).view(np.uint8)
    return flat.data


def load(path: str) -> dict[Hashable, np.ndarray[Any, Any]] | None:
    """Return what a snapshot holds; None if there is no file.

    Raises
    ------
    LayoutError
        If the file is not a whole snapshot.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    if len(content) < _HEAD.size + _DIGEST_BYTES:
        raise LayoutError(path, "length", f"{len(content)} bytes", f"at least {_HEAD.size + _DIGEST_BYTES}")
    magic, directory_bytes, nbytes = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise LayoutError(path, "magic", repr(magic), repr(_MAGIC))
    total = _HEAD.size + directory_bytes + nbytes + _DIGEST_BYTES
    if total != len(content):
        raise LayoutError(path, "length", f"{len(content)} bytes", f"{total}, which its beginning says,")
    digest = hashlib.blake2b(memoryview(content)[:-_DIGEST_BYTES], digest_size=_DIGEST_BYTES).digest()
    if digest != content[-_DIGEST_BYTES:]:
        raise LayoutError(
            path, "digest", content[-_DIGEST_BYTES:].hex(), f"{digest.hex()}, that of the content,"
        )
    start = _HEAD.size + directory_bytes
    specs, _, _ = decode_directory(content[_HEAD.size : start], path)
    if sum(spec.nbytes for spec in specs.values()) != nbytes:
        raise LayoutError(path, "data length", str(nbytes), "what the shapes need")
    return _arrays(specs, content, start)


def _arrays(specs: dict[Hashable, Spec], content: bytes, start: int) -> dict[Hashable, np.ndarray[Any, Any]]:
    arrays = {}
    for key, spec in specs.items():
        array: np.ndarray[Any, Any] = (
            np.ndarray(spec.shape, spec.dtype, content, start)
            if spec.nbytes
            else (np.empty(spec.shape, spec.dtype))
        )
        arrays[key] = array
        start += spec.nbytes
    return arrays
