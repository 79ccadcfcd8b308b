"""Arrays in files of /dev/shm, under names that say who made them: what npshmex's keys stand for.

::

    | pickled (dtype, shape, order), its length | padding to 64 | the array |

Guarantees
----------
- `attach` copies nothing; the array stays valid when the name is removed.
- A file is *held* while the process that made it lives, or any process has it attached. Both are known of
  processes that were killed, too.

Not guaranteed
--------------
- That makers in another process namespace, of another container with the same /dev/shm, are known to live.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import secrets
import stat
import string
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["attach", "create", "is_held", "names", "remove"]

_FOLDER = "/dev/shm"
_DIGITS = string.digits + string.ascii_uppercase
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 64
_PID_DIGITS, _START_DIGITS, _RANDOM_DIGITS = 5, 6, 5  # processes have numbers up to 2**22


def _text(number: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text


def _life(pid: int) -> str | None:
    """Return number and start time of a process that lives, as text; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return _text(pid, _PID_DIGITS) + _text(int(fields[19]), _START_DIGITS)


def create(name: str, array: npt.NDArray[Any]) -> str:
    """Copy an array into a new file and return its name.

    Parameters
    ----------
    name : str
        With ``{}`` in the place of 16 characters that are found here.
    array : ndarray
        Of any dtype without Python objects. F order is kept.

    Raises
    ------
    OSError
        If there is not enough memory for files in /dev/shm.
    """
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    head = pickle.dumps((array.dtype, array.shape, order))
    head = _LENGTH.pack(len(head)) + head
    while True:
        chosen = name.format(f"{_life(os.getpid())}{_text(secrets.randbits(25), _RANDOM_DIGITS)}")
        try:
            fd = os.open(
                os.path.join(_FOLDER, chosen), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
            break
        except FileExistsError:
            continue
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            _write(file, head + bytes(-len(head) % _ALIGNMENT))
            if array.nbytes:
                # By write: fresh pages are made faster so than by touching them, and memory that is
                # not there is an error instead of a SIGBUS.
                _write(file, array.ravel(order).view(np.uint8).data)  # type: ignore[arg-type]
    except BaseException:
        remove(chosen)
        raise
    return chosen


def _write(file: Any, data: Any) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def attach(name: str) -> npt.NDArray[Any]:
    """Return the array of that name: writable, the same memory for all who attach.

    Raises
    ------
    FileNotFoundError
        If there is none.
    PermissionError
        If it belongs to somebody else.
    """
    fd = os.open(os.path.join(_FOLDER, name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(f"{_FOLDER}/{name} belongs to another user")
        fcntl.flock(fd, fcntl.LOCK_SH)  # of the open file, and so for as long as it is mapped
        memory = mmap.mmap(fd, 0)
    finally:
        os.close(fd)
    (length,) = _LENGTH.unpack_from(memory)
    end = _LENGTH.size + length
    dtype, shape, order = pickle.loads(memory[_LENGTH.size : end])
    return np.ndarray(shape, dtype, memory, end + -end % _ALIGNMENT, order=order)


def remove(name: str) -> None:
    """Take the name away; who has the array attached keeps it."""
    os.unlink(os.path.join(_FOLDER, name))


def names(prefix: str) -> Iterator[str]:
    """Yield the names of this user's files that begin so."""
    for entry in os.scandir(_FOLDER):
        if entry.name.startswith(prefix):
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if facts.st_uid == os.geteuid() and stat.S_ISREG(facts.st_mode):
                yield entry.name


def is_held(name: str, maker: str) -> bool:
    """Tell whether the maker of a file lives or somebody has it attached.

    Parameters
    ----------
    name : str
        Of the file.
    maker : str
        The 16 characters of its name.
    """
    digits = maker[:_PID_DIGITS]
    if digits.isalnum() and _life(int(digits, len(_DIGITS))) == maker[: _PID_DIGITS + _START_DIGITS]:
        return True
    try:
        fd = os.open(os.path.join(_FOLDER, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # somebody has just taken it
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
