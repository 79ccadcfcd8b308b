"""The open files of a queue in this process: what can be seen in them, messages in and out, waiting.

Guarantees
----------
* To send and to receive never blocks. A message is sent whole or not at all.
* At most a quarter of the open files a process may have is in flight in one queue: descriptors in flight
  count for the whole user, and the kernel refuses everybody when there are too many.
* Who waits does not miss for long that somebody died.
* All files are closed when the last reference goes: a thread that still works with them keeps them open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import resource
import select
import socket
import struct
import termios
import time

from ndshare._memory import trim
from ndshare._queue.memory import (
    BACKLOG_BYTE,
    DONE,
    FLAGS,
    GOT,
    IMMEDIATE,
    LEAST_PART,
    PUT,
    SHUT,
    WAITERS,
    Files,
    open_memory,
)
from ndshare._queue.messages import FDS_MAX, Message, envelope
from ndshare._system import _wire, descriptors_in_flight, is_byte_locked, reopen
from ndshare._transport import close_all
from ndshare.errors import SegmentError, ShutDown

Received = bytes | tuple[bytes, tuple[int, ...]]
"""A pickle, or a message and its descriptors."""

_END = (b"", ())

_DEATHS_MS = 100.0  # how often a waiter looks for participants that died
_NEVER_MS = 3_600_000.0
_SPIN_US = 50  # to be woken costs the sender more than this costs the waiter
_SPIN_MAX_S = 0.001  # ... if the last message did not take longer than this to come


class Wire:
    """The files of a queue in this process.

    Attributes
    ----------
    files : Files
    memory : mmap.mmap
    maxsize, maxbytes : int
        As they were asked for; 0: no bound.
    is_bounded : bool
    least : int
        What a message counts for at least, in bytes.
    heard : bool
        Whether this process counts as one that may take messages.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self._own_fd = -1  # a description of the memory's file that no other process has: see `_enter`
        for fd in files:
            os.set_inheritable(fd, False)
        self.memory, self.maxsize, self.maxbytes = open_memory(files.memory)
        self.is_bounded = bool(self.maxsize or self.maxbytes)
        self.least = self.maxbytes // LEAST_PART if self.maxbytes and not self.maxsize else 1
        self.heard = True
        self._budget = 0  # descriptors that may be sent before looking again how many are in flight
        self._waited_s = 1.0
        self._enter()

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        for fd in (*self.files, self._own_fd):
            if fd >= 0:
                close(fd)

    def _enter(self) -> None:
        """Get an entry in the memory, so that what this process holds of a bounded queue ends with it."""
        member = 0
        if self.is_bounded:
            with contextlib.suppress(OSError):  # too many open files: then its death will not be noticed
                own_fd = reopen(self.files.memory)
                member = _wire.queue_enter(self.memory, own_fd)
                self._own_fd = own_fd
        self.member = member
        self.receiving = self.memory, self.files.into, self.files.bell_out, member  # arguments of queue_recv
        self.sending = self.memory, self.files.out, member  # ... of queue_send

    def begin_in_child(self) -> None:
        """Be another process than the parent of a fork."""
        if self._own_fd >= 0:
            os.close(self._own_fd)
            self._own_fd = -1
        self._enter()

    @property
    def flags(self) -> int:
        """SHUT, IMMEDIATE, WORKERS."""
        return _wire.load_u64(self.memory, FLAGS)

    def set_flags(self, flags: int) -> None:
        """Set flags for everybody; there is no way back."""
        while not _wire.cas_u64(self.memory, FLAGS, before := self.flags, before | flags):
            pass

    @property
    def got(self) -> int:
        """How many messages were taken out."""
        return _wire.load_u64(self.memory, GOT)

    def count_put(self, number: int = 1) -> None:
        """Count a message that was accepted."""
        _wire.add_u64(self.memory, PUT, number)

    def count_dropped(self, number: int = 1) -> None:
        """Count messages that nobody will take out any more: they are out, and done with."""
        for cell in (GOT, DONE):
            _wire.add_u64(self.memory, cell, number)

    def ring(self) -> None:
        """Wake who waits for a slot."""
        if _wire.load_u64(self.memory, WAITERS):
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self.files.bell_out, b".")

    # ---- slots of a bounded queue

    def charge_of(self, nbytes: int) -> int:
        """Return for how many bytes a message of so many counts."""
        return max(nbytes, self.least) if self.maxbytes else 0

    def take_slot(self, charge: int) -> bool:
        """Take a slot; False if the queue is full."""
        return _wire.queue_take(self.memory, self.member, charge)

    def pass_slot(self, charge: int) -> None:
        """Note that a message is in the socket, its slot with it."""
        _wire.queue_pass(self.memory, self.member, charge)

    def return_slot(self, charge: int) -> None:
        """Give back the slot of a message that is not sent."""
        _wire.queue_give_back(self.memory, self.member, charge)

    def mend(self) -> bool:
        """Give back slots that were lost with dead processes; tell whether there were any. Lock held."""
        own_fd = self._own_fd
        if own_fd < 0:
            try:
                own_fd = reopen(self.files.memory)
            except OSError:
                return False
        try:
            files = self.files
            return bool(_wire.queue_mend(self.memory, own_fd, files.into, files.out, self.member))
        finally:
            if own_fd != self._own_fd:
                os.close(own_fd)

    def used(self) -> int:
        """Return how many slots are in use, or were lost and not mended yet."""
        return _wire.queue_used(self.memory)

    def has_backlogs(self) -> bool:
        """Tell whether a process still has messages that the socket had no room for."""
        return is_byte_locked(self.files.memory, BACKLOG_BYTE)

    def has_messages(self) -> bool:
        """Tell whether a message is there to be received."""
        flags = self.flags
        if flags & IMMEDIATE:
            return False
        for fd in (self.files.into, self.files.out) if flags & SHUT else (self.files.into,):
            # Not by a look at the message: `mend` of others may have moved the place that is looked at.
            (waiting,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
            if waiting > 0:
                return True
        return False

    def stop_hearing(self) -> None:
        """Do not count as one that may take messages any more: then `is_deserted` can tell."""
        if self.heard:
            self.heard = False
            # Its number stays taken: another thread may be about to use it.
            os.dup2(self.files.bell_out, self.files.bell_in, inheritable=False)

    def is_deserted(self) -> bool:
        """Tell whether no process is left that could take messages: none has the queue, none will get it."""
        return not self.heard and bool(_ready_within(self.files.bell_out, 0, 0.0))

    # ---- sending

    def send_bare(self, stream: bytes) -> bool:
        """Send a pickle that is all of a message, with a slot; False if that cannot be done at once."""
        memory, out, member = self.sending
        charge = max(len(stream), self.least) if self.maxbytes else 0
        return _wire.queue_send(memory, out, member, charge, False, stream)

    def send_again(self, stream: bytes) -> bool:
        """Send a pickle that was accepted before; False if there is no room, or the queue was shut down."""
        return _wire.queue_send(*self.sending, self.charge_of(len(stream)), True, stream)

    def send(self, message: Message, *, late: bool = False) -> bool:
        """Send a settled message; False if there is no room at present.

        Raises
        ------
        BrokenPipeError
            If the queue was shut down.
        SegmentError
            If a descriptor cannot be had.
        """
        parts, lent = message.lend()
        try:
            fds = lent
            if len(lent) > FDS_MAX:
                try:
                    fds = [envelope(lent)]
                except BlockingIOError:
                    return False
                lent += fds
            head = message.head(split=fds is not lent)
            if fds and not self._has_room(len(lent), late):
                return False
            sock = self.files.into if late else self.files.out
            if not _wire.send_message(sock, (head, *parts), fds, socket.MSG_DONTWAIT):
                return False
            if message.charge >= 0:
                self.pass_slot(message.charge)
            return True
        finally:
            close_all(lent)

    def _has_room(self, count: int, late: bool) -> bool:
        if count > self._budget:
            quarter = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
            there = descriptors_in_flight(self.files.out if late else self.files.into)
            if there and there + count > quarter:
                return False
            self._budget = max(count, (quarter - there) // 4)
        self._budget -= count
        return True

    # ---- receiving

    def receive(self) -> Received | None:
        """Return the next message, or None if there is none.

        Raises
        ------
        ShutDown
            If the queue was shut down and none will come any more.
        SegmentError
            If the process has too many open files; the message stays where it is.
        """
        try:
            received = _wire.queue_recv(*self.receiving)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            received = self._receive_with_room()
        if received and received != _END:  # most often
            return received
        return None if received is None else self._receive_late()

    def _receive_with_room(self) -> Received | None:
        gc.collect()
        trim()
        try:
            return _wire.queue_recv(*self.receiving)
        except OSError as error:
            raise SegmentError(error.errno or 0, "receive a message of a queue") from None

    def _receive_late(self) -> Received | None:
        """Receive what had been accepted before the queue was shut down, and found no room then."""
        self.set_flags(SHUT)  # whoever shuts it down may be killed before; who delays looks for it
        if self.flags & IMMEDIATE:
            raise ShutDown
        received = self._recv_late()
        if received is None and not self.has_backlogs():
            received = self._recv_late()  # the last sender may have been quick
            if received is None:
                raise ShutDown
        return received

    def _recv_late(self) -> Received | None:
        return _wire.queue_recv(self.memory, self.files.out, self.files.bell_out, self.member)

    # ---- waiting

    def wait_for_message(self, seconds: float | None, *, deaths: bool = False) -> None:
        """Wait until there may be a message, at most so long, and not longer than deaths may go unseen."""
        shut = self.flags & SHUT
        most = min(_milliseconds(seconds), _DEATHS_MS if shut or deaths else _NEVER_MS)
        if shut:
            _ready_within(self.files.out, select.POLLIN, most)
        else:
            start = time.monotonic()
            if self._waited_s < _SPIN_MAX_S:
                _wire.spin(self.files.into, _SPIN_US)
            _ready_within(self.files.into, select.POLLIN, most)
            self._waited_s = time.monotonic() - start

    def spin_for_slot(self) -> bool:
        """Look for a free slot for a moment, without sleeping; tell whether there seems to be one."""
        return not self.maxbytes and _wire.queue_spin(self.memory, _SPIN_US)

    def wait_for_slot(self, seconds: float | None) -> bool:
        """Wait until there may be a free slot, at most so long, and not longer than a death may go unseen.

        Returns whether somebody said that there is one.
        """
        rung = _ready_within(self.files.bell_in, select.POLLIN, min(_milliseconds(seconds), _DEATHS_MS))
        if rung:
            self.hear_bell()
        return rung

    def hear_bell(self) -> None:
        """Take one ring of the bell, unless it is for everybody."""
        if not self.flags & SHUT:
            with contextlib.suppress(OSError):  # somebody else took it, or the queue has been closed here
                os.read(self.files.bell_in, 1)

    def wait_for_room(self, milliseconds: float, *, late: bool = False) -> bool:
        """Wait until a message may find room in the socket, or nobody is left to take it.

        Returns False if there was room all the time: the kernel refuses for another reason.
        """
        poll = select.poll()
        poll.register(self.files.into if late else self.files.out, select.POLLOUT)
        poll.register(self.files.bell_out, 0)
        if poll.poll(0):
            return False
        poll.poll(milliseconds)
        return True

    # ---- the end

    def shut_down(self, *, immediate: bool) -> None:
        """Let nothing in any more; with `immediate` let nothing out either."""
        sock = socket.socket(fileno=self.files.out)
        try:
            sock.shutdown(socket.SHUT_WR)  # first: it wakes who waits, whatever becomes of this process
        finally:
            sock.detach()
        self.set_flags(SHUT | IMMEDIATE if immediate else SHUT)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self.files.bell_out, b"!")
        if immediate:
            for recv in (self.files.into, self.files.out):
                # What is received now is dropped: the flag is set.
                while True:
                    received = _wire.queue_recv(self.memory, recv, self.files.bell_out, self.member)
                    if received is None or received == _END:
                        break


def _ready_within(fd: int, events: int, milliseconds: float) -> bool:
    """Wait for a file; tell whether anything happened."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(milliseconds))


def _milliseconds(seconds: float | None) -> float:
    return _NEVER_MS if seconds is None else max(0.0, min(seconds * 1e3, _NEVER_MS))
