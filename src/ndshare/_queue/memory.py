"""What the processes of a queue have in common: five open files, and how the memory among them is laid out.

::

    out ──────── messages ───────▶ in        a pair of SOCK_SEQPACKET sockets; everybody has both ends
    out ◀──── late messages ────── in        the other direction, after the queue was shut down
    memory                                   flags, counters, sizes; its file bears the locks
    bell_in ◀──── rings ────────── bell_out  a pipe: a slot is free; also tells who is left

`_system/_wire/queue_slots.h` is the other half of this layout.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
from typing import NamedTuple

from ndshare.errors import TransportError

# Begins every message: kind, whether its descriptors are in an envelope, whether it has a slot, its charge.
HEAD = struct.Struct("<BBHIQ")
PLAIN, NAMED = 0, 1
# A NAMED message: lengths of the list of names and of the parcel that defines them, its descriptors.
NAMES = struct.Struct("<III")

FLAGS, WAITERS, MAX_BYTES, MAXSIZE, CHECK, PUT, GOT, DONE = 0, 8, 16, 24, 32, 64, 128, 136
_HEADER_BYTES, _ENTRY_BYTES = 256, 64
SHUT, IMMEDIATE, WORKERS, ENDS, HAD_PRODUCERS = 1, 2, 4, 8, 16

# Bytes of the memory's file that are locked.
BACKLOG_BYTE = 1  # shared, by every process that has accepted messages the socket had no room for
PRODUCER_BYTE = 3  # shared, by every process that may still put, if the queue ends with the last of them

MAXSIZE_MAX = 2**31 - 1
LEAST_PART = 1024  # of a queue that is bounded by bytes only: a message counts for that part at least

_MEMBERS = 4096  # processes at a time whose death is noticed, of a bounded queue; a page each 64 of them
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CHECK = 0x6575657571646E61

_BELL_BYTES = 4096
_BUFFER_BYTES = 212_992  # what every Linux allows; it counts double


class Files(NamedTuple):
    """The open files of a queue in one process."""

    out: int
    into: int
    memory: int
    bell_out: int
    bell_in: int


def create(maxsize: int, maxbytes: int | None, flags: int) -> Files:
    """Make the files of a new queue.

    Raises
    ------
    OSError
        If there are too many open files.
    """
    numbers = maxbytes or 0, maxsize
    opened: list[int] = []
    try:
        out, into = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (out, into):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        opened += out.detach(), into.detach()
        memory = os.memfd_create("ndshare-queue", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        opened.append(memory)
        os.ftruncate(memory, _nbytes(*numbers))
        os.pwrite(memory, struct.pack("<QQQ", *numbers, _check(*numbers)), MAX_BYTES)
        os.pwrite(memory, struct.pack("<Q", flags), FLAGS)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        bell_in, bell_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        opened += bell_in, bell_out
        # A waiter that died may leave rings nobody waits for: not too many.
        fcntl.fcntl(bell_out, fcntl.F_SETPIPE_SZ, _BELL_BYTES)
        return Files(opened[0], opened[1], memory, bell_out, bell_in)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise


def _nbytes(maxbytes: int, maxsize: int) -> int:
    return _HEADER_BYTES + (_MEMBERS * _ENTRY_BYTES if maxbytes or maxsize else 0)


def _check(maxbytes: int, maxsize: int) -> int:
    return (3 * maxbytes ^ 5 * maxsize ^ _CHECK) & 0xFFFF_FFFF_FFFF_FFFF


def is_shortage(error: Exception) -> bool:
    """Tell whether this process has no room: for another file (`mmap` makes a copy), or for memory."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def open_memory(fd: int) -> tuple[mmap.mmap, int, int]:
    """Map the memory of a queue; also returns its maxsize and maxbytes.

    Raises
    ------
    TransportError
        If the file is not that of a queue, or could be made shorter under our hands.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        memory = mmap.mmap(fd, 0)
        maxbytes, maxsize, check = struct.unpack_from("<QQQ", memory, MAX_BYTES)
    except (OSError, ValueError, struct.error) as error:
        if is_shortage(error):
            raise
        sealed = False
    if not sealed or len(memory) != _nbytes(maxbytes, maxsize) or check != _check(maxbytes, maxsize):
        raise TransportError(
            "a queue was refused",
            "what came as its memory is not that of a queue, or somebody has overwritten it",
            "make a new queue",
        )
    return memory, maxsize, maxbytes


class QueueCounts(NamedTuple):
    """A queue as its memory shows it to whoever looks.

    Parameters
    ----------
    maxsize, maxbytes
        Its bounds; 0 for none.
    put, got, done
        How many messages went in and came out, and of how many `task_done` was said.
    shut
        Whether it was shut down.
    """

    maxsize: int
    maxbytes: int
    put: int
    got: int
    done: int
    shut: bool


def counts(fd: int) -> QueueCounts:
    """Read the memory of a queue, which may be of any process; nobody notices.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is no queue's.
    """
    content = os.pread(fd, _HEADER_BYTES, 0)
    if len(content) < _HEADER_BYTES:
        raise ValueError("not the memory of a queue")
    numbers = [struct.unpack_from("<Q", content, at)[0] for at in (MAXSIZE, MAX_BYTES, PUT, GOT, DONE, FLAGS)]
    maxsize, maxbytes, put, got, done, flags = numbers
    return QueueCounts(maxsize, maxbytes, put, got, done, bool(flags & SHUT))
