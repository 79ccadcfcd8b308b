"""Shared arrays whose memory is a file: larger than memory, and there when the program is gone.

::

    path ── .npy: header, elements     made under another name, and named when it is whole
         └─ else: elements only        sparse: what nobody has written to takes no room

The file is mapped as every other shared segment is, so the array travels by reference, to workers and nodes
of any kind, and what is written to it is in the system's page cache: there for everybody, whoever dies. Only
`flush` makes the disk have it.

Not guaranteed
--------------
- Who cuts the file off while it is mapped has processes that look there killed. So has a disk that is full.
"""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from ndshare._arrays.making import checked
from ndshare._memory import attach_file, block_of
from ndshare.errors import CapacityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODES = ("x", "w", "r+", "a")

_known: dict[int, weakref.ref[NDArray[Any]]] = {}


def in_file(
    path: str | os.PathLike[str],
    mode: str,
    layout: Callable[[], tuple[tuple[int, ...], np.dtype[Any], str]],
    *,
    free: bool,
) -> tuple[NDArray[Any], str, bool]:
    """Return an array whose memory is a file, its order, and whether the file is new.

    Parameters
    ----------
    path : path-like
        A .npy file if its name ends so, else the elements and nothing else.
    mode : {"x", "w", "r+", "a"}
        Make the file, and refuse one that exists; make it anew; open one that exists; open it or make it.
    layout : callable
        Gives shape, dtype and order.
    free : bool
        Whether those of a .npy file that exists may be others.
    """
    path = os.path.abspath(os.fspath(path))
    if mode not in MODES:
        raise ValueError(f"alloc: mode is {mode!r}; allowed are 'x', 'w', 'r+' and 'a'")
    there = os.path.lexists(path)
    if mode == "x" and there:
        raise FileExistsError(
            f"alloc: {path!r} exists already, and mode='x' makes a new file; mode='a' goes on with it, "
            "mode='w' replaces it"
        )
    if mode == "r+" or (mode == "a" and there):
        return (*_opened(path, layout, free), False)
    shape, dtype, order = layout()
    dtype = checked(dtype, "alloc")
    shape += dtype.shape
    return _made(path, mode, shape, dtype.base, order), order, True


def _made(path: str, mode: str, shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> NDArray[Any]:
    folder, name = os.path.split(path)
    nbytes = dtype.itemsize * math.prod(shape)
    room = os.statvfs(folder)
    if nbytes > (free := room.f_bavail * room.f_frsize):
        raise CapacityError(nbytes, free, f"file system of {folder!r}")
    other = os.path.join(folder, f".{name}.{os.urandom(6).hex()}")
    with open(other, "x+b") as file:
        try:
            if name.endswith(".npy"):
                _write_header(file, shape, dtype, order)
            file.flush()
            offset = file.tell()
            os.ftruncate(file.fileno(), offset + nbytes)
            if mode == "w":
                os.replace(other, path)
            else:
                _name(other, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(other)
            raise
        return _mapped(file, offset, shape, dtype, order)


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> None:
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": order == "F", "shape": shape}
    try:
        npy.write_array_header_1_0(file, header)
    except ValueError:  # thousands of fields
        file.seek(0)
        npy.write_array_header_2_0(file, header)


def _name(other: str, path: str) -> None:
    """Give a file its name, unless another has it by now."""
    try:
        os.link(other, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(f"alloc: {path!r} has just been made by another process") from None
        os.rename(other, path)
    else:
        os.unlink(other)


def _opened(
    path: str, layout: Callable[[], tuple[tuple[int, ...], np.dtype[Any], str]], free: bool
) -> tuple[NDArray[Any], str]:
    with open(path, "r+b") as file:
        header = _read_header(file, path) if path.endswith(".npy") else None
        offset = file.tell() if header is not None else 0
        if header is not None and free:
            shape, dtype, order = header
        else:
            shape, dtype, order = layout()
            dtype = checked(dtype, "alloc")
            shape, dtype = shape + dtype.shape, dtype.base
        asked = f"shape {shape}, dtype {dtype} and order {order!r}"
        one = math.prod(shape) == max(shape, default=1)  # in both orders
        if header is not None and (header[:2] != (shape, dtype) or (header[2] != order and not one)):
            found = f"shape {header[0]}, dtype {header[1]} and order {header[2]!r}"
            raise ValueError(
                f"alloc: the file {path!r} holds an array of {found}, and {asked} were asked for; leave "
                "them out to have it as it is, or give mode='w' to replace it"
            )
        size, nbytes = os.fstat(file.fileno()).st_size, dtype.itemsize * math.prod(shape)
        if size != offset + nbytes:
            raise ValueError(
                f"alloc: the file {path!r} has {size} bytes, and {asked} take {offset + nbytes}; correct "
                "them, or give mode='w' to replace it"
            )
        return _mapped(file, offset, shape, dtype, order), order


def _read_header(file: IO[bytes], path: str) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise ValueError(f"alloc: {path!r} is no .npy file: {error}") from error
    return shape, checked(dtype, "alloc"), "F" if fortran else "C"


def _mapped(
    file: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], order: str
) -> NDArray[Any]:
    nbytes = dtype.itemsize * math.prod(shape)
    if not nbytes:
        return np.zeros(shape, dtype, order)  # type: ignore[call-overload, no-any-return]
    strides = None
    if order == "F":
        strides = tuple(dtype.itemsize * math.prod(shape[:axis]) for axis in range(len(shape)))
    block = attach_file(os.dup(file.fileno()), offset + nbytes)
    array = block.array(dtype, shape, strides, offset)
    block.release()
    key = id(array)
    _known[key] = weakref.ref(array, lambda _: _known.pop(key, None))
    return array


def filed_arrays() -> list[NDArray[Any]]:
    """Return the arrays of this process whose memory is a file."""
    if not _known:
        return []
    return [array for reference in list(_known.values()) if (array := reference()) is not None]


def flush(array: NDArray[Any]) -> None:
    """Have the disk hold what has been written to the file of an array, by any process."""
    if (found := block_of(array)) is None:
        return
    fd = found[0].lend()
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
