"""Waiting at a queue: for a message, for a slot, for room. A death does not go unseen for long."""

from __future__ import annotations

import contextlib
import os
import select
import time

from ndshare._queue.memory import SHUT, Files
from ndshare._queue.opened import Opened, ready_within
from ndshare._system import _wire

_DEATHS_MS = 100.0  # how often a waiter looks for participants that died
_NEVER_MS = 3_600_000.0
_SPIN_US = 50  # to be woken costs the sender more than this costs the waiter
_SPIN_MAX_S = 0.001  # ... if the last message did not take longer than this to come


class Waiting(Opened):
    """The files of a queue, to wait for."""

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self._waited_s = 1.0

    def wait_for_message(self, seconds: float | None) -> None:
        """Wait until there may be a message, at most so long."""
        if self.flags & SHUT:
            ready_within(self.files.out, select.POLLIN, min(_milliseconds(seconds), _DEATHS_MS))
        else:
            start = time.monotonic()
            if self._waited_s < _SPIN_MAX_S:
                _wire.spin(self.files.into, _SPIN_US)
            ready_within(self.files.into, select.POLLIN, _milliseconds(seconds))
            self._waited_s = time.monotonic() - start

    def spin_for_slot(self) -> bool:
        """Look for a free slot for a moment, without sleeping; tell whether there seems to be one."""
        return not self.maxbytes and _wire.queue_spin(self.memory, _SPIN_US)

    def wait_for_slot(self, seconds: float | None) -> bool:
        """Wait until there may be a free slot, at most so long, and not longer than a death may go unseen.

        Returns whether somebody said that there is one.
        """
        rung = ready_within(self.files.bell_in, select.POLLIN, min(_milliseconds(seconds), _DEATHS_MS))
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


def _milliseconds(seconds: float | None) -> float:
    return _NEVER_MS if seconds is None else max(0.0, min(seconds * 1e3, _NEVER_MS))
