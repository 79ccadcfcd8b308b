"""Putting into a queue: serialize, get a slot if there are bounds, hand over to the line.

What is serialized and sent at once, most small messages, goes a short way past all that.
"""

from __future__ import annotations

import pickle
import queue

from ndshare._queue.handle import Handle, deadline_of, left_of
from ndshare._queue.line import Line
from ndshare._queue.memory import SHUT, WAITERS, WORKERS
from ndshare._queue.messages import Message
from ndshare._system import _wire
from ndshare._transport import INLINE_MAX
from ndshare.errors import ShutDown

# They need no look at what is in them.
_PLAIN = frozenset((bytes, str, int, float, bool, type(None)))


class Putting(Handle):
    """The end of a queue by which objects go in."""

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue.

        Parameters
        ----------
        obj : object
            Anything that can be pickled. It is serialized, and ordinary arrays in it are copied, before this
            returns.
        block : bool
            Whether to wait while a bounded queue is full.
        timeout : float, optional
            How long at most, in seconds. None: as long as it takes.

        Raises
        ------
        queue.Full
            If the queue stays full.
        ShutDown
            If it was shut down.
        ValueError
            If it is closed here, if the object alone is larger than `maxbytes`, or if `timeout` is negative.
        Exception
            Whatever pickling raises; the queue is as before.
        CapacityError
            If there is no memory for the copies.
        """
        line = self._line or self._open()
        wire = line.wire
        if type(obj) in _PLAIN and _send_stream(line, pickle.dumps(obj, 5)):
            return
        deadline = deadline_of(block, timeout)
        message = _message(line, obj)
        stream = message.bare
        if stream is not None:
            if _send_stream(line, stream):
                return
            if wire.slots and deadline is None:
                line.let_drain()
                if wire.spin_for_slot() and _send_stream(line, stream):
                    return
        try:
            if wire.slots and not line.take_slot(message, doubt=not block):
                if not block:
                    raise queue.Full
                _wait_for_slot(line, message, deadline)
            line.push(message)
        except BaseException:
            line.give_back_slot(message)
            raise

    def put_nowait(self, obj: object) -> None:
        """Put an object, or raise `queue.Full` at once; see `put`."""
        self.put(obj, False)

    async def aput(self, obj: object) -> None:
        """Put an object; wait for room without blocking the event loop. See `put`."""
        from ndshare._queue.asynchronous import wait_for_slot

        line = self._open()
        message = _message(line, obj)
        try:
            if line.wire.slots and not line.take_slot(message):
                _wire.add_u64(line.wire.memory, WAITERS, 1)
                try:
                    while not line.take_slot(message):
                        await wait_for_slot(line.wire)
                finally:
                    _wire.add_u64(line.wire.memory, WAITERS, -1)
            line.push(message)
        except BaseException:
            line.give_back_slot(message)
            raise


def _wait_for_slot(line: Line, message: Message, deadline: float | None) -> None:
    wire = line.wire
    _wire.add_u64(wire.memory, WAITERS, 1)
    try:
        rung = True
        while not line.take_slot(message, doubt=not rung):
            left = left_of(deadline)
            if left is not None and left <= 0 and not rung:
                raise queue.Full
            rung = wire.wait_for_slot(left)
    finally:
        _wire.add_u64(wire.memory, WAITERS, -1)


def _message(line: Line, obj: object) -> Message:
    flags = line.wire.flags
    if flags & SHUT:
        raise ShutDown
    message = Message(obj, define=bool(flags & WORKERS))
    if line.wire.maxbytes and message.nbytes > line.wire.maxbytes:
        raise ValueError(
            f"Queue.put: the message has {message.nbytes} bytes, and the queue takes at most "
            f"{line.wire.maxbytes} (maxbytes); put it in pieces or make the queue larger"
        )
    return message


def _send_stream(line: Line, stream: bytes) -> bool:
    """Accept a pickle that is all of a message, without a detour; False if it has to go the long way."""
    if not line.backlog:
        return line.wire.send_bare(stream)
    return not line.wire.slots and len(stream) < INLINE_MAX and line.push_behind(stream)
