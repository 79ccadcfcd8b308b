"""A queue between processes and threads that hands arrays over without pickling them.

::

    process A                       kernel                      process B
    q.put(x)  ── copy or lend ──▶  message with descriptors  ──▶  x = q.get()

Any number of processes and threads put and get. What is in flight belongs to the kernel: it outlives the
process that has put it, and its memory is freed with the last process that has the queue.

Guarantees
----------
* Each message arrives once; what one thread puts arrives in its order at a single receiver.
* `put` has taken what it needs of an ordinary array when it returns; what `get` returns is the receiver's
  own.
* A process that is killed blocks nobody and leaves nothing: lost is only what it had taken out, and what it
  had put and the socket had no room for.
* The bounds hold whoever dies.

Not guaranteed
--------------
* Fairness between receivers, or between senders that wait for room.
* Functions and classes of ``__main__`` travel by name, as with `multiprocessing.Queue`. Only if the queue has
  been sent to workers of ndshare do definitions go with them, for a receiver that lacks the name.
"""

from __future__ import annotations

import pickle
import queue
import sys
import time
import weakref
from collections.abc import Iterable
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, NoReturn

from ndshare._pickling import Descriptor, register_reducer
from ndshare._queue.backlog import Backlog
from ndshare._queue.line import Line, line_of
from ndshare._queue.memory import (
    DONE,
    ENDS,
    GOT,
    MAXSIZE_MAX,
    PUT,
    SHUT,
    WAITERS,
    WORKERS,
    Files,
    create,
)
from ndshare._queue.messages import Message, unpack
from ndshare._queue.wire import Received
from ndshare._system import _wire
from ndshare.errors import SegmentError, ShutDown, TransportError

__all__ = ["Queue", "ShutDown"]

# They need no look at what is in them.
_PLAIN = frozenset(map(id, (bytes, str, int, float, bool, type(None))))  # a class may have no hash

_FILES = len(Files._fields)
_JOIN_FIRST_S, _JOIN_MOST_S = 0.0001, 0.01  # between two looks of `join`
_LOST_S = 0.5  # a message that is in nobody's hands for so long will not come


class Queue:
    """A queue of messages between processes and threads, arrays in it by shared memory.

    Page: docs/queue.md.

    Methods and exceptions are those of `multiprocessing.Queue` and, for `shutdown`, of `queue.Queue` in
    Python 3.13.

    Parameters
    ----------
    maxsize : int
        Most messages in the queue; 0: no limit, and `put` never waits. At most 2**31 - 1.
    maxbytes : int, optional
        Most bytes in the queue: pickles and arrays, those that go by reference included. Without `maxsize` a
        message counts for 1/1024 of it at least.
    ends_with_producers : bool
        Whether `get` raises `ShutDown` once the queue is empty and no process is left that could put: all
        that had the queue have closed it, have ended, or only take out. A process counts from the moment at
        which the queue is sent to it, until it takes something out without ever having put. Not for queues
        whose producers come and go, with moments in between at which there is none.

    Notes
    -----
    Shared arrays go by reference; ordinary ones are copied once, into recycled memory, and are the receiver's
    own (writable, private). The queue itself goes to children of `multiprocessing` under every start method,
    through its connections, and to workers of ndshare as an argument or captured; not through plain pickle.

    A child of a fork has the queue as well, but not what the parent has not sent yet: that stays the
    parent's. Any number of threads may use it. Each queue takes 5 open files per process, a bounded one 6.
    At most a quarter of RLIMIT_NOFILE is in flight at a time, the rest waits in the sender.

    References
    ----------
    Interface: `multiprocessing.Queue`, `queue.Queue` of the standard library.

    Examples
    --------
    >>> import numpy as np, ndshare
    >>> q = ndshare.Queue()
    >>> q.put(np.arange(3))
    >>> q.get()
    array([0, 1, 2])
    >>> q.close()
    """

    def __init__(
        self, maxsize: int = 0, *, maxbytes: int | None = None, ends_with_producers: bool = False
    ) -> None:
        self._line: Line | None = None
        self._closed: weakref.ref[Backlog] | None = None  # strong only in the thread that still sends
        if maxsize > MAXSIZE_MAX:
            raise ValueError(
                f"Queue: maxsize is {maxsize}; allowed are 1 to {MAXSIZE_MAX}, or 0 for a queue without limit"
            )
        if maxbytes is not None and not 1 <= maxbytes < 1 << 62:
            raise ValueError(f"Queue: maxbytes is {maxbytes}; allowed are 1 and more, or None for no limit")
        try:
            files = create(max(maxsize, 0), maxbytes, ENDS if ends_with_producers else 0)
        except OSError as error:
            raise SegmentError(error.errno or 0, "make a queue, which takes 5 open files") from error
        self._line = line_of(files)

    def _open(self) -> Line:
        if self._line is None:
            raise ValueError(f"{self!r} is closed in this process; close it later, or make another queue")
        return self._line

    # ---- objects go in

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
        if line.producer is not None and not line.producer.has_put:
            line.producer.begin()
        if id(type(obj)) in _PLAIN and line.push_stream(pickle.dumps(obj, 5)):
            return
        deadline = _deadline_of(block, timeout)
        message = _message(line, obj)
        stream = message.bare
        if stream is not None:
            if line.push_stream(stream):
                return
            if wire.is_bounded and deadline is None and wire.spin_for_slot() and line.push_stream(stream):
                return
        try:
            if wire.is_bounded and not line.backlog.take_slot(message, doubt=not block):
                if not block:
                    raise queue.Full
                _wait_for_slot(line, message, deadline)
            line.push(message)
        except BaseException:
            line.backlog.return_slot(message)
            raise

    def put_nowait(self, obj: object) -> None:
        """Put an object, or raise `queue.Full` at once; see `put`."""
        self.put(obj, False)

    async def aput(self, obj: object) -> None:
        """Put an object; wait for room without blocking the event loop. See `put`."""
        from ndshare._queue.asynchronous import wait_for_slot

        line = self._open()
        if line.producer is not None:
            line.producer.begin()
        message = _message(line, obj)
        try:
            if line.wire.is_bounded and not line.backlog.take_slot(message, doubt=True):
                _wire.add_u64(line.wire.memory, WAITERS, 1)
                try:
                    while not line.backlog.take_slot(message, doubt=True):
                        await wait_for_slot(line.wire)
                finally:
                    _wire.add_u64(line.wire.memory, WAITERS, -1)
            line.push(message)
        except BaseException:
            line.backlog.return_slot(message)
            raise

    # ---- objects come out

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
            If it was shut down, or ends with its producers and has none any more, and is empty.
        ValueError
            If it is closed here, or `timeout` is negative.
        SegmentError
            If the process has too many open files; the message stays in the queue.
        Exception
            Whatever unpickling raises; that message is gone.
        """
        line = self._line or self._open()
        if line.producer is not None:
            line.producer.step_back()
        received = line.wire.receive()
        if received is None:
            received = _wait(line, _deadline_of(block, timeout))
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
        if line.producer is not None:
            line.producer.step_back()
        while (received := line.wire.receive()) is None:
            if not _end_without_producers(line):
                await wait_for_message(line.wire, deaths=line.producer is not None)
        return unpack(received)

    # ---- what becomes of them

    def task_done(self) -> None:
        """Say that an object that was taken out is done with; see `join`.

        Raises
        ------
        ValueError
            If it is said more often than objects were taken out.
        """
        memory = self._open().wire.memory
        while True:
            done = _wire.load_u64(memory, DONE)
            if done >= _wire.load_u64(memory, GOT):
                raise ValueError("task_done() called too many times: more often than objects were taken out")
            if _wire.cas_u64(memory, DONE, done, done + 1):
                return

    def join(self, timeout: float | None = None) -> None:
        """Wait until `task_done` was called for everything that was put, in whatever process.

        Parameters
        ----------
        timeout : float, optional
            How long at most, in seconds. None: as long as it takes.

        Raises
        ------
        TimeoutError
            If something is not done by then.
        TransportError
            If messages were lost with the process that had put them.

        Notes
        -----
        As with `multiprocessing.JoinableQueue`, an object whose receiver was killed before it said
        `task_done` is never done. What `shutdown` drops counts as done.
        """
        wire = self._open().wire
        deadline = _deadline_of(True, timeout)
        pause, lost_since = _JOIN_FIRST_S, 0.0
        while (done := _wire.load_u64(wire.memory, DONE)) < _wire.load_u64(wire.memory, PUT):
            missing = _wire.load_u64(wire.memory, PUT) - done
            left = _left_of(deadline)
            if left is not None and left <= 0:
                raise TimeoutError(f"Queue.join: {missing} objects are not done with after {timeout} s")
            if done < wire.got or wire.has_messages() or wire.has_backlogs():
                lost_since = 0.0
            elif not lost_since:
                lost_since = time.monotonic()  # or somebody is just about to count what it has received
            elif time.monotonic() - lost_since > _LOST_S:
                raise TransportError(
                    "a queue cannot be joined",
                    f"{missing} messages were lost with the processes that had put them",
                    "put them again, or make a new queue",
                )
            time.sleep(pause if left is None else min(pause, left))
            pause = min(2 * pause, _JOIN_MOST_S)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there may be something to get.

        For `selectors` and event loops, to wait with; not to read from. When it is readable, call
        `get_nowait` and be ready for `queue.Empty`: somebody else may have been quicker.
        """
        return self._open().wire.files.into

    # ---- state

    def qsize(self) -> int:
        """Return how many objects are in the queue: exactly if it is bounded, else about."""
        line = self._open()
        wire = line.wire
        if wire.is_bounded:
            if wire.used():
                line.backlog.mend()
            return wire.used()
        if not wire.has_messages() and not wire.has_backlogs():
            return 0
        return max(1, _wire.load_u64(wire.memory, PUT) - _wire.load_u64(wire.memory, GOT))

    def empty(self) -> bool:
        """Tell whether there was nothing to get at this moment."""
        return not self._open().wire.has_messages()

    def full(self) -> bool:
        """Tell whether a bounded queue had no room for another object at this moment."""
        wire = self._open().wire
        if not wire.is_bounded:
            return False
        used = self.qsize()
        if wire.maxsize and used >= wire.maxsize:
            return True
        if not wire.maxbytes:
            return False
        _wire.shield()
        try:
            least = wire.charge_of(0)
            if not wire.take_slot(least):
                return True
            wire.return_slot(least)
            wire.ring()
        finally:
            _wire.unshield()
        return False

    # ---- the end

    def shutdown(self, immediate: bool = False) -> None:
        """Let nothing more in, in any process.

        Parameters
        ----------
        immediate : bool
            Whether to drop what is in the queue. If not, it can still be taken out.

        Notes
        -----
        As in Python 3.13's `queue.Queue`: `put` raises `ShutDown` from now on, also where it waits already,
        and `get` raises it once the queue is empty.
        """
        self._open().wire.shut_down(immediate=immediate)

    def close(self) -> None:
        """Say that this process is done with the queue. Others are not affected.

        What was put is still delivered. If no process is left that could take it, it is dropped.
        """
        line, self._line = self._line, None
        if line is not None:
            self._closed = weakref.ref(line.backlog)
            line.close()

    def join_thread(self) -> None:
        """Wait until everything put here is with the kernel or taken; only after `close`.

        Raises
        ------
        ValueError
            If the queue is not closed.
        """
        if self._closed is None:
            raise ValueError(f"{self!r} is not closed; call close() before join_thread()")
        backlog = self._closed()
        if backlog is not None:
            backlog.join()

    def cancel_join_thread(self) -> None:
        """Let this process end without waiting for what it put to be sent: that may be lost."""
        backlog = self._closed() if self._closed is not None else self._open().backlog
        if backlog is not None:
            backlog.waits_at_exit = False

    # ---- between processes

    def __del__(self, is_ending=sys.is_finalizing) -> None:  # type: ignore[no-untyped-def]
        # When the interpreter ends, modules may be empty, and the kernel closes what is open.
        if not is_ending() and getattr(self, "_line", None) is not None:
            self.close()

    def __repr__(self) -> str:
        if self._line is None:
            return "<ndshare.Queue closed>"
        wire = self._line.wire
        bounds = f" maxsize={wire.maxsize}" if wire.maxsize else ""
        bounds += f" maxbytes={wire.maxbytes}" if wire.maxbytes else ""
        return f"<ndshare.Queue{bounds}{' shut down' if wire.flags & SHUT else ''}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a Queue cannot be pickled or copied: the copy would be another queue. Pass it to a child of "
            "multiprocessing when it starts, or to a task, kernel or queue of ndshare"
        )


# ---------------------------------------------------------------------- waiting


def _deadline_of(block: bool, timeout: float | None) -> float | None:
    """When to give up; None: never."""
    if not block:
        return 0.0
    if timeout is None:
        return None
    if timeout < 0:
        raise ValueError(f"timeout is {timeout}; allowed are 0 and more seconds, or None for no limit")
    return time.monotonic() + timeout


def _left_of(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _wait_for_slot(line: Line, message: Message, deadline: float | None) -> None:
    wire = line.wire
    _wire.add_u64(wire.memory, WAITERS, 1)
    try:
        rung = True
        while not line.backlog.take_slot(message, doubt=not rung):
            left = _left_of(deadline)
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


def _wait(line: Line, deadline: float | None) -> Received:
    while True:
        if not _end_without_producers(line):
            left = _left_of(deadline)
            if left is not None and left <= 0:
                raise queue.Empty
            line.wire.wait_for_message(left, deaths=line.producer is not None)
        received = line.wire.receive()
        if received is not None:
            return received


def _end_without_producers(line: Line) -> bool:
    """Shut a queue down that has come to its end; tells whether it has."""
    over = line.producer is not None and line.producer.none_is_left()
    if over:
        line.wire.shut_down(immediate=False)
    return over


# ---------------------------------------------------------------------- from process to process


def _arrived(fds: Iterable[int]) -> Queue:
    files = tuple(fds)
    made = Queue.__new__(Queue)
    made._line, made._closed = line_of(Files(*files[:_FILES]), *files[_FILES:]), None
    return made


def _reduce_queue(made: Queue) -> tuple[Any, ...]:
    """Return how ndshare sends a queue: its open files, with the message."""
    line = made._open()
    line.wire.set_flags(WORKERS)
    files = [Descriptor(fd, line) for fd in line.wire.files]
    if line.producer is not None:
        files.append(Descriptor(line.producer.hand_out()))
    return _from_descriptors, tuple(files)


def _from_descriptors(*descriptors: Descriptor) -> Queue:
    return _arrived(descriptor.take() for descriptor in descriptors)


def _reduce_for_multiprocessing(made: Queue) -> tuple[Any, ...]:
    line = made._open()
    files = line.wire.files if line.producer is None else (*line.wire.files, line.producer.share())
    return _from_duplicates, tuple(DupFd(fd) for fd in files)


def _from_duplicates(*duplicates: Any) -> Queue:
    return _arrived(duplicate.detach() for duplicate in duplicates)


ForkingPickler.register(Queue, _reduce_for_multiprocessing)
register_reducer(Queue, _reduce_queue)
