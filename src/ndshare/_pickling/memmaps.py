"""Arrays that are mapped files travel as file and offset, not as bytes.

``np.memmap`` and ``np.load(..., mmap_mode=...)`` give arrays whose memory *is* a file. The receiver
maps the same part of the same file: nothing is copied, pages are shared through the page cache, and
what a writable map writes is seen by everybody who maps the file.

Guarantees
----------
* The receiver maps the same file or nothing: inode and device are compared on both sides. A file
  that was replaced or deleted meanwhile goes by value, from the pages the sender still has.
* Copy-on-write maps (mode ``"c"``) go by value, because their changes are in no file.
* Views keep offset, shape, strides and type.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any, NamedTuple

import numpy as np

from ndshare._memory import decode_dtype, encode_dtype, lead_in, span
from ndshare.errors import TransportError

MEMMAP_ATTRIBUTES = ("_mmap", "filename", "offset", "mode")
"""What a `numpy.memmap` has beyond an array."""

_MODES = {"r": "r", "r+": "r+", "w+": "r+"}


class MappedFile(NamedTuple):
    """Which file a mapping shows, as the kernel tells."""

    device: int
    inode: int
    path: str


_mapped: weakref.WeakKeyDictionary[mmap.mmap, MappedFile | None] = weakref.WeakKeyDictionary()


def find_memmap(array: np.ndarray[Any, Any]) -> np.memmap[Any, Any] | None:
    """Return the `numpy.memmap` whose mapping an array's memory is, or None."""
    found: object = array
    while isinstance(found, np.ndarray):
        if isinstance(found, np.memmap) and isinstance(getattr(found, "_mmap", None), mmap.mmap):
            return found
        found = found.base
    return None


def _address(buffer: mmap.mmap) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def is_foreign(value: Any) -> bool:
    """Tell whether something is, or lies in, memory that others share with their forked children.

    Arrays, objects of ctypes and mappings: those of `multiprocessing.RawArray`, of
    `multiprocessing.shared_memory`, ``mmap.mmap(-1, n)``. A `numpy.memmap` goes by name, and is none.
    """
    root = value
    if isinstance(value, mmap.mmap):
        try:
            address = _address(value)
        except ValueError:  # it is closed
            return False
    elif isinstance(value, np.ndarray):
        while isinstance(root, np.ndarray):
            root = root.base
        if find_memmap(value) is not None:
            return False
        if isinstance(root, memoryview):
            root = root.obj
        if not (isinstance(root, mmap.mmap) or is_of_ctypes(type(root))):
            return False
        address = value.__array_interface__["data"][0]
    elif not is_of_ctypes(type(value)):
        return False
    else:
        import ctypes

        address = ctypes.addressof(value)
    fields = _mapping_at(address)
    return bool(fields) and fields[1].endswith(b"s")


def is_of_ctypes(kind: type) -> bool:
    """Tell whether a class is one of C data."""
    return type(kind).__module__ == "_ctypes"


def _mapping_at(address: int) -> list[bytes]:
    """Return the fields of the line of /proc/self/maps for an address; none if there is no such line."""
    with open("/proc/self/maps", "rb") as lines:
        for line in lines:
            fields = line.split(None, 5)
            low, high = (int(x, 16) for x in fields[0].split(b"-"))
            if low <= address < high:
                return fields
    return []


def _look_up(mapping: mmap.mmap) -> MappedFile | None:
    """Find the file of a mapping in /proc/self/maps: the mmap object itself does not know it."""
    fields = _mapping_at(_address(mapping))
    if len(fields) < 6:
        return None
    major, minor = (int(x, 16) for x in fields[3].split(b":"))
    return MappedFile(os.makedev(major, minor), int(fields[4]), os.fsdecode(fields[5].rstrip(b"\n")))


def _same_file(mapped: MappedFile, path: str) -> os.stat_result | None:
    """Return the status of the file now under a path if it is the mapped one."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if status.st_ino != mapped.inode:
        return None
    # Some file systems (btrfs, overlays) show another device number in /proc/self/maps than in
    # stat; there the path decides, which the kernel marks when the file has been deleted.
    if status.st_dev != mapped.device and mapped.path != os.path.realpath(path):
        return None
    return status


def reduce_memmap(array: np.ndarray[Any, Any], root: np.memmap[Any, Any]) -> tuple[Any, ...] | None:
    """Return how to map the same part of the same file, or None where only a copy is right."""
    mode = _MODES.get(root.mode)
    mapping: mmap.mmap = root._mmap  # type: ignore[attr-defined]
    if mode is None or root.filename is None:
        return None
    if mapping not in _mapped:
        _mapped[mapping] = _look_up(mapping)
    mapped = _mapped[mapping]
    path = os.path.abspath(root.filename)
    status = None if mapped is None else _same_file(mapped, path)
    if status is None:
        return None
    start = root.offset - root.offset % mmap.ALLOCATIONGRANULARITY  # where np.memmap starts its mapping
    first = array.__array_interface__["data"][0] - _address(mapping) + start
    ahead = lead_in(array.shape, array.strides)
    length = span(array.shape, array.strides, array.itemsize)
    if first - ahead < start or first - ahead + length > start + len(mapping):
        return None  # the memory of `array` is not in this mapping after all
    kind = type(array) if type(array) in (np.ndarray, np.memmap) else np.ndarray
    return map_again, (
        (path, status.st_dev, status.st_ino),
        mode,
        (first - ahead, length, ahead),
        (encode_dtype(array.dtype), array.shape, array.strides, array.flags.writeable),
        kind is np.memmap,
    )


def map_again(
    file: tuple[str, int, int],
    mode: str,
    part: tuple[int, int, int],
    layout: tuple[str | bytes, tuple[int, ...], tuple[int, ...], bool],
    as_memmap: bool,
) -> np.ndarray[Any, Any]:
    """Return the array of `reduce_memmap` in this process."""
    path, device, inode = file
    offset, length, ahead = part
    code, shape, strides, writeable = layout
    dtype = decode_dtype(code)
    if length == 0:
        empty: np.ndarray[Any, Any] = np.empty(shape, dtype)
        return empty
    with open(path, "rb" if mode == "r" else "r+b") as opened:
        status = os.fstat(opened.fileno())
        if (status.st_dev, status.st_ino) != (device, inode):
            raise TransportError(
                "a memory-mapped array could not be mapped again",
                f"{path!r} is now another file (inode {status.st_ino}, it was {inode})",
                "keep the file in place while arrays that map it are in use, or send a copy (array.copy())",
            )
        flat = np.memmap(opened, np.uint8, "r+" if mode == "r+" else "r", offset, (length,))
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, flat, ahead, strides)
    if as_memmap:
        array = _adopt(array, flat)
    if not writeable:
        array.flags.writeable = False
    return array


def _adopt(array: np.ndarray[Any, Any], flat: np.memmap[Any, Any]) -> np.memmap[Any, Any]:
    mapped = array.view(np.memmap)
    for name in MEMMAP_ATTRIBUTES:
        setattr(mapped, name, getattr(flat, name))
    return mapped
