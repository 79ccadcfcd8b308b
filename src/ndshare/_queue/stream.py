"""The newest of what one process makes, for any number of others.

::

    writer                    two places in the kernel                     readers
    put(frame) ── copy ──▶  segment ── message n ──▶  place n mod 2  ── look ──▶  get()
                                       newest = n ──▶ memory ◀────── sleep while it is not newer

A message is sent into the place of the one before the last, which is dropped; only then its number is made
known. So at any instant one place has the newest message whole, wherever the writer is killed. Readers look
and do not take; what they get holds the segment, which is not used again while anybody has it.

Guarantees
----------
* What a reader gets is what was put, as it was then, and does not change: shared arrays are copied as others
  are, and what several readers see is read-only.
* The writer never waits for readers, nor readers for one another. Who is slow skips.
* Each reader (a thread that has the stream) sees newer and newer objects, none of them twice.
* A writer that was killed, or has ended, is noticed within 0.1 s; what it put last is there.

Not guaranteed
--------------
* That a reader sees everything: that is `ndshare.Queue`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import mmap
import os
import queue
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterable
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, NoReturn

import numpy as np

from ndshare._locks import locks_refused
from ndshare._memory import trim
from ndshare._pickling import Descriptor, register_reducer
from ndshare._queue.memory import is_shortage
from ndshare._system import _wire, is_byte_locked, lock_byte, reopen
from ndshare._transport import INLINE_MAX, close_all, pack, unpack
from ndshare.errors import SegmentError, ShutDown, TransportError, WriterDiedError

__all__ = ["Stream"]

_NEWEST, _CLOSED, _WRITER, _CHECK, _NBYTES = 0, 8, 16, 24, 64  # offsets in the memory, and its size
_MAGIC = 0x6D616572747364
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_WRITER_BYTE = 1  # of the memory's file, locked by the writer
_NUMBER = struct.Struct("<Q")  # begins every message
_NUMBER_MAX = 2**64 - 1
_BUFFER_BYTES = 212_992  # what every Linux allows; it counts double
_FDS_MAX = 250
_DEATHS_S = 0.05  # how often who waits looks whether the writer lives


def newest(fd: int) -> tuple[int, bool]:
    """Read the memory of a stream of any process: the number of the newest, and whether it is closed."""
    content = os.pread(fd, _NBYTES, 0)
    if len(content) < _NBYTES:
        raise ValueError("not the memory of a stream")
    return _NUMBER.unpack_from(content, _NEWEST)[0], bool(_NUMBER.unpack_from(content, _CLOSED)[0])


class _Reader(threading.local):
    seen = skipped = 0
    buffer: bytearray | None = None


class _Opened:
    """The files of a stream in this process; a thread that still works with them keeps them open."""

    def __init__(self, files: tuple[int, ...]) -> None:
        self.files = files  # closed with it, also if there is no more than this
        self.places, self.memory_fd, self.memory = files[:2], files[2], _memory_of(files[2])

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]  # names are gone at exit
        for fd in getattr(self, "files", ()):
            close(fd)


class Stream:
    """The newest object that one process puts, for any number of others: frames of a camera or detector.

    Nothing is queued: `get` returns what was put last, and waits only if this reader has that already. Each
    thread that has the stream is a reader of its own.

    Page: docs/queue.md.

    Notes
    -----
    `put` copies arrays once, into recycled memory, and never waits. `get` copies nothing: all readers see the
    same pages, read-only. They are kept as long as somebody has an array on them.

    The first to put is the writer, and there is one at a time. If it is killed, another process may go on.

    A stream goes to children of `multiprocessing` under every start method, through its connections, to
    workers of ndshare as an argument or captured, and to a child of a fork by itself; not through plain
    pickle. It takes 3 open files per process, 4 in the writer.

    See Also
    --------
    Queue : each message arrives once.

    Examples
    --------
    >>> import numpy as np, ndshare
    >>> frames = ndshare.Stream()
    >>> for number in range(3):
    ...     frames.put(np.full(2, number))
    >>> frames.get(), frames.skipped
    (array([2, 2]), 0)
    >>> frames.close()
    """

    def __init__(self) -> None:
        opened: list[int] = []
        try:
            first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (first, second):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            opened += first.detach(), second.detach()
            memory = os.memfd_create("ndshare-stream", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            opened.append(memory)
            os.ftruncate(memory, _NBYTES)
            os.pwrite(memory, _NUMBER.pack(_MAGIC), _CHECK)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            close_all(opened)
            raise SegmentError(error.errno or 0, "make a stream, which takes 3 open files") from error
        self._begin(tuple(opened))

    def _begin(self, files: tuple[int, ...]) -> None:
        self._opened: _Opened | None = _Opened(files)
        self._reader = _Reader()
        self._lock = threading.Lock()  # of who puts; held over a fork
        self._writing: _Hold | None = None
        _streams.add(self)
        _wire.shield_main(threading.main_thread().ident or 0)

    def _open(self) -> _Opened:
        if self._opened is None:
            raise ValueError(f"{self!r} is closed")
        return self._opened

    # ---- the writer

    def put(self, obj: object) -> None:
        """Make an object the newest one.

        Parameters
        ----------
        obj : object
            Anything that can be pickled. Its arrays are copied before this returns, those in shared memory as
            well; arrays that nobody can write to (``share(a, mode="r")``) go by reference.

        Raises
        ------
        RuntimeError
            If another process, or another `Stream` object of this one, writes.
        ShutDown
            If the stream was closed by its writer.
        ValueError
            If it is closed here, or if the object has more large arrays than a message has room for.
        CapacityError
            If there is no memory for the copies. The newest object is the one before.
        Exception
            Whatever pickling raises.
        """
        self._open()
        with locks_refused(
            "a Stream copies what is put into it, and the copy of a lock would be another lock; give the "
            "lock to the readers in another way"
        ):
            draft = pack(obj)
        with self._lock:
            opened = self._open()
            self._become_writer(opened)
            parcel = draft.settle(frozen=True)
            _wire.shield()  # what is lent is closed, and what was sent is made known
            try:
                _send(opened, parcel.data, parcel.descriptors())
            finally:
                parcel.release()
                _wire.unshield()

    def _become_writer(self, opened: _Opened) -> None:
        memory = opened.memory
        if _wire.load_u64(memory, _CLOSED):
            raise ShutDown
        if self._writing is None:
            hold = _Hold(opened.memory_fd)
            if not lock_byte(hold.fd, _WRITER_BYTE, shared=False):
                raise RuntimeError(
                    f"Stream.put: process {_wire.load_u64(memory, _WRITER)} writes to this stream already, "
                    "and there is one writer at a time; let it close the stream, give each writer a stream "
                    "of its own, or use a Queue"
                )
            _wire.store_u64(memory, _WRITER, os.getpid())
            self._writing = hold

    # ---- readers

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the newest object, once there is one that this thread has not got yet.

        Parameters
        ----------
        block : bool
            Whether to wait for it.
        timeout : float, optional
            How long at most, in seconds. None: as long as it takes.

        Returns
        -------
        object
            Equal to what was put. An array is read-only, and not copied; so are arrays within other objects,
            but for small ones that come with the message, which are the reader's own.

        Raises
        ------
        queue.Empty
            If there is nothing newer in time.
        ShutDown
            If the writer has closed the stream and there is nothing newer.
        WriterDiedError
            If it has ended without; it is a `ShutDown`.
        ValueError
            If the stream is closed here, or `timeout` is negative.
        SegmentError
            If the process has too many open files.
        """
        if timeout is not None and timeout < 0:
            raise ValueError(f"timeout is {timeout}; allowed are 0 and more seconds, or None for no limit")
        deadline = 0.0 if not block else None if timeout is None else time.monotonic() + timeout
        reader = self._reader
        while True:
            opened = self._open()
            memory = opened.memory
            end = _end_of(opened)  # before the look: what is put before the end is seen
            newest = _wire.load_u64(memory, _NEWEST)
            if newest != reader.seen:
                found = _look(opened, newest, reader)
                if found is not None:
                    return found[0]
                if newest != _wire.load_u64(memory, _NEWEST):
                    continue  # the writer was quicker
            if end is not None:
                raise end
            left = _DEATHS_S if deadline is None else min(_DEATHS_S, deadline - time.monotonic())
            if left <= 0:
                raise queue.Empty
            _wire.sleep_while(memory, _NEWEST, newest, left)

    def get_nowait(self) -> Any:
        """Return the newest object, or raise `queue.Empty` if this thread has it already; see `get`."""
        return self.get(False)

    @property
    def skipped(self) -> int:
        """How many objects were put that this thread has not got because newer ones were there."""
        return self._reader.skipped

    # ---- the end

    def close(self) -> None:
        """Say that this process is done with the stream; if it is the writer, that the stream ends."""
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is not None and self._writing is not None:
                _wire.store_u64(opened.memory, _CLOSED, 1)
                _wire.wake_all(opened.memory, _NEWEST)
                self._writing = None

    def __repr__(self) -> str:
        if self._opened is None:
            return "<ndshare.Stream closed>"
        return f"<ndshare.Stream with {_wire.load_u64(self._opened.memory, _NEWEST)} objects so far>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a Stream cannot be pickled or copied: the copy would be another stream. Pass it to a child of "
            "multiprocessing when it starts, or to a task, kernel or queue of ndshare"
        )

    def _begin_in_child(self) -> None:
        """Leave writing to the parent of a fork."""
        self._lock = threading.Lock()
        self._writing = None


class _Hold:
    """The description by which a process is the writer."""

    fd = -1

    def __init__(self, memory_fd: int) -> None:
        self.fd = reopen(memory_fd)

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        if self.fd >= 0:
            close(self.fd)


def _memory_of(fd: int) -> mmap.mmap:
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        memory = mmap.mmap(fd, 0)
        right = sealed and len(memory) == _NBYTES and _wire.load_u64(memory, _CHECK) == _MAGIC
    except (OSError, ValueError) as error:
        if is_shortage(error):
            raise
        right = False
    if not right:
        raise TransportError(
            "a stream was refused", "what came as its memory is not that of a stream", "make a new stream"
        )
    return memory


def _send(opened: _Opened, data: bytes, lent: list[int]) -> None:
    """Put a message where the one before the last is, and make it known; the descriptors are closed."""
    memory, places = opened.memory, opened.places
    try:
        if len(lent) > _FDS_MAX:
            raise ValueError(
                f"Stream.put: the object has arrays in {len(lent)} segments, and a message has room for "
                f"{_FDS_MAX}; put larger arrays, or fewer at a time"
            )
        number = _wire.load_u64(memory, _NEWEST) + 1 & _NUMBER_MAX
        _drain(places[1 - number % 2])
        message = _NUMBER.pack(number), data
        if not _wire.send_message(places[number % 2], message, lent, socket.MSG_DONTWAIT):
            raise TransportError(
                "an object was not put into a stream",
                "too many open files of this user are on their way in messages",
                "take messages out of queues, or raise the limit of open files (ulimit -n)",
            )
    finally:
        close_all(lent)
    _wire.store_u64(memory, _NEWEST, number)
    _wire.wake_all(memory, _NEWEST)


def _drain(place: int) -> None:
    """Drop the messages in a place; those who look at them have what they need."""
    sock = socket.socket(fileno=place)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.recv(1, socket.MSG_DONTWAIT)
    finally:
        sock.detach()


def _look(opened: _Opened, newest: int, reader: _Reader) -> tuple[Any] | None:
    """Return the object in the place of the newest one, if it is there and newer than the reader's last."""
    buffer = reader.buffer
    if buffer is None:
        buffer = reader.buffer = bytearray(_NUMBER.size + INLINE_MAX)
    received = _peek(opened.places[1 - newest % 2], buffer)
    if received is None:
        return None
    size, fds = received
    number = _NUMBER.unpack_from(buffer)[0] if size > _NUMBER.size else 0
    if number <= reader.seen:
        close_all(fds)
        return None
    found = unpack(memoryview(buffer)[_NUMBER.size : size], fds)
    if type(found) is np.ndarray:
        found.flags.writeable = False  # a small one as well
    if reader.seen:
        reader.skipped += number - reader.seen - 1
    reader.seen = number
    return (found,)


def _peek(place: int, buffer: bytearray) -> tuple[int, tuple[int, ...]] | None:
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    try:
        return _wire.recv_message(place, buffer, flags)
    except OSError:  # most likely too many open files
        gc.collect()
        trim()
    try:
        return _wire.recv_message(place, buffer, flags)
    except OSError as error:
        raise SegmentError(error.errno or 0, "look at the newest object of a stream") from None


def _end_of(opened: _Opened) -> Exception | None:
    """Return what is to be raised if nothing will be put any more."""
    writer = _wire.load_u64(opened.memory, _WRITER)
    gone = writer and not is_byte_locked(opened.memory_fd, _WRITER_BYTE)
    if _wire.load_u64(opened.memory, _CLOSED):  # set before the lock goes
        return ShutDown()
    return WriterDiedError(writer) if gone else None


# ---------------------------------------------------------------------- from process to process

_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
_forks = threading.local()  # streams whose locks a fork that is under way has taken


def _before_fork() -> None:
    _forks.streams = list(_streams)
    for stream in _forks.streams:
        stream._lock.acquire()  # a put that is under way is waited for


def _after_fork() -> None:
    for stream in _forks.__dict__.pop("streams", ()):
        stream._lock.release()


def _begin_in_child() -> None:
    for stream in _forks.__dict__.pop("streams", ()):
        stream._begin_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_begin_in_child)


def _arrived(fds: Iterable[int]) -> Stream:
    files = tuple(fds)
    for fd in files:
        os.set_inheritable(fd, False)
    made = Stream.__new__(Stream)
    made._begin(files)
    return made


def _reduce_stream(made: Stream) -> tuple[Any, ...]:
    opened = made._open()
    return _from_descriptors, tuple(Descriptor(fd, opened) for fd in opened.files)


def _from_descriptors(*descriptors: Descriptor) -> Stream:
    return _arrived(descriptor.take() for descriptor in descriptors)


def _reduce_for_multiprocessing(made: Stream) -> tuple[Any, ...]:
    return _from_duplicates, tuple(DupFd(fd) for fd in made._open().files)


def _from_duplicates(*duplicates: Any) -> Stream:
    return _arrived(duplicate.detach() for duplicate in duplicates)


register_reducer(Stream, _reduce_stream)
ForkingPickler.register(Stream, _reduce_for_multiprocessing)
