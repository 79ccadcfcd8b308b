"""How this process sends into one queue: at once where there is room, else from a backlog by a thread.

::

    put ──► push ──┬── room in the socket ─────────────────────────▶ socket
                   └── none, or a backlog ──▶ backlog ──(feeder)──▶

All `ndshare.Queue` objects of a process that stand for the same queue use one line, so that the order of what
a thread puts is kept.

Guarantees
----------
* Nothing overtakes the backlog.
* A fork never happens in the middle of a push; the child has no backlog and no slot of its parent's.
"""

from __future__ import annotations

import os
import threading
import weakref

from ndshare._queue.backlog import Backlog
from ndshare._queue.memory import ENDS, HAD_PRODUCERS, PRODUCER_BYTE, SHUT, Files
from ndshare._queue.messages import Message, short_of_files
from ndshare._queue.wire import Wire
from ndshare._system import _wire, is_byte_locked, lock_byte, reopen
from ndshare._transport import INLINE_MAX
from ndshare.errors import SegmentError, ShutDown


class Producer:
    """Whether this process counts as one that may still put, where a queue ends with the last of them.

    It does from the moment at which it has the queue, until it takes something out without ever having put,
    closes the queue, or ends. What counts is a lock of an open file description, which travels with the
    queue: it is held while the queue is on its way, and by all who have it from one another.

    Parameters
    ----------
    wire : Wire
    lock : threading.RLock
        That of the backlog, which is held over a fork.
    fd : int
        The description that came with the queue; -1: none.
    """

    def __init__(self, wire: Wire, lock: threading.RLock, fd: int) -> None:
        self.has_put = False
        self._wire = wire
        self._lock = lock
        self._fd = fd
        self._held = False
        self._hold()

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        if self._fd >= 0:
            close(self._fd)

    def _hold(self) -> None:
        if self._held:
            return
        if self._fd < 0:
            self._fd = self._new_hold()
        try:
            lock_byte(self._fd, PRODUCER_BYTE, shared=True)
        except OSError:  # it was let go of, here or on its way
            fd = self._new_hold()
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
        self._held = True

    def _new_hold(self) -> int:
        fd = reopen(self._wire.files.memory)
        lock_byte(fd, PRODUCER_BYTE, shared=True)
        return fd

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            # Closed, not unlocked: others have it as well. The number stays taken: it may be on its way.
            os.dup2(self._wire.files.bell_out, self._fd, inheritable=False)

    def begin(self) -> None:
        """Count for good: this process is about to put."""
        with self._lock:
            self._hold()
            self._wire.set_flags(HAD_PRODUCERS)
            self.has_put = True

    def step_back(self) -> None:
        """Count no more, unless this process has put: it takes out."""
        if self._held and not self.has_put:
            with self._lock:
                self._let_go()

    def end(self) -> None:
        """Count no more: the queue is closed here."""
        with self._lock:
            self._let_go()

    def hand_out(self) -> int:
        """Return a file that makes another process count, and will be closed."""
        self._wire.set_flags(HAD_PRODUCERS)
        return self._new_hold()

    def share(self) -> int:
        """Return the file that makes this process count, from now on and until it takes something out."""
        with self._lock:
            self._hold()
            self._wire.set_flags(HAD_PRODUCERS)
            return self._fd

    def before_fork(self) -> bool:
        """Let the child count; returns whether this process does."""
        held = self._held
        self.share()
        return held

    def after_fork(self, held: bool) -> None:
        """Go on in the parent as before."""
        if not held:
            self._let_go()

    def begin_in_child(self, lock: threading.RLock) -> None:
        """Count as one that has not put yet."""
        self._lock, self.has_put = lock, False

    def none_is_left(self) -> bool:
        """Tell whether no process can put any more: there have been some, and none counts."""
        return bool(self._wire.flags & HAD_PRODUCERS) and not is_byte_locked(
            self._wire.files.memory, PRODUCER_BYTE
        )


class Line:
    """The end of a queue that a process has.

    Attributes
    ----------
    wire : Wire
    backlog : Backlog
    producer : Producer or None
        Only of a queue that ends with its producers.
    users : int
        Open `Queue` objects.
    """

    def __init__(self, wire: Wire, producer_fd: int = -1) -> None:
        self.wire = wire
        self.backlog = Backlog(wire)
        self.producer = Producer(wire, self.backlog.lock, producer_fd) if wire.flags & ENDS else None
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
            with self.backlog.lock:
                if self.wire.flags & SHUT:
                    raise ShutDown
                if backlog.messages or message.draft is not None or not backlog.send(message):
                    backlog.add(message)
                self.wire.count_put()
                feeds_here = backlog.start_feeder()
        finally:
            _wire.unshield()
        if feeds_here:
            backlog.feed_here()

    def push_stream(self, stream: bytes) -> bool:
        """Accept a pickle that is all of a message, without a detour; False if it has to go the long way."""
        if len(stream) >= INLINE_MAX:
            return False
        backlog = self.backlog
        return backlog.add_stream(stream) if backlog.messages else self.wire.send_bare(stream)

    def open(self) -> None:
        """Count a `Queue` that uses this line."""
        with self.backlog.lock:
            self.users += 1

    def close(self) -> None:
        """Count it no more; after the last one this process takes no messages."""
        with self.backlog.lock:
            self.users -= 1
            if self.users == 0:
                self.wire.stop_hearing()
                if self.producer is not None:
                    self.producer.end()


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


def line_of(files: Files, producer_fd: int = -1) -> Line:
    """Return this process's line of a queue; the files are taken over, that of a `Producer` as well."""
    status = os.fstat(files.memory)
    key = status.st_dev, status.st_ino
    with _registry_lock:
        line = _lines.get(key)
        if line is not None and line.wire.heard:
            for fd in {*files, *((producer_fd,) if producer_fd >= 0 else ())}.difference(line.wire.files):
                os.close(fd)
        else:
            _wire.shield_main(threading.main_thread().ident or 0)
            line = _lines[key] = Line(Wire(files), producer_fd)
            _backlogs.add(line.backlog)
        line.open()
        return line


def _before_fork() -> None:
    _registry_lock.acquire()
    _forks.backlogs = list(_backlogs)
    for backlog in _forks.backlogs:
        backlog.lock.acquire()  # a push that is under way is waited for
    producers = [line.producer for line in list(_lines.values()) if line.producer is not None and line.users]
    _forks.producers = [(producer, producer.before_fork()) for producer in producers]


def _after_fork() -> None:
    for producer, held in _forks.__dict__.pop("producers", ()):
        producer.after_fork(held)
    for backlog in _forks.__dict__.pop("backlogs", ()):
        backlog.lock.release()
    _registry_lock.release()


def _begin_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    for backlog in _forks.__dict__.pop("backlogs", ()):
        backlog.begin_in_child()
    _forks.__dict__.pop("producers", None)
    for line in list(_lines.values()):
        if line.producer is not None:
            line.producer.begin_in_child(line.backlog.lock)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_begin_in_child)
