"""How this process sends into one queue: at once where there is room, else from a backlog by a thread.

::

    put ──► push ──┬── room in the socket ─────────────────────────▶ socket
                   └── none, or a backlog ──▶ backlog ──(feeder)──▶

All `ndshare.Queue` objects of a process that stand for the same queue use one line, so that the order of what
a thread puts is kept.

Guarantees
----------
* Nothing overtakes the backlog.
* A process that exits normally waits until its backlog is empty, or nobody is left who could take it.
* A fork never happens in the middle of a push; the child has no backlog and holds no slot of its parent's.
"""

from __future__ import annotations

import collections
import os
import threading

from ndshare._queue.backlog import Backlog
from ndshare._queue.memory import SHUT
from ndshare._queue.messages import Message, short_of_files
from ndshare._queue.wire import Wire
from ndshare._system import _wire
from ndshare.errors import SegmentError, ShutDown


class Line(Backlog):
    """The end of a queue that a process has.

    Attributes
    ----------
    users : int
        Open `Queue` objects.
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.users = 0

    def push(self, message: Message) -> None:
        """Accept a message, and send it if there is room; if that fails, its slot is the caller's to free.

        Raises
        ------
        ShutDown
            If the queue was shut down.
        CapacityError
            If there is no memory for the copies.
        """
        if not self.backlog:
            _settle(message)
        if message.draft is not None:
            message.detach()
        _wire.shield()  # a backlog has one feeder, and what is in it goes out once
        try:
            with self._lock:
                if self.wire.flags & SHUT:
                    raise ShutDown
                if self.backlog or message.draft is not None or not self._send(message):
                    self._delay(message)
                self.wire.count_put()
        finally:
            _wire.unshield()
        if self.backlog and self._feeder is None:
            self._feed()

    def open(self) -> None:
        """Count a `Queue` that uses this line."""
        with self._lock:
            self.users += 1

    def close(self) -> None:
        """Count it no more; after the last one this process takes no messages."""
        with self._lock:
            self.users -= 1
            if self.users == 0:
                self.wire.stop_hearing()

    def before_fork(self) -> None:
        """Wait for a push that is under way, and let none begin."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Go on after a fork, in the parent."""
        self._lock.release()

    def begin_in_child(self) -> None:
        """Give up what is the parent's."""
        self._lock = threading.RLock()
        self.backlog = collections.deque()
        self._feeder = None
        for fd in (*self._slot_fds, *((self._keep_fd,) if self._keep_fd >= 0 else ())):
            os.close(fd)
        self._slot_fds = set()
        self._keep_fd = -1


def _settle(message: Message) -> None:
    """Copy a message into segments, if there are descriptors for them."""
    try:
        message.settle()
    except SegmentError as error:
        if not short_of_files(error):
            raise
