"""How this process sends into one queue: at once where there is room, else from a backlog by a thread.

::

    put ──► push ──┬── room in the socket ─────────────────────────▶ socket
                   └── none, or a backlog ──▶ backlog ──(feeder)──▶

All `ndshare.Queue` objects of a process that stand for the same queue use one line, so that the order of what
a thread puts is kept.

Guarantees
----------
* Order: nothing overtakes the backlog.
* A message is in the socket, or in the backlog of a live process that holds BACKLOG_BYTE. Its slot is locked
  all the time.
* A process that exits normally waits until its backlog is empty, or nobody is left who could take it.
* A fork never happens in the middle of a push; the child has no backlog and holds no slot of its parent's.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import threading
import time
import types

from ndshare import _platform, _queue_exit, _wire, segments
from ndshare._queue_memory import BACKLOG_BYTE, IMMEDIATE, SHUT, SLOT_BYTE, hold_again, keep_slot
from ndshare._queue_messages import Message, short_of_files
from ndshare._queue_wire import Wire
from ndshare.errors import CapacityError, SegmentError, ShutDown

_PAUSE_S = 0.002  # between two attempts when the kernel cannot say when there is room: descriptors in flight
_STUCK_S = 30.0  # a message whose memory cannot be had for so long although nothing else is in flight is lost
_LOOK_MS = 1000.0
_PUMP_EVERY = 16


class Line:
    """The end of a queue that a process has.

    Attributes
    ----------
    wire : Wire
    users : int
        Open `Queue` objects.
    backlog : collections.deque of Message or bytes
        What was accepted and is not in the socket; bytes: a pickle that is all of a message.
    waits_at_exit : bool
        Whether the process waits for the backlog when it ends.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.users = 0
        self.waits_at_exit = True
        self._lock = threading.RLock()
        self.backlog: collections.deque[Message | bytes] = collections.deque()
        self._feeder: threading.Thread | None = None
        self._slot_fds: set[int] = set()  # open in this process; each holds a slot
        self._keep_fd = -1  # holds BACKLOG_BYTE and the slots of the backlog
        self._late = False  # shut down: what is left goes the other way

    # ---- putting

    def take_slot(self, message: Message, doubt: bool = True) -> bool:
        """Get a slot of a bounded queue for a message; False if it is full.

        Unless there is reason to doubt it, what dead processes had counts as in use.

        Raises
        ------
        ShutDown
            If the queue was shut down.
        """
        wire = self.wire
        if wire.flags & SHUT:
            raise ShutDown
        nbytes = max(message.nbytes, wire.least) if wire.maxbytes else 1
        with self._lock:
            taken = _wire.queue_take(wire.files.memory, wire.memory, nbytes, doubt)
            if taken is None:
                return False
            message.slot, message.slot_fd = taken
            self._slot_fds.add(message.slot_fd)
        return True

    def is_full_of_bytes(self) -> bool:
        """Tell whether a queue bounded in bytes has no room for even one."""
        probe = Message(None, define=False)
        probe.settle()  # then it counts for nothing
        if self.take_slot(probe):
            self.give_back_slot(probe)
            return False
        return True

    def push_behind(self, stream: bytes) -> bool:
        """Accept a pickle that is all of a message, behind the backlog; False if there is none."""
        with self._lock:
            if not self.backlog or self.wire.flags & SHUT:
                return False
            self.backlog.append(stream)
            self.wire.count_put()
            if len(self.backlog) % _PUMP_EVERY == 0:  # the feeder may have to wait for the GIL
                self._pump()
        return True

    def _pump(self) -> bool:
        """Send pickles from the front of the backlog while there is room; tell whether any. Lock held."""
        backlog = self.backlog
        before = len(backlog)
        while backlog and not self._late and type(backlog[0]) is bytes:
            if not self.wire.send_again(backlog[0]):
                self._late = bool(self.wire.flags & SHUT)
                break
            backlog.popleft()
        return len(backlog) < before

    def give_back_slot(self, message: Message) -> None:
        """Let go of the slot of a message that is not sent."""
        if message.slot_fd >= 0:
            self.wire.clear_slot(message.slot)
            self._close_slot(message)
            self.wire.ring()

    def push(self, message: Message) -> None:
        """Accept a message, and send it if there is room.

        Raises
        ------
        ShutDown
            If the queue was shut down.
        CapacityError
            If there is no memory for the copies.
        """
        try:
            if not self.backlog:
                _settle(message)
            if message.draft is not None:
                message.detach()
            with self._lock:
                if self.wire.flags & SHUT:
                    raise ShutDown
                if self.backlog or message.draft is not None or not self._send(message):
                    self._delay(message)
                self.wire.count_put()
            if self.backlog and self._feeder is None:
                self._feed()
        except BaseException:
            self.give_back_slot(message)
            raise

    def _send(self, message: Message) -> bool:
        try:
            if not self.wire.send(message, late=self._late):
                return False
        except BrokenPipeError:
            raise ShutDown from None
        except SegmentError as error:
            if not short_of_files(error):
                raise
            return False
        if message.slot_fd >= 0:
            self._close_slot(message)
        message.release()
        return True

    def _close_slot(self, message: Message) -> None:
        fd, message.slot_fd = message.slot_fd, -1
        self._slot_fds.discard(fd)
        os.close(fd)

    # ---- the backlog

    def _delay(self, message: Message) -> None:
        """Put a message into the backlog. Lock held."""
        if self._keep_fd < 0:
            keep_fd = _platform.reopen(self.wire.files.memory)
            _platform.lock_byte(keep_fd, BACKLOG_BYTE, shared=True)
            if self.wire.flags & SHUT:  # a receiver may have looked before the lock was there
                os.close(keep_fd)
                raise ShutDown
            self._keep_fd = keep_fd
            _queue_exit.expect(self)
        if message.slot_fd >= 0:
            keep_slot(self._keep_fd, message.slot_fd, message.slot)
            self._close_slot(message)
        self.backlog.append(message)
        if self._feeder is None:
            feeder = threading.Thread(target=self._feed, name="ndshare-queue", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter ends: `finish` comes, or has been here
                feeder.start()
                self._feeder = feeder

    def _feed(self) -> None:
        stuck_since = 0.0
        refused = False  # although there was room
        while True:
            with self._lock:
                if self._pump():
                    refused = False
                if not self.backlog or self.wire.is_deserted() or self.wire.flags & IMMEDIATE:
                    self._end()
                    return
                message = self.backlog[0]
                if type(message) is bytes and self._late:
                    message = self.backlog[0] = Message.of_stream(message)
            ready = True
            if type(message) is Message:  # only this thread sends those
                ready = _settled(message)
                if ready:
                    with self._lock:
                        if self._feed_one(message):
                            stuck_since, refused = 0.0, False
                            continue
            if ready or self.wire.has_messages():
                stuck_since = 0.0
            elif (
                type(message) is Message
            ):  # there is no memory for it, and nobody is going to free any by receiving
                stuck_since = stuck_since or time.monotonic()
                if time.monotonic() - stuck_since > _STUCK_S:
                    self._lose(message)
            # Room that is there now may not have been there when the kernel refused.
            was_refused, refused = refused, not self.wire.wait_for_room(_LOOK_MS, late=self._late)
            if (was_refused and refused) or not ready:
                time.sleep(_PAUSE_S)

    def _feed_one(self, message: Message) -> bool:
        """Send the first message of the backlog; False if that is not possible at present. Lock held."""
        sent = False
        try:
            if message.slot >= 0:
                message.slot_fd = hold_again(self.wire.files.memory, message.slot)
                self._slot_fds.add(message.slot_fd)
                # Before it is sent: once the receiver has it, nobody else may hold the slot.
                _platform.unlock_byte(self._keep_fd, SLOT_BYTE + message.slot)
            sent = self._send(message)
        except ShutDown:
            self._late = True
        except OSError:  # no descriptor for the slot
            pass
        if message.slot_fd >= 0:
            _platform.lock_byte(self._keep_fd, SLOT_BYTE + message.slot, shared=True)
            self._close_slot(message)
        if sent:
            self.backlog.popleft()
        return sent

    def _lose(self, message: Message) -> None:
        """Give up a message whose memory cannot be had."""
        with self._lock:
            self.backlog.popleft()
            if message.slot >= 0:
                self.wire.clear_slot(message.slot)
                _platform.unlock_byte(self._keep_fd, SLOT_BYTE + message.slot)
                self.wire.ring()
        sys.unraisablehook(
            types.SimpleNamespace(
                exc_type=CapacityError,
                exc_value=CapacityError(message.nbytes, segments.stats().available, segments.stats().limit),
                exc_traceback=None,
                err_msg="a message of an ndshare.Queue was lost: there was no memory to send it",
                object=message,
            )
        )

    def _end(self) -> None:
        """Let go of the backlog. Lock held."""
        for message in self.backlog:
            if type(message) is Message:
                self.wire.clear_slot(message.slot)
        self.backlog.clear()
        os.close(self._keep_fd)
        self._keep_fd = -1
        self._feeder = None
        _queue_exit.forget(self)
        self.wire.ring()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the backlog is empty, or nobody is left to take it; False if the time is over before."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (feeder := self._feeder) is not None:
            feeder.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if deadline is not None and time.monotonic() >= deadline:
                return self._feeder is None
        return True

    # ---- life and death

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

    def finish(self) -> None:
        """Deliver what there is, as far as anybody is left to take it, before this process ends."""
        if self.waits_at_exit:
            with self._lock:
                self.wire.stop_hearing()
            self.join()

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


def _settled(message: Message) -> bool:
    """Copy a message into segments; False if there is neither memory nor descriptor for it at present."""
    try:
        message.settle()
    except (CapacityError, SegmentError):
        return False
    return True
