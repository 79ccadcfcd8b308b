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

import weakref
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, NoReturn

from ndshare._pickling import Descriptor, register_reducer
from ndshare._queue import memory as _queue_memory
from ndshare._queue.getting import Getting
from ndshare._queue.line import Line
from ndshare._queue.lines import line_of
from ndshare._queue.memory import GOT, MAXSIZE_MAX, PUT, SHUT, WORKERS, Files
from ndshare._queue.putting import Putting
from ndshare._system import _wire
from ndshare.errors import SegmentError, ShutDown

__all__ = ["Queue", "ShutDown"]


class Queue(Putting, Getting):
    """A queue of messages between processes and threads, arrays in it by shared memory.

    Methods and exceptions are those of `multiprocessing.Queue` and, for `shutdown`, of `queue.Queue` in
    Python 3.13.

    Parameters
    ----------
    maxsize : int
        Most messages in the queue; 0: no limit, and `put` never waits. At most 2**20.
    maxbytes : int, optional
        Most bytes in the queue: pickles and arrays, those that go by reference included. Without `maxsize` a
        message counts for 1/1024 of it at least.

    Notes
    -----
    Shared arrays go by reference; ordinary ones are copied once, into recycled memory, and are the receiver's
    own (writable, private). The queue itself goes to children of `multiprocessing` under every start method,
    through its connections, and to workers of ndshare as an argument or captured; not through plain pickle.

    A child of a fork has the queue as well, but not what the parent has not sent yet: that stays the
    parent's. Any number of threads may use it. Each queue takes 5 open files per process. At most a quarter
    of RLIMIT_NOFILE is in flight at a time, the rest waits in the sender.

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

    def __init__(self, maxsize: int = 0, *, maxbytes: int | None = None) -> None:
        self._line: Line | None = None
        self._closed: weakref.ref[Line] | None = None  # strong only in the thread that still sends
        if maxsize > MAXSIZE_MAX:
            raise ValueError(
                f"Queue: maxsize is {maxsize}; allowed are 1 to {MAXSIZE_MAX}, or 0 for a queue without limit"
            )
        if maxbytes is not None and maxbytes < 1:
            raise ValueError(f"Queue: maxbytes is {maxbytes}; allowed are 1 and more, or None for no limit")
        try:
            files = _queue_memory.create(max(maxsize, 0), maxbytes)
        except OSError as error:
            raise SegmentError(error.errno or 0, "make a queue, which takes 5 open files") from error
        self._line = line_of(files)

    # ---- state

    def qsize(self) -> int:
        """Return how many objects are in the queue: exactly if it is bounded, else about."""
        wire = self._open().wire
        if wire.slots:
            return _wire.queue_used(wire.files.memory, wire.memory)
        if not wire.has_messages() and not wire.has_backlogs():
            return 0
        return max(1, _wire.load_u64(wire.memory, PUT) - _wire.load_u64(wire.memory, GOT))

    def empty(self) -> bool:
        """Tell whether there was nothing to get at this moment."""
        return not self._open().wire.has_messages()

    def full(self) -> bool:
        """Tell whether a bounded queue had no room for another object at this moment."""
        line = self._open()
        wire = line.wire
        if not wire.slots:
            return False
        if _wire.queue_used(wire.files.memory, wire.memory) >= wire.slots:
            return True
        return bool(wire.maxbytes) and line.is_full_of_bytes()

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
            self._closed = weakref.ref(line)
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
        line = self._closed()
        if line is not None:
            line.join()

    def cancel_join_thread(self) -> None:
        """Let this process end without waiting for what it put to be sent: that may be lost."""
        line = self._line
        if line is None and self._closed is not None:
            line = self._closed()
        if line is not None:
            line.waits_at_exit = False

    # ---- between processes

    def __del__(self) -> None:
        if getattr(self, "_line", None) is not None:
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


def _opened(line: Line) -> Queue:
    made = Queue.__new__(Queue)
    made._line, made._closed = line, None
    return made


def _reduce_queue(made: Queue) -> tuple[Any, ...]:
    """Return how ndshare sends a queue: its open files, with the message."""
    wire = made._open().wire
    wire.set_flags(WORKERS)
    return _from_descriptors, tuple(Descriptor(fd, wire) for fd in wire.files)


def _from_descriptors(*descriptors: Descriptor) -> Queue:
    return _opened(line_of(Files(*(descriptor.take() for descriptor in descriptors))))


def _reduce_for_multiprocessing(made: Queue) -> tuple[Any, ...]:
    return _from_duplicates, tuple(DupFd(fd) for fd in made._open().wire.files)


def _from_duplicates(*duplicates: Any) -> Queue:
    return _opened(line_of(Files(*(duplicate.detach() for duplicate in duplicates))))


ForkingPickler.register(Queue, _reduce_for_multiprocessing)
register_reducer(Queue, _reduce_queue)
