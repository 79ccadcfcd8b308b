"""What this process holds of a queue: slots, and what it has accepted and the socket has no room for.

::

    Slots    the slots of messages that are not sent yet
    Backlog  these messages, in order, and the thread that sends them; the process waits for it when it ends

Guarantees
----------
* Order: nothing overtakes the backlog.
* A message is in the socket, or in the backlog of a live process that holds BACKLOG_BYTE. Its slot is locked
  all the time.
* A process that exits normally waits until its backlogs are empty, or nobody is left who could take them.
  Processes of `multiprocessing` end without what is registered with `atexit`: it is arranged in both ways.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import sys
import threading
import time
import types

from ndshare._memory import available
from ndshare._queue.memory import BACKLOG_BYTE, IMMEDIATE, SHUT, SLOT_BYTE, hold_again, keep_slot
from ndshare._queue.messages import Message, short_of_files
from ndshare._queue.wire import Wire
from ndshare._system import _wire, lock_byte, own_thread, reopen, unlock_byte
from ndshare.errors import CapacityError, SegmentError, ShutDown

_PAUSE_S = 0.002  # between two attempts when the kernel cannot say when there is room: descriptors in flight
_STUCK_S = 30.0  # a message whose memory cannot be had for so long although nothing else is in flight is lost
_LOOK_MS = 1000.0
_PUMP_EVERY = 16
_MOMENT_S = 0.001


class Slots:
    """The slots of a bounded queue that this process has, for messages it has not sent yet.

    Attributes
    ----------
    lock : threading.RLock
        Held while a slot changes hands, and over a fork: the child must not have the descriptor of a slot.
    """

    def __init__(self, wire: Wire) -> None:
        self.lock = threading.RLock()
        self._wire = wire
        self._fds: set[int] = set()  # open in this process; each holds a slot

    def take(self, message: Message, doubt: bool = True) -> bool:
        """Get a slot for a message; False if the queue is full.

        Unless there is reason to doubt it, what dead processes had counts as in use.

        Raises
        ------
        ShutDown
            If the queue was shut down.
        """
        wire = self._wire
        if wire.flags & SHUT:
            raise ShutDown
        nbytes = max(message.nbytes, wire.least) if wire.maxbytes else 1
        _wire.shield()  # Ctrl-C comes behind the call that has taken it
        try:
            with self.lock:
                taken = _wire.queue_take(wire.memory, wire.files.memory, nbytes, doubt)
                if taken is None:
                    return False
                message.slot, message.slot_fd = taken
                self._fds.add(message.slot_fd)
        finally:
            _wire.unshield()
        return True

    def is_full_of_bytes(self) -> bool:
        """Tell whether a queue bounded in bytes has no room for even one."""
        probe = Message(None, define=False)
        probe.settle()  # then it counts for nothing
        if self.take(probe):
            self.give_back(probe)
            return False
        return True

    def give_back(self, message: Message) -> None:
        """Let go of the slot of a message that is not sent."""
        if message.slot_fd >= 0:
            self._wire.clear_slot(message.slot)
            self.close(message)
            self._wire.ring()

    def hold_again(self, message: Message) -> None:
        """Hold the slot of a message, which this process keeps, by a description that can be sent with it."""
        message.slot_fd = hold_again(self._wire.files.memory, message.slot)
        self._fds.add(message.slot_fd)

    def close(self, message: Message) -> None:
        """Close the descriptor of a message's slot, if it has one."""
        fd, message.slot_fd = message.slot_fd, -1
        if fd >= 0:
            self._fds.discard(fd)
            os.close(fd)

    def begin_in_child(self) -> None:
        """Give up what is the parent's."""
        self.lock = threading.RLock()
        for fd in self._fds:
            os.close(fd)
        self._fds = set()


class Backlog:
    """The messages of one queue that wait in this process.

    Attributes
    ----------
    messages : collections.deque of Message or bytes
        What was accepted and is not in the socket; bytes: a pickle that is all of a message.
    slots : Slots
        Those of the same queue; their lock is held wherever the backlog changes.
    waits_at_exit : bool
        Whether the process waits for the backlog when it ends.
    """

    def __init__(self, wire: Wire, slots: Slots) -> None:
        self.messages: collections.deque[Message | bytes] = collections.deque()
        self.waits_at_exit = True
        self._wire = wire
        self.slots = slots
        self._feeder: threading.Thread | None = None
        self._keep_fd = -1  # holds BACKLOG_BYTE and the slots of the backlog
        self._late = False  # shut down: what is left goes the other way
        self._got_in_vain = -1  # messages taken out when it was no use to wait for more

    # ---- in front of it

    def send(self, message: Message) -> bool:
        """Send a message past the backlog; False if there is no room. Lock of the slots held.

        Raises
        ------
        ShutDown
            If the queue was shut down.
        """
        try:
            if not self._wire.send(message, late=self._late):
                return False
        except BrokenPipeError:
            raise ShutDown from None
        except SegmentError as error:
            if not short_of_files(error):
                raise
            return False
        self.slots.close(message)
        message.release()
        return True

    def add(self, message: Message) -> None:
        """Put a message into the backlog. Lock of the slots held."""
        if self._keep_fd < 0:
            keep_fd = reopen(self._wire.files.memory)
            lock_byte(keep_fd, BACKLOG_BYTE, shared=True)
            if self._wire.flags & SHUT:  # a receiver may have looked before the lock was there
                os.close(keep_fd)
                raise ShutDown
            self._keep_fd = keep_fd
            _expect(self)
        if message.slot_fd >= 0:
            keep_slot(self._keep_fd, message.slot_fd, message.slot)
            self.slots.close(message)
        self.messages.append(message)
        if self._feeder is None:
            feeder = own_thread(self._feed, "ndshare-queue")
            with contextlib.suppress(RuntimeError):  # the interpreter ends: `finish` comes, or has been here
                feeder.start()
                self._feeder = feeder

    def add_stream(self, stream: bytes) -> bool:
        """Accept a pickle that is all of a message, behind the backlog; False if there is none."""
        with self.slots.lock:
            if not self.messages or self._wire.flags & SHUT:
                return False
            self.messages.append(stream)
            self._wire.count_put()
            if len(self.messages) % _PUMP_EVERY == 0:  # the feeder may have to wait for the GIL
                self._pump()
        return True

    def let_drain(self) -> None:
        """Wait for a moment, as often as it helps, before more is put behind a bounded backlog.

        The long way, on which a slot changes hands twice, costs several times as much as the short one, and
        who puts faster than the feeder sends would never come back to it. If nothing is taken out this waits
        only once.
        """
        got = self._wire.got
        if got == self._got_in_vain:
            return
        if not self.messages:
            self._wire.wait_for_room(_MOMENT_S * 1e3)
        while left := len(self.messages):
            time.sleep(_MOMENT_S)
            if len(self.messages) >= left:
                break
        if self._wire.got == got:
            self._got_in_vain = got

    # ---- sending it

    def feed_here(self) -> None:
        """Send it in this thread if none could be started for it."""
        if self.messages and self._feeder is None:
            self._feed()

    def _pump(self) -> bool:
        """Send pickles from the front while there is room; tell whether any. Lock held."""
        messages = self.messages
        before = len(messages)
        while messages and not self._late and type(messages[0]) is bytes:
            if not self._wire.send_again(messages[0]):
                self._late = bool(self._wire.flags & SHUT)
                break
            messages.popleft()
        return len(messages) < before

    def _feed(self) -> None:
        wire, lock = self._wire, self.slots.lock
        stuck_since = 0.0
        refused = False  # although there was room
        while True:
            with lock:
                if self._pump():
                    refused = False
                if not self.messages or wire.is_deserted() or wire.flags & IMMEDIATE:
                    self._end()
                    return
                message = self.messages[0]
                if type(message) is bytes and self._late:
                    message = self.messages[0] = Message.of_stream(message)
            ready = True
            if type(message) is Message:  # only this thread sends those
                ready = _settled(message)
                if ready:
                    with lock:
                        if self._feed_one(message):
                            stuck_since, refused = 0.0, False
                            continue
            if ready or wire.has_messages():
                stuck_since = 0.0
            elif type(message) is Message:
                # There is no memory for it, and nobody is going to free any by receiving.
                stuck_since = stuck_since or time.monotonic()
                if time.monotonic() - stuck_since > _STUCK_S:
                    self._lose(message)
            # Room that is there now may not have been there when the kernel refused.
            was_refused, refused = refused, not wire.wait_for_room(_LOOK_MS, late=self._late)
            if (was_refused and refused) or not ready:
                time.sleep(_PAUSE_S)

    def _feed_one(self, message: Message) -> bool:
        """Send the first message; False if that is not possible at present. Lock held."""
        sent = False
        try:
            if message.slot >= 0:
                self.slots.hold_again(message)
                # Before it is sent: once the receiver has it, nobody else may hold the slot.
                unlock_byte(self._keep_fd, SLOT_BYTE + message.slot)
            sent = self.send(message)
        except ShutDown:
            self._late = True
        except OSError:  # no descriptor for the slot
            pass
        if message.slot_fd >= 0:
            lock_byte(self._keep_fd, SLOT_BYTE + message.slot, shared=True)
            self.slots.close(message)
        if sent:
            self.messages.popleft()
        return sent

    def _lose(self, message: Message) -> None:
        """Give up a message whose memory cannot be had."""
        with self.slots.lock:
            self.messages.popleft()
            self._wire.count_dropped()
            if message.slot >= 0:
                self._wire.clear_slot(message.slot)
                unlock_byte(self._keep_fd, SLOT_BYTE + message.slot)
                self._wire.ring()
        sys.unraisablehook(
            types.SimpleNamespace(
                exc_type=CapacityError,
                exc_value=CapacityError(message.nbytes, *available()),
                exc_traceback=None,
                err_msg="a message of an ndshare.Queue was lost: there was no memory to send it",
                object=message,
            )
        )

    # ---- the end

    def _end(self) -> None:
        """Let go of what is left. Lock held."""
        self._wire.count_dropped(len(self.messages))
        for message in self.messages:
            if type(message) is Message:
                self._wire.clear_slot(message.slot)
        self.messages.clear()
        os.close(self._keep_fd)
        self._keep_fd = -1
        self._feeder = None
        _busy.discard(self)
        self._wire.ring()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until it is empty, or nobody is left to take it; False if the time is over before."""
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
            with self.slots.lock:
                self._wire.stop_hearing()
            self.join()

    def begin_in_child(self) -> None:
        """Leave to the parent of a fork what is the parent's, its slots as well."""
        _busy.clear()
        self.slots.begin_in_child()
        self.messages = collections.deque()
        self._feeder = None
        if self._keep_fd >= 0:
            os.close(self._keep_fd)
            self._keep_fd = -1


def _settled(message: Message) -> bool:
    """Copy a message into segments; False if there is neither memory nor descriptor for it at present."""
    try:
        message.settle()
    except (CapacityError, SegmentError):
        return False
    return True


# ---------------------------------------------------------------------- the end of the process

_busy: set[Backlog] = set()
_arranged: list[int] = []  # process that will call `_finish`


def _expect(backlog: Backlog) -> None:
    """Note that a backlog has messages to deliver."""
    _busy.add(backlog)
    pid = os.getpid()
    if _arranged != [pid]:
        _arranged[:] = [pid]
        atexit.register(_finish)
        if "multiprocessing.util" in sys.modules:
            sys.modules["multiprocessing.util"].Finalize(None, _finish, exitpriority=-5)


def _finish() -> None:
    for backlog in list(_busy):
        backlog.finish()


def finish_within(seconds: float) -> int:
    """Deliver for so long at most; return how many messages are left, for which nobody waits any more."""
    for backlog in list(_busy):
        if not backlog.join(seconds):
            backlog.waits_at_exit = False
    return sum(len(backlog.messages) for backlog in list(_busy))
