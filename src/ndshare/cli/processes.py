"""Processes of this user that use ndshare, as ``/proc`` shows them: they do nothing for it.

A process of ndshare has files whose names begin with ``ndshare``: anonymous ones (memfd), and dicts. A user
may look at the descriptors of his own processes, and open what they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

_PREFIXES = ("/memfd:ndshare", "/dev/shm/ndshare")
_DICT = "ndshare-dict"
_DELETED = " (deleted)"
_BLOCK_BYTES = 512  # of st_blocks
_SEGMENTS = ("ndshare", "ndshare-sparse")
_NAME_MOST = 40


class File(NamedTuple):
    """A file of ndshare that a process has open.

    Parameters
    ----------
    kind
        Its name: ``ndshare`` is a segment, ``ndshare-dict`` a dict.
    path
        Where it can be opened, below ``/proc``.
    key
        Device and inode: the same file in all its processes.
    nbytes
        Memory that it takes.
    """

    kind: str
    path: str
    key: tuple[int, int]
    nbytes: int


class Process(NamedTuple):
    """A process that uses ndshare.

    Parameters
    ----------
    pid, parent
        Its number, and that of its parent.
    program
        What it runs, in a few words.
    files
        Its anonymous files, each once.
    """

    pid: int
    parent: int
    program: str
    files: tuple[File, ...]

    @property
    def segments(self) -> tuple[File, ...]:
        """Segments of memory that it holds."""
        return tuple(file for file in self.files if file.kind in _SEGMENTS)

    @property
    def held(self) -> int:
        """Bytes in those."""
        return sum(segment.nbytes for segment in self.segments)


def scan(*, own: bool = False) -> list[Process]:
    """Return the processes of this user that use ndshare; this one only if `own`."""
    found = []
    if not os.path.isdir("/proc/self"):
        raise FileNotFoundError(errno.ENOENT, "not mounted", "/proc")
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or (int(entry) == os.getpid() and not own):
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or not to be looked at
            if os.stat(f"/proc/{entry}").st_uid != os.geteuid():
                continue
            files = tuple({file.key: file for file in _files(int(entry))}.values())
            if files:
                found.append(Process(int(entry), parent_of(int(entry)), program(int(entry)), files))
    return sorted(found)


def _files(pid: int) -> Iterator[File]:
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        with contextlib.suppress(OSError):
            target = os.readlink(path)
            if target.startswith(_PREFIXES):
                status = os.stat(path)
                name = target.removeprefix("/memfd:").removesuffix(_DELETED)
                kind = _DICT if name.startswith("/") else name
                yield File(kind, path, (status.st_dev, status.st_ino), status.st_blocks * _BLOCK_BYTES)


def parent_of(pid: int) -> int:
    """Return the parent of a process."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def program(pid: int) -> str:
    """Return what a process runs, in a few words."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return name_of([os.fsdecode(word) for word in file.read().split(b"\0")])


def name_of(words: list[str]) -> str:
    """Return a command line of Python in a few words: the script, the module, or the start of a ``-c``."""
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        if word == "-c":
            code = rest[0] if rest else ""
            name = "ndshare zygote" if "_processes.zygote" in code else f"-c {' '.join(code.split())}"
            break
        if word == "-m":
            name = f"-m {' '.join(rest)}"
            break
        if word in ("-W", "-X"):
            rest.pop(0) if rest else None
        elif not word.startswith("-") and word:
            name = " ".join([os.path.basename(word), *rest])
            break
    else:
        name = os.path.basename(words[0])
    name = name.strip()
    return name if len(name) <= _NAME_MOST else name[: _NAME_MOST - 1] + "…"
