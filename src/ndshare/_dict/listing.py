"""Which SharedDicts of this user there are, who uses them, and which of them are dead."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import time
from collections.abc import Iterator

from ndshare._dict import file as _dict_file
from ndshare._dict import layout as _dict_layout
from ndshare.errors import LayoutError

__all__ = ["DictInfo", "infos", "prune"]


@dataclasses.dataclass(frozen=True)
class DictInfo:
    """One SharedDict of this user.

    Attributes
    ----------
    name : str
        Its name.
    keys : int
        Number of keys.
    nbytes : int
        Bytes of its file.
    users : tuple of int
        Processes that use it.
    age : float
        Seconds since it was made.
    persistent : bool
        Whether it stays when nobody uses it.
    """

    name: str
    keys: int
    nbytes: int
    users: tuple[int, ...]
    age: float
    persistent: bool


def _files() -> Iterator[tuple[str, str, int]]:
    """Yield name, path and descriptor of everything that is a dict of this user."""
    prefix = os.path.basename(_dict_file.prefix())
    for entry in sorted(os.listdir(_dict_file.DIRECTORY)):
        name = entry.removeprefix(prefix)
        if name == entry or not _dict_file.NAME.fullmatch(name):
            continue
        file = os.path.join(_dict_file.DIRECTORY, entry)
        with contextlib.suppress(OSError, LayoutError):
            fd = _dict_file.open_file(file)
            try:
                if os.pread(fd, len(_dict_layout.MAGIC), 0) == _dict_layout.MAGIC:
                    yield name, file, fd
            finally:
                os.close(fd)


def users_of(fd: int) -> tuple[int, ...]:
    """Return the processes that hold a file, from the kernel's own list."""
    status = os.fstat(fd)
    where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = set()
    with open("/proc/locks") as file:
        for line in file:
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5:6] == [where] and int(words[4]) > 0:
                found.add(int(words[4]))
    return tuple(sorted(found))


def infos() -> list[DictInfo]:
    """Return what there is of this user, by name."""
    found = []
    for name, file, fd in _files():
        with contextlib.suppress(LayoutError):
            layout = _dict_file.layout_of(fd, file)
            age = max(0.0, time.time() - layout.created)
            found.append(
                DictInfo(
                    name, len(layout.specs), layout.size, users_of(fd), age, _dict_file.is_persistent(fd)
                )
            )
    return found


def prune(dry_run: bool = False, *, persistent: bool = False) -> list[str]:
    """Remove the SharedDicts of this user that nobody uses any more, such as those of killed programs.

    Parameters
    ----------
    dry_run : bool
        Only say which ones would be removed.
    persistent : bool
        Remove also those made to outlive their users.

    Returns
    -------
    list of str
        Names of the dicts that were (or would be) removed.

    Notes
    -----
    Whether a dict is in use is asked of the kernel: each user holds a lock on its file, which the kernel
    frees when the process ends, however it ends. A dict in use is never removed.

    Examples
    --------
    >>> import ndshare
    >>> d = ndshare.SharedDict({"a": [1.0]})
    >>> d.name in ndshare.prune()
    False
    >>> d.close()
    """
    removed = []
    for name, file, fd in _files():
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        if not _dict_file.is_linked(fd, file) or (_dict_file.is_persistent(fd) and not persistent):
            continue
        if not dry_run:
            os.unlink(file)
        removed.append(name)
    return removed
