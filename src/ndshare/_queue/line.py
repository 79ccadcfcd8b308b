"""How this process sends into one queue: at once where there is room, else from a backlog by a thread.

::

    put ──► push ──┬── room in the socket ─────────────────────────▶ socket
                   └── none, or a backlog ──▶ backlog ──(feeder)──▶

All `ndshare.Queue` objects of a process that stand for the same queue use one line, so that the order of what
a thread puts is kept.

Guarantees
----------
* Nothing overtakes the backlog.
* A fork never happens in the middle of a push; the child has no backlog and holds no slot of its parent's.
"""

from __future__ import annotations

import os
import threading
import weakref

from ndshare._queue.backlog import Backlog, Slots
from ndshare._queue.memory import SHUT, Files
from ndshare._queue.messages import Message, short_of_files
from ndshare._queue.wire import Wire
from ndshare._system import _wire
from ndshare._transport import INLINE_MAX
from ndshare.errors import SegmentError, ShutDown


class Line:
    """The end of a queue that a process has.

    Attributes
    ----------
    wire : Wire
    slots : Slots
    backlog : Backlog
    users : int
        Open `Queue` objects.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.slots = Slots(wire)
        self.backlog = Backlog(wire, self.slots)
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
        backlog = self.backlog
        if not backlog.messages:
            _settle(message)
        if message.draft is not None:
            message.detach()
        _wire.shield()  # a backlog has one feeder, and what is in it goes out once
        try:
            with self.slots.lock:
                if self.wire.flags & SHUT:
                    raise ShutDown
                if backlog.messages or message.draft is not None or not backlog.send(message):
                    backlog.add(message)
                self.wire.count_put()
        finally:
            _wire.unshield()
        backlog.feed_here()

    def push_stream(self, stream: bytes) -> bool:
        """Accept a pickle that is all of a message, without a detour; False if it has to go the long way."""
        if not self.backlog.messages:
            return self.wire.send_bare(stream)
        return not self.wire.slots and len(stream) < INLINE_MAX and self.backlog.add_stream(stream)

    def open(self) -> None:
        """Count a `Queue` that uses this line."""
        with self.slots.lock:
            self.users += 1

    def close(self) -> None:
        """Count it no more; after the last one this process takes no messages."""
        with self.slots.lock:
            self.users -= 1
            if self.users == 0:
                self.wire.stop_hearing()


def _settle(message: Message) -> None:
    """Copy a message into segments, if there are descriptors for them."""
    try:
        message.settle()
    except SegmentError as error:
        if not short_of_files(error):
            raise


# ---------------------------------------------------------------------- the lines of this process

_lines: weakref.WeakValueDictionary[tuple[int, int], Line] = weakref.WeakValueDictionary()
_backlogs: weakref.WeakSet[Backlog] = weakref.WeakSet()  # also of lines that are gone and still send
_registry_lock = threading.RLock()
_forks = threading.local()  # the backlogs whose locks a fork that is under way has taken


def line_of(files: Files) -> Line:
    """Return this process's line of a queue; the files are taken over."""
    status = os.fstat(files.memory)
    key = status.st_dev, status.st_ino
    with _registry_lock:
        line = _lines.get(key)
        if line is not None and line.wire.heard:
            for fd in set(files).difference(line.wire.files):
                os.close(fd)
        else:
            _wire.shield_main(threading.main_thread().ident or 0)
            line = _lines[key] = Line(Wire(files))
            _backlogs.add(line.backlog)
        line.open()
        return line


def _before_fork() -> None:
    _registry_lock.acquire()
    _forks.backlogs = list(_backlogs)
    for backlog in _forks.backlogs:
        backlog.slots.lock.acquire()  # a push that is under way is waited for


def _after_fork() -> None:
    for backlog in _forks.__dict__.pop("backlogs", ()):
        backlog.slots.lock.release()
    _registry_lock.release()


def _begin_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    for backlog in _forks.__dict__.pop("backlogs", ()):
        backlog.begin_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_begin_in_child)
