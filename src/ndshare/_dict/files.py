"""The files of SharedDicts in shared memory: made, found, held and removed without a gap.

::

    make:    a file without a name ─▶ filled ─▶ LOCK_SH ─▶ linked under its name
    attach:  open ─▶ LOCK_SH ─▶ still linked under that name? else once more
    remove:  LOCK_EX, which nobody has who uses it ─▶ still linked? ─▶ unlink ─▶ close

The lock is a `flock` of the open file description: the kernel frees it when its last holder ends.

Guarantees
----------
* Under a name there is never a half-made file, and nobody keeps one that was removed before he had it.
* A file is unlinked only while nobody else uses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import Final

from ndshare._dict.layout import HEADER_BYTES, MAGIC, Layout, decode, header_of
from ndshare._memory import available
from ndshare.errors import CapacityError, LayoutError

DIRECTORY: Final = "/dev/shm"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_SPACE: Final = "NDSHARE_DICT_SPACE"
_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system's are
_NEW_BYTES: Final = 1 << 20  # written in one piece when a file begins


def file_of(name: str) -> str:
    """Return the path of the dict of this name and of this user.

    Raises
    ------
    TypeError, ValueError
        For what is no name.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a SharedDict is {name!r} ({type(name).__name__}); a str is needed")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"a SharedDict cannot be named {name!r}: letters, digits and _ . + - are allowed, 200 at most, a "
            "letter, a digit or _ first"
        )
    return f"{prefix()}{name}"


def prefix() -> str:
    # A space of names of its own lets several test runs of one user prune at the same time.
    space = os.environ.get(_SPACE, "")
    if space and not NAME.fullmatch(space):
        raise ValueError(f"the environment variable {_SPACE} is {space!r}; a name is allowed, or nothing")
    return f"{DIRECTORY}/ndshare{space and '.' + space}-{os.geteuid()}-"


def open_file(file: str) -> int:
    """Open what is under a path if it is a file of this user alone."""
    try:
        fd = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LayoutError(file, "type", "a symbolic link", "a regular file") from None
        if error.errno in (errno.EISDIR, errno.ENXIO, errno.ENODEV):
            raise LayoutError(file, "type", f"{error.strerror}", "a regular file") from None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise LayoutError(file, "type", stat.filemode(status.st_mode), "a regular file")
        if status.st_uid != os.geteuid():
            raise LayoutError(file, "owner", f"user {status.st_uid}", f"user {os.geteuid()}")
        if status.st_mode & 0o077:
            raise LayoutError(file, "mode", stat.filemode(status.st_mode), "-rw-------")
    except BaseException:
        os.close(fd)
        raise
    return fd


def identity(fd: int) -> tuple[int, int]:
    """Return device and inode of a file."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_linked(fd: int, file: str) -> bool:
    """Tell whether a file is still the one under its path."""
    mine = os.fstat(fd)
    try:
        there = os.stat(file, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return mine.st_nlink > 0 and (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def connect(name: str) -> int:
    """Return a descriptor of the dict of that name, held with LOCK_SH.

    Raises
    ------
    FileNotFoundError
        If there is none.
    LayoutError
        If something else is there.
    """
    file = file_of(name)
    while True:
        try:
            fd = open_file(file)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT,
                f"there is no SharedDict named {name!r} of this user in this {DIRECTORY} (a container may "
                "have its own); make it with SharedDict(arrays, name) or SharedDict.open(name, arrays)",
                file,
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if is_linked(fd, file):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed between open and lock: whatever is under the name now is meant


def reopen(fd: int) -> int:
    """Return a new description of the same file, held with LOCK_SH."""
    new = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(new, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BaseException:
        os.close(new)
        raise
    return new


def make(layout: Layout, head: bytes) -> int:
    """Return a descriptor of a new file without a name, with its whole memory, held with LOCK_SH.

    Raises
    ------
    CapacityError
        If there is not enough memory. Nothing is left.
    """
    room = os.statvfs(DIRECTORY)
    free, limit = room.f_bavail * room.f_frsize, f"size of {DIRECTORY}"
    memory, binding = available()
    if room.f_blocks == 0 or memory < free:
        free, limit = memory, binding
    if layout.size > free:
        raise CapacityError(layout.size, free, limit)
    fd = os.open(DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        try:
            os.posix_fallocate(fd, 0, layout.size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG):
                raise
            limit = "largest file (ulimit -f)" if error.errno == errno.EFBIG else limit
            raise CapacityError(layout.size, free, limit) from error
        for start in range(0, len(head), _NEW_BYTES):
            os.pwrite(fd, head[start : start + _NEW_BYTES], start)
        fcntl.flock(fd, fcntl.LOCK_SH)
    except BaseException:
        os.close(fd)
        raise
    return fd


def publish(fd: int, name: str) -> bool:
    """Give a file its name; False if another has it."""
    # With a directory given Python calls linkat(2), which follows the link of /proc; link(2) does not.
    directory = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{fd}", file_of(name), src_dir_fd=directory, follow_symlinks=True)
    except FileExistsError:
        return False
    finally:
        os.close(directory)
    return True


def remove_dead(name: str) -> bool:
    """Remove the dict of that name if nobody uses it and it is not persistent."""
    file = file_of(name)
    try:
        fd = open_file(file)
    except FileNotFoundError:
        return True
    except (OSError, LayoutError):
        return False
    try:
        return os.pread(fd, len(MAGIC), 0) == MAGIC and remove_unused(fd, file)
    finally:
        os.close(fd)


def layout_of(fd: int, file: str) -> Layout:
    """Read and check what a file says of itself."""
    status = os.fstat(fd)
    size = status.st_size
    if status.st_blocks * _BLOCK_BYTES < size:  # what is not there would end in SIGBUS when memory is full
        raise LayoutError(file, "memory", f"{status.st_blocks * _BLOCK_BYTES} bytes", f"{size}, its length,")
    head = os.pread(fd, HEADER_BYTES, 0)
    length = header_of(head, size, file)
    directory = b""
    while len(directory) < length:
        piece = os.pread(fd, length - len(directory), HEADER_BYTES + len(directory))
        if not piece:
            raise LayoutError(file, "directory length", str(length), str(len(directory)))
        directory += piece
    return decode(head, directory, file)


def remove_unused(fd: int, file: str) -> bool:
    """Unlink a file that nobody else uses. The own lock is lost: to be called when closing only."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if not is_linked(fd, file) or is_persistent(fd):
        return False
    os.unlink(file)
    return True


def is_persistent(fd: int) -> bool:
    """Tell whether a dict is to outlive its users."""
    return os.pread(fd, 4, 64) != bytes(4)


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
    start = os.path.basename(prefix())
    for entry in sorted(os.listdir(DIRECTORY)):
        name = entry.removeprefix(start)
        if name == entry or not NAME.fullmatch(name):
            continue
        file = os.path.join(DIRECTORY, entry)
        with contextlib.suppress(OSError, LayoutError):
            fd = open_file(file)
            try:
                if os.pread(fd, len(MAGIC), 0) == MAGIC:
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


def stopped_users(fd: int) -> tuple[int, ...]:
    """Return those of the processes that hold a file which a signal or a debugger has stopped."""
    stopped = []
    for pid in users_of(fd):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] in "Tt":
                stopped.append(pid)
    return tuple(stopped)


def infos() -> list[DictInfo]:
    """Return what there is of this user, by name."""
    found = []
    for name, file, fd in _files():
        with contextlib.suppress(LayoutError):
            layout = layout_of(fd, file)
            age = max(0.0, time.time() - layout.created)
            found.append(DictInfo(name, len(layout.specs), layout.size, users_of(fd), age, is_persistent(fd)))
    return found


def prune(dry_run: bool = False, *, persistent: bool = False) -> list[str]:
    """Remove the SharedDicts of this user that nobody uses any more, such as those of killed programs.

    Page: docs/shared_dict.md.

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
        if not is_linked(fd, file) or (is_persistent(fd) and not persistent):
            continue
        if not dry_run:
            os.unlink(file)
        removed.append(name)
    return removed
