"""What this process has accepted for a queue and the socket has no room for, and the thread that sends it.

Guarantees
----------
* Order: nothing overtakes the backlog.
* A message is in the socket, or in the backlog of a live process that holds BACKLOG_BYTE. Its slot is locked
  all the time.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import threading
import time
import types

from ndshare._memory import stats
from ndshare._queue import at_exit
from ndshare._queue.memory import BACKLOG_BYTE, IMMEDIATE, SHUT, SLOT_BYTE, hold_again, keep_slot
from ndshare._queue.messages import Message, short_of_files
from ndshare._queue.slots import Slots
from ndshare._queue.wire import Wire
from ndshare._system import lock_byte, reopen, unlock_byte
from ndshare.errors import CapacityError, SegmentError, ShutDown

_PAUSE_S = 0.002  # between two attempts when the kernel cannot say when there is room: descriptors in flight
_STUCK_S = 30.0  # a message whose memory cannot be had for so long although nothing else is in flight is lost
_LOOK_MS = 1000.0
_PUMP_EVERY = 16
_MOMENT_S = 0.001


class Backlog(Slots):
    """The messages of one queue that wait in this process.

    Attributes
    ----------
    backlog : collections.deque of Message or bytes
        What was accepted and is not in the socket; bytes: a pickle that is all of a message.
    waits_at_exit : bool
        Whether the process waits for the backlog when it ends.
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.backlog: collections.deque[Message | bytes] = collections.deque()
        self.waits_at_exit = True
        self._feeder: threading.Thread | None = None
        self._keep_fd = -1  # holds BACKLOG_BYTE and the slots of the backlog
        self._late = False  # shut down: what is left goes the other way
        self._got_in_vain = -1  # messages taken out when it was no use to wait for more

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

    def let_drain(self) -> None:
        """Wait for a moment, as often as it helps, before more is put behind a bounded backlog.

        The long way, on which a slot changes hands twice, costs several times as much as the short one, and
        who puts faster than the feeder sends would never come back to it. If nothing is taken out this waits
        only once.
        """
        got = self.wire.got
        if got == self._got_in_vain:
            return
        if not self.backlog:
            self.wire.wait_for_room(_MOMENT_S * 1e3)
        while left := len(self.backlog):
            time.sleep(_MOMENT_S)
            if len(self.backlog) >= left:
                break
        if self.wire.got == got:
            self._got_in_vain = got

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

    def _delay(self, message: Message) -> None:
        """Put a message into the backlog. Lock held."""
        if self._keep_fd < 0:
            keep_fd = reopen(self.wire.files.memory)
            lock_byte(keep_fd, BACKLOG_BYTE, shared=True)
            if self.wire.flags & SHUT:  # a receiver may have looked before the lock was there
                os.close(keep_fd)
                raise ShutDown
            self._keep_fd = keep_fd
            at_exit.expect(self)
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
                unlock_byte(self._keep_fd, SLOT_BYTE + message.slot)
            sent = self._send(message)
        except ShutDown:
            self._late = True
        except OSError:  # no descriptor for the slot
            pass
        if message.slot_fd >= 0:
            lock_byte(self._keep_fd, SLOT_BYTE + message.slot, shared=True)
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
                unlock_byte(self._keep_fd, SLOT_BYTE + message.slot)
                self.wire.ring()
        sys.unraisablehook(
            types.SimpleNamespace(
                exc_type=CapacityError,
                exc_value=CapacityError(message.nbytes, stats().available, stats().limit),
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
        at_exit.forget(self)
        self.wire.ring()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the backlog is empty, or nobody is left to take it; False if the time is over before."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (feeder := self._feeder) is not None:
            feeder.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if deadline is not None and time.monotonic() >= deadline:
                return self._feeder is None
            if self._feeder is feeder and not feeder.is_alive():  # by an error of its own
                return False
        return True

    def finish(self) -> None:
        """Deliver what there is, as far as anybody is left to take it, before this process ends."""
        if self.waits_at_exit:
            with self._lock:
                self.wire.stop_hearing()
            self.join()


def _settled(message: Message) -> bool:
    """Copy a message into segments; False if there is neither memory nor descriptor for it at present."""
    try:
        message.settle()
    except (CapacityError, SegmentError):
        return False
    return True
