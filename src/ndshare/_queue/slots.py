"""The slots of a bounded queue that this process has, for messages it has not sent yet."""

from __future__ import annotations

import os
import threading

from ndshare._queue.memory import SHUT
from ndshare._queue.messages import Message
from ndshare._queue.wire import Wire
from ndshare._system import _wire
from ndshare.errors import ShutDown


class Slots:
    """What this process holds of one queue.

    Attributes
    ----------
    wire : Wire
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._lock = threading.RLock()
        self._slot_fds: set[int] = set()  # open in this process; each holds a slot

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
        _wire.shield()  # Ctrl-C comes behind the call that has taken it
        try:
            with self._lock:
                taken = _wire.queue_take(wire.files.memory, wire.memory, nbytes, doubt)
                if taken is None:
                    return False
                message.slot, message.slot_fd = taken
                self._slot_fds.add(message.slot_fd)
        finally:
            _wire.unshield()
        return True

    def is_full_of_bytes(self) -> bool:
        """Tell whether a queue bounded in bytes has no room for even one."""
        probe = Message(None, define=False)
        probe.settle()  # then it counts for nothing
        if self.take_slot(probe):
            self.give_back_slot(probe)
            return False
        return True

    def give_back_slot(self, message: Message) -> None:
        """Let go of the slot of a message that is not sent."""
        if message.slot_fd >= 0:
            self.wire.clear_slot(message.slot)
            self._close_slot(message)
            self.wire.ring()

    def _close_slot(self, message: Message) -> None:
        fd, message.slot_fd = message.slot_fd, -1
        self._slot_fds.discard(fd)
        os.close(fd)
