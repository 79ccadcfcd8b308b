"""Getting out of a queue: receive, or wait for it, and rebuild the object."""

from __future__ import annotations

import pickle
import queue
from typing import Any

from ndshare._queue.handle import Handle, deadline_of, left_of
from ndshare._queue.line import Line
from ndshare._queue.messages import unpack
from ndshare._queue.wire import Received
from ndshare.errors import ShutDown


class Getting(Handle):
    """The end of a queue by which objects come out."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object out of the queue.

        Parameters
        ----------
        block : bool
            Whether to wait while the queue is empty.
        timeout : float, optional
            How long at most, in seconds. None: as long as it takes.

        Returns
        -------
        object
            Equal to what was put. Shared arrays are the same memory; others are the caller's own.

        Raises
        ------
        queue.Empty
            If the queue stays empty.
        ShutDown
            If it was shut down and is empty.
        ValueError
            If it is closed here, or `timeout` is negative.
        SegmentError
            If the process has too many open files; the message stays in the queue.
        Exception
            Whatever unpickling raises; that message is gone.
        """
        line = self._line or self._open()
        received = line.wire.receive()
        if received is None:
            received = _wait(line, deadline_of(block, timeout))
        return pickle.loads(received) if type(received) is bytes else unpack(received)

    def get_nowait(self) -> Any:
        """Take the next object, or raise `queue.Empty` at once; see `get`."""
        return self.get(False)

    def get_many(self, max_items: int, timeout: float | None = None) -> list[Any]:
        """Wait for one object, then take what is there.

        Parameters
        ----------
        max_items : int
            Most objects to take, at least 1.
        timeout : float, optional
            How long to wait for the first one at most, in seconds. None: as long as it takes.

        Returns
        -------
        list
            Between 1 and `max_items` objects.

        Raises
        ------
        queue.Empty
            If there is none in time.
        ShutDown
            If the queue was shut down and is empty.

        Notes
        -----
        Other errors are those of `get`. One that occurs after the first object is raised as well: what had
        been taken out by then is gone.
        """
        if max_items < 1:
            raise ValueError(f"Queue.get_many: max_items is {max_items}; allowed are 1 and more")
        found = [self.get(True, timeout)]
        line = self._open()
        while len(found) < max_items:
            try:
                received = line.wire.receive()
            except ShutDown:
                break
            if received is None:
                break
            found.append(unpack(received))
        return found

    async def aget(self) -> Any:
        """Take the next object; wait for it without blocking the event loop. See `get`."""
        from ndshare._queue.asynchronous import wait_for_message

        line = self._open()
        while (received := line.wire.receive()) is None:
            await wait_for_message(line.wire)
        return unpack(received)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there may be something to get.

        For `selectors` and event loops, to wait with; not to read from. When it is readable, call
        `get_nowait` and be ready for `queue.Empty`: somebody else may have been quicker.
        """
        return self._open().wire.files.into


def _wait(line: Line, deadline: float | None) -> Received:
    while True:
        left = left_of(deadline)
        if left is not None and left <= 0:
            raise queue.Empty
        line.wire.wait_for_message(left)
        received = line.wire.receive()
        if received is not None:
            return received
