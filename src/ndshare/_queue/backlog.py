"""What this process has accepted for a queue and the socket has no room for, and the thread that sends it.

Guarantees
----------
* Order: nothing overtakes the backlog, which one thread at a time sends.
* A message is in the socket, or in the backlog of a live process that holds BACKLOG_BYTE, with its slot.
* A process that exits normally waits until its backlogs are empty, or nobody is left who could take them.
  Processes of `multiprocessing` end without what is registered with `atexit`: it is arranged in both ways.
"""

from __future__ import annotations

import atexit
import collections
import os
import sys
import threading
import time
import types

from ndshare._memory import available
from ndshare._queue.memory import BACKLOG_BYTE, IMMEDIATE, SHUT
from ndshare._queue.messages import Message, short_of_files
from ndshare._queue.wire import Wire
from ndshare._system import _wire, lock_byte, own_thread, reopen
from ndshare.errors import CapacityError, SegmentError, ShutDown

_PAUSE_S = 0.002  # between two attempts when the kernel cannot say when there is room: descriptors in flight
_STUCK_S = 30.0  # a message whose memory cannot be had for so long although nothing else is in flight is lost
_LOOK_MS = 1000.0
_PUMP_EVERY = 16


class Backlog:
    """The messages of one queue that wait in this process.

    Attributes
    ----------
    messages : collections.deque of Message or bytes
        What was accepted and is not in the socket; bytes: a pickle that is all of a message.
    lock : threading.RLock
        Held wherever the backlog changes, and over a fork.
    waits_at_exit : bool
        Whether the process waits for the backlog when it ends.
    """

    def __init__(self, wire: Wire) -> None:
        self.messages: collections.deque[Message | bytes] = collections.deque()
        self.waits_at_exit = True
        self.lock = threading.RLock()
        self._wire = wire
        self._feeder: threading.Thread | None = None
        self._feeds_here = 0  # the thread that sends because none could be started for it
        self._keep_fd = -1  # holds BACKLOG_BYTE
        self._late = False  # shut down: what is left goes the other way

    # ---- slots of a bounded queue

    def take_slot(self, message: Message, *, doubt: bool) -> bool:
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
        charge = wire.charge_of(message.nbytes)
        _wire.shield()  # Ctrl-C comes behind the call that has taken it
        try:
            if not wire.take_slot(charge):
                if not doubt:
                    return False
                self.mend()
                if not wire.take_slot(charge):
                    return False
            message.charge = charge
        finally:
            _wire.unshield()
        return True

    def return_slot(self, message: Message) -> None:
        """Let go of the slot of a message that was not accepted, if it has one."""
        if message.is_accepted:
            return
        _wire.shield()
        try:
            charge, message.charge = message.charge, -1
            if charge >= 0:
                self._wire.return_slot(charge)
                self._wire.ring()
        finally:
            _wire.unshield()

    def mend(self) -> None:
        """Give back what dead processes had of the bounds, and tell who waits for it."""
        with self.lock:
            if self._wire.mend():
                self._wire.ring()

    # ---- in front of it

    def send(self, message: Message) -> bool:
        """Send a message past the backlog; False if there is no room. Lock held.

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
        message.is_accepted = True
        message.release()
        return True

    def add(self, message: Message) -> None:
        """Put a message into the backlog. Lock held."""
        if self._keep_fd < 0:
            keep_fd = reopen(self._wire.files.memory)
            lock_byte(keep_fd, BACKLOG_BYTE, shared=True)
            if self._wire.flags & SHUT:  # a receiver may have looked before the lock was there
                os.close(keep_fd)
                raise ShutDown
            self._keep_fd = keep_fd
            _expect(self)
        self.messages.append(message)
        message.is_accepted = True

    def start_feeder(self) -> bool:
        """Have what is in the backlog sent; True if the caller has to, by `feed_here`. Lock held."""
        if not self.messages or self._feeder is not None:
            return False
        feeder = own_thread(self._feed, "ndshare-queue")
        try:
            feeder.start()
        except RuntimeError:  # the interpreter ends: `finish` comes, or has been here
            return True
        self._feeder = feeder
        return False

    def add_stream(self, stream: bytes) -> bool:
        """Accept a pickle that is all of a message behind the backlog; False if there is none, or no slot."""
        wire = self._wire
        _wire.shield()
        try:
            with self.lock:
                if not self.messages or wire.flags & SHUT:
                    return False
                if wire.is_bounded and not wire.take_slot(wire.charge_of(len(stream))):
                    return False
                self.messages.append(stream)
                wire.count_put()
                if len(self.messages) % _PUMP_EVERY == 0:  # the feeder may have to wait for the GIL
                    self._pump()
        finally:
            _wire.unshield()
        return True

    # ---- sending it

    def feed_here(self) -> None:
        """Send it in this thread, as none could be started for it, unless another one does so already."""
        me = threading.get_ident()
        try:
            with self.lock:
                if not self.messages or self._feeder is not None or self._feeds_here:
                    return
                self._feeds_here = me
            self._feed()
        except BaseException:
            if self._feeds_here == me:
                self._feeds_here = 0
            raise

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
        wire, lock = self._wire, self.lock
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
                    message = self.messages[0] = Message.of_stream(message, self._charge_of(message))
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
        try:
            if not self.send(message):
                return False
        except ShutDown:
            self._late = True
            return False
        self.messages.popleft()
        return True

    def _charge_of(self, message: Message | bytes) -> int:
        """Return for how much a message of the backlog has a slot; -1: it has none."""
        if isinstance(message, Message):
            return message.charge
        return self._wire.charge_of(len(message)) if self._wire.is_bounded else -1

    def _drop(self, message: Message | bytes) -> None:
        """Count a message of the backlog as one that nobody will take out, and give back its slot."""
        self._wire.count_dropped()
        charge = self._charge_of(message)
        if charge >= 0:
            self._wire.return_slot(charge)
            self._wire.ring()

    def _lose(self, message: Message) -> None:
        """Give up a message whose memory cannot be had."""
        with self.lock:
            self._drop(self.messages.popleft())
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
        while self.messages:
            self._drop(self.messages.popleft())
        os.close(self._keep_fd)
        self._keep_fd = -1
        self._feeder = None
        self._feeds_here = 0
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
            with self.lock:
                self._wire.stop_hearing()
            self.join()

    def begin_in_child(self) -> None:
        """Leave to the parent of a fork what is the parent's, its slots as well."""
        _busy.clear()
        self.lock = threading.RLock()
        self._wire.begin_in_child()
        self.messages = collections.deque()
        self._feeder = None
        self._feeds_here = 0
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
