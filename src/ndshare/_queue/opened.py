"""The open files of a queue in this process, its memory, and what can be seen in both.

Guarantees
----------
* All files are closed when the last reference goes: a thread that still works with them keeps them open.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket

from ndshare._queue.memory import (
    BACKLOG_BYTE,
    FLAGS,
    GOT,
    IMMEDIATE,
    MAX_BYTES,
    MAXSIZE,
    PUT,
    SHUT,
    SIZES,
    SLOTS,
    WAITERS,
    Files,
)
from ndshare._system import _wire, is_byte_locked


class Opened:
    """The files of a queue.

    Attributes
    ----------
    files : Files
    memory : mmap.mmap
    slots : int
        0 for a queue without bounds.
    maxsize, maxbytes : int
        As they were asked for; 0: no bound.
    least : int
        What a message counts for at least, in bytes.
    heard : bool
        Whether this process counts as one that may take messages.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        for fd in files:
            os.set_inheritable(fd, False)
        self.memory = mmap.mmap(files.memory, 0)
        self.slots = _wire.load_u64(self.memory, SLOTS)
        self.maxsize = _wire.load_u64(self.memory, MAXSIZE)
        self.maxbytes = _wire.load_u64(self.memory, MAX_BYTES)
        self.least = self.maxbytes // self.slots if self.maxbytes and not self.maxsize else 1
        self.heard = True

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        for fd in self.files:
            close(fd)

    @property
    def flags(self) -> int:
        """SHUT, IMMEDIATE, WORKERS."""
        return _wire.load_u8(self.memory, FLAGS)

    def set_flags(self, flags: int) -> None:
        """Set flags for everybody; there is no way back."""
        while not _wire.cas_u8(self.memory, FLAGS, before := self.flags, before | flags):
            pass

    @property
    def got(self) -> int:
        """How many messages were taken out."""
        return _wire.load_u64(self.memory, GOT)

    def count_put(self, number: int = 1) -> None:
        """Count a message that was accepted."""
        _wire.add_u64(self.memory, PUT, number)

    def ring(self) -> None:
        """Wake who waits for a slot."""
        if _wire.load_u64(self.memory, WAITERS):
            with contextlib.suppress(BlockingIOError):
                os.write(self.files.bell_out, b".")

    def clear_slot(self, slot: int) -> None:
        """Note that a slot, -1: none, is about to be free."""
        if slot >= 0:
            _wire.store_u64(self.memory, SIZES + 8 * slot, 0)

    def has_backlogs(self) -> bool:
        """Tell whether a process still has messages that the socket had no room for."""
        return is_byte_locked(self.files.memory, BACKLOG_BYTE)

    def has_messages(self) -> bool:
        """Tell whether a message is there to be received."""
        flags = self.flags
        if flags & IMMEDIATE:
            return False
        for fd in (self.files.into, self.files.out) if flags & SHUT else (self.files.into,):
            sock = socket.socket(fileno=fd)
            try:
                if sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return True
            except BlockingIOError:
                pass
            finally:
                sock.detach()
        return False

    def stop_hearing(self) -> None:
        """Do not count as one that may take messages any more: then `is_deserted` can tell."""
        if self.heard:
            self.heard = False
            # Its number stays taken: another thread may be about to use it.
            os.dup2(self.files.bell_out, self.files.bell_in, inheritable=False)

    def is_deserted(self) -> bool:
        """Tell whether no process is left that could take messages: none has the queue, none will get it."""
        return not self.heard and bool(ready_within(self.files.bell_out, 0, 0.0))


def ready_within(fd: int, events: int, milliseconds: float) -> bool:
    """Wait for a file; tell whether anything happened."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(milliseconds))
