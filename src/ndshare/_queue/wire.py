"""Messages into the socket of a queue and out of it. No waiting, no threads.

Guarantees
----------
* Nothing here blocks. A message is sent whole or not at all.
* At most a quarter of the open files a process may have is in flight in one queue: descriptors in flight
  count for the whole user, and the kernel refuses everybody when there are too many.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket

from ndshare._memory import trim
from ndshare._queue.memory import HEAD, IMMEDIATE, PLAIN, SHUT, Files
from ndshare._queue.messages import FDS_MAX, Message, envelope
from ndshare._queue.waiting import Waiting
from ndshare._system import _wire, descriptors_in_flight
from ndshare._transport import BARE_TAG, INLINE_MAX, close_all
from ndshare.errors import SegmentError, ShutDown

Received = bytes | tuple[bytes, tuple[int, ...]]
"""A pickle, or a message and its descriptors."""

_BARE_HEAD = HEAD.pack(PLAIN, 0, 0, 0) + BARE_TAG
_END = (b"", ())


class Wire(Waiting):
    """The files of a queue, to send by and to receive from."""

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self.receiving = files.into, self.memory, files.bell_out  # arguments of queue_recv
        self.sending = files.out, files.memory, self.memory  # ... of queue_send
        self._budget = 0  # descriptors that may be sent before looking again how many are in flight

    # ---- sending

    def send_bare(self, stream: bytes) -> bool:
        """Send a pickle that is all of a message; False if that cannot be done at once."""
        nbytes = len(stream)
        if nbytes >= INLINE_MAX:
            return False
        if self.slots:
            if self._budget <= 0 or nbytes > (self.maxbytes or nbytes):
                return False
            self._budget -= 1
            nbytes = max(nbytes, self.least)
        return _wire.queue_send(*self.sending, stream, nbytes)

    def send_again(self, stream: bytes) -> bool:
        """Send a pickle that was accepted before; False if there is no room, or the queue was shut down."""
        try:
            return _wire.send_message(self.files.out, (_BARE_HEAD, stream), (), socket.MSG_DONTWAIT)
        except BrokenPipeError:
            return False

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
            if message.slot_fd >= 0:
                fds = [*fds, message.slot_fd]
            if fds and not self._has_room(len(lent) + 1, late):
                return False
            sock = self.files.into if late else self.files.out
            return _wire.send_message(sock, (head, *parts), fds, socket.MSG_DONTWAIT)
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
        return _wire.queue_recv(self.files.out, self.memory, self.files.bell_out)

    # ---- the end

    def shut_down(self, *, immediate: bool) -> None:
        """Let nothing in any more; with `immediate` let nothing out either."""
        sock = socket.socket(fileno=self.files.out)
        try:
            sock.shutdown(socket.SHUT_WR)  # first: it wakes who waits, whatever becomes of this process
        finally:
            sock.detach()
        self.set_flags(SHUT | IMMEDIATE if immediate else SHUT)
        with contextlib.suppress(BlockingIOError):
            os.write(self.files.bell_out, b"!")
        if immediate:
            for recv in (self.files.into, self.files.out):
                # What is received now is dropped: the flag is set.
                while True:
                    received = _wire.queue_recv(recv, self.memory, self.files.bell_out)
                    if received is None or received == _END:
                        break
