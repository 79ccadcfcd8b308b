"""Memory that waits for its receiver, where a message can carry bytes but no descriptor.

::

    sender                                     message (bytes)       receiver
    ticket = deposits.leave(block)  ─────────▶ pid, numbers, key ──▶ take(ticket)
      door    a descriptor that holds the                              opens /proc/<pid>/fd/<door>,
              segment, one per segment                                 a hold of its own
      ledger  one word per message: its key   ◀──────────────────────  writes TAKEN there
      sweep() closes doors nobody needs

No thread and no server: the kernel lets a process of the same user open another one's descriptors by
their path, which gives a new open file description, as `Block.lend` does.

Guarantees
----------
* What was left is not reused before it was taken, and then not before the receiver lets go of it.
* A ticket is good for one receiver. The key is unique, so a descriptor number that means something else
  by now, or a process id that was given away again, is noticed.
* A sender or receiver that is killed leaves nothing behind: doors and holds are descriptors.

Not guaranteed
--------------
* A message that nobody reads keeps its memory until the sender ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import secrets
import struct
import threading
from typing import NamedTuple, NoReturn

import numpy as np

from ndshare._memory import Block, attach, trim
from ndshare._system import is_alive
from ndshare._transport import close_all
from ndshare.errors import SegmentError, SegmentGoneError

_SLOTS = 1 << 20  # messages under way at most; pages of the ledger exist once they are used
_TOKEN_BYTES = 16
_WORD = struct.Struct("=Q")
_TAKEN = (1 << 64) - 1
_FREE = 0


class Ticket(NamedTuple):
    """Where a receiver finds the memory: plain values, for a message of bytes."""

    pid: int
    token: bytes
    ledger: int
    slot: int
    key: int
    door: int
    uid: int
    size: int
    kind: int


class _Door:
    """The descriptor by which receivers enter a segment, and how many of them are still to come."""

    __slots__ = ("fd", "waiting")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = 0


class Deposits:
    """What this process has sent and nobody has taken yet. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may fork while it is held
        self._open = False
        self._reset()

    def _reset(self) -> None:
        self._doors: dict[int, _Door] = {}
        self._left: dict[int, int] = {}  # slot: uid
        self._free: list[int] = []
        self._top = 0  # slots that were ever used
        self._keys = itertools.count(1)

    def _start(self) -> None:
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        size = _TOKEN_BYTES + _SLOTS * _WORD.size
        fd = -1
        try:
            fd = os.memfd_create("ndshare-deposits", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise SegmentError(error.errno or errno.EIO, "make the table of arrays under way") from error
        self._fd = fd
        self._map[:_TOKEN_BYTES] = self._token
        self._words = np.frombuffer(self._map, np.uint64, offset=_TOKEN_BYTES)
        self._open = True

    def leave(self, block: Block) -> Ticket:
        """Hold a block's memory for one receiver.

        Raises
        ------
        SegmentError
            If there is no descriptor left, the memory cannot be lent, or too many messages are under way.
        """
        with self.lock:
            if not self._open:
                self._start()
            self._sweep()
            if not self._free and self._top == _SLOTS:
                raise SegmentError(
                    errno.ENOBUFS, f"send a shared array while {_SLOTS} others have not been taken"
                )
            door = self._doors.get(block.uid)
            if door is None:
                door = self._doors[block.uid] = _Door(block.lend())
            else:
                block.mark_lent()
            slot = self._free.pop() if self._free else self._top
            self._top = max(self._top, slot + 1)
            key = next(self._keys)
            self._words[slot] = key
            self._left[slot] = block.uid
            door.waiting += 1
            return Ticket(
                os.getpid(), self._token, self._fd, slot, key, door.fd, block.uid, block.size, block.kind
            )

    def sweep(self) -> int:
        """Let go of what was taken; return how many arrays are still to be taken."""
        with self.lock:
            if self._open:
                self._sweep()
            return len(self._left)

    def _sweep(self) -> None:
        words = self._words[: self._top]
        for slot in np.flatnonzero(words == _TAKEN).tolist():
            words[slot] = _FREE
            self._free.append(slot)
            uid = self._left.pop(slot)
            door = self._doors[uid]
            door.waiting -= 1
            if not door.waiting:
                os.close(self._doors.pop(uid).fd)

    def close(self) -> None:
        """Let go of everything: who has not taken it yet gets `SegmentGoneError`."""
        with self.lock:
            if self._open:
                self._open = False
                del self._words
                with contextlib.suppress(BufferError):
                    self._map.close()
                os.close(self._fd)
            close_all(door.fd for door in self._doors.values())
            self._reset()

    def become_child(self) -> None:
        """Forget the parent's after a fork: a copy of its doors would hold the memory here, too."""
        self.lock = threading.RLock()
        self.close()


def take(ticket: Ticket, what: str) -> Block:
    """Take the memory of a ticket.

    Parameters
    ----------
    ticket : Ticket
        From `Deposits.leave` of any process of this user, this one included.
    what : str
        For messages: what it is.

    Returns
    -------
    Block
        On the whole segment; holds it until released.

    Raises
    ------
    SegmentGoneError
        If the sender has ended, or somebody else has taken it.
    SegmentError
        If the system refuses.
    """
    try:
        ledger = _enter(ticket, ticket.ledger)
        try:
            _check(ledger, ticket, what)
            door = _enter(ticket, ticket.door)
            try:
                fcntl.flock(door, fcntl.LOCK_SH)
                _check(ledger, ticket, what)  # it was the door when it was opened, not a number used again
                os.pwrite(ledger, _WORD.pack(_TAKEN), _at(ticket))
            except BaseException:
                os.close(door)
                raise
        finally:
            os.close(ledger)
    except SegmentError:
        raise
    except OSError as error:
        zombie = error.errno in (errno.EACCES, errno.EPERM) and not is_alive(ticket.pid)
        if error.errno in (errno.ENOENT, errno.ESRCH) or zombie:
            _gone(ticket, what, "has ended")
        raise SegmentError(error.errno or errno.EIO, f"receive {what} from process {ticket.pid}") from error
    return attach(ticket.uid, ticket.size, ticket.kind, door)


def _at(ticket: Ticket) -> int:
    return _TOKEN_BYTES + ticket.slot * _WORD.size


def _enter(ticket: Ticket, number: int) -> int:
    path = f"/proc/{ticket.pid}/fd/{number}"
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # whatever the number stands for by now
    for attempt in range(2):
        try:
            return os.open(path, flags | os.O_RDWR)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and not attempt:
                trim()
            elif error.errno in (errno.EPERM, errno.ETXTBSY):
                break
            else:
                raise
    return os.open(path, flags | os.O_RDONLY)


def _check(ledger: int, ticket: Ticket, what: str) -> None:
    if os.pread(ledger, _TOKEN_BYTES, 0) != ticket.token:
        _gone(ticket, what, "has ended")
    if os.pread(ledger, _WORD.size, _at(ticket)) != _WORD.pack(ticket.key):
        _gone(ticket, what, "has it no more: a message can be read once")


def _gone(ticket: Ticket, what: str, why: str) -> NoReturn:
    raise SegmentGoneError(
        errno.ESTALE,
        f"receive {what} by reference: process {ticket.pid}, which sent it, {why}",
    ) from None
