"""What others write into the files of a queue gives an error, never a signal, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import socket
import struct

import numpy as np
import pytest

import ndshare
from ndshare._queue import memory
from ndshare._queue.memory import HEAD, NAMED, NAMES, PLAIN
from ndshare._system import _wire
from tests.dict.dict_tasks import ended, forked

pytestmark = [pytest.mark.once, pytest.mark.sanitized]


@pytest.fixture
def q():
    """Return a queue bounded in messages."""
    made = ndshare.Queue(4)
    yield made
    made.close()


def inject(q: ndshare.Queue, data: bytes, number_of_fds: int = 0) -> None:
    """Put a message into the socket as another program might, with descriptors of a pipe."""
    ends = os.pipe()
    try:
        fds = [ends[0]] * number_of_fds
        assert _wire.send_message(q._line.wire.files.out, [data], fds, socket.MSG_DONTWAIT)
    finally:
        for fd in ends:
            os.close(fd)


def open_files() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


PLAIN_HEAD, NAMED_HEAD = HEAD.pack(PLAIN, 0, 0, 0, 0), HEAD.pack(NAMED, 0, 0, 0, 0)


@pytest.mark.parametrize("fds", [0, 1, 2, 9])
@pytest.mark.parametrize(
    "data",
    [
        b"x",
        PLAIN_HEAD[:7],
        PLAIN_HEAD,
        PLAIN_HEAD + b"\xff" * 20,
        HEAD.pack(7, 0, 0, 0, 0) + b"\0x",
        HEAD.pack(PLAIN, 1, 0, 0, 0) + b"\0x",
        HEAD.pack(PLAIN, 0, 0, 1, 0) + b"\xff",
        HEAD.pack(PLAIN, 0, 0, 2**32 - 1, 2**64 - 1) + b"\xff",
        NAMED_HEAD,
        NAMED_HEAD + NAMES.pack(2**32 - 1, 2**32 - 1, 0),
        NAMED_HEAD + NAMES.pack(1, 1, 200) + b"n\0\0",
        NAMED_HEAD + NAMES.pack(1, 0, 0) + b"n\0",
        NAMED_HEAD + NAMES.pack(1, 1, 0) + b"\xff\0\0",
    ],
    ids=lambda data: data.hex(),
)
def test_malformed_message_is_an_error_and_its_descriptors_are_closed(q, data, fds):
    """And the queue goes on behind it."""
    q.put(0)
    q.get()
    before = open_files()
    inject(q, data, fds)
    with pytest.raises(Exception, match=r".") as raised:
        q.get(timeout=5)
    assert isinstance(raised.value, ndshare.errors.TransportError), repr(raised.value)
    assert open_files() == before
    q.put("next")
    assert q.get() == "next"


@pytest.mark.parametrize("fds", [0, 1, 200])
def test_empty_message_is_not_the_end(q, fds):
    """The kernel shows both in the same way."""
    before = open_files()
    for _ in range(3):
        inject(q, b"", fds)
    q.put("behind it")
    assert q.get(timeout=5) == "behind it"
    assert open_files() == before
    q.put("last")
    inject(q, b"", fds)
    q.shutdown()
    assert q.get(timeout=5) == "last"
    with pytest.raises(ndshare.ShutDown):
        q.get(timeout=5)
    assert open_files() == before


def test_empty_message_in_front_of_others_at_the_end(q):
    """What is behind it is taken out first."""
    inject(q, b"")
    q.put("last")
    q.shutdown()
    assert q.get(timeout=5) == "last"
    with pytest.raises(ndshare.ShutDown):
        q.get(timeout=5)


def test_envelope_that_holds_no_descriptors(q):
    """Neither one that is empty, nor a file that is no socket, leaves anything."""
    q.put(1)
    q.get()
    before = open_files()
    inject(q, HEAD.pack(PLAIN, 1, 0, 0, 0) + b"\xff", 1)
    with pytest.raises(ndshare.errors.TransportError):
        q.get(timeout=5)
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        _wire.send_message(
            q._line.wire.files.out,
            [HEAD.pack(PLAIN, 1, 0, 0, 0) + b"\xff"],
            [mine.fileno()],
            socket.MSG_DONTWAIT,
        )
    with pytest.raises(ndshare.errors.TransportError):
        q.get(timeout=5)
    assert open_files() == before


def test_memory_of_a_queue_cannot_change_its_size(q):
    """Nor can the seal be taken off."""
    fd = q._line.wire.files.memory
    size = os.fstat(fd).st_size
    for length in (0, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, length)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0)


@pytest.mark.parametrize("bounds", [{}, {"maxsize": 4}, {"maxbytes": 5000}, {"maxsize": 4, "maxbytes": 5000}])
@pytest.mark.parametrize("field", [memory.MAX_BYTES, memory.MAXSIZE, memory.CHECK])
@pytest.mark.parametrize("value", [0, 1, 3, 2**40, 2**63, 2**64 - 1])
def test_overwritten_numbers_are_an_error(bounds, field, value):
    """In what is called from then on, and for who gets the queue; put right again, it goes on."""
    q = ndshare.Queue(**bounds)
    q.put(1)
    fd = q._line.wire.files.memory
    before = os.pread(fd, 8, field)
    if before == struct.pack("<Q", value):
        q.close()
        return
    os.pwrite(fd, struct.pack("<Q", value), field)
    for call in (lambda: q.put(2), q.get, lambda: q.put([np.zeros(3)], False), q.get_nowait):
        with pytest.raises(ValueError, match="overwritten"):
            call()
    with pytest.raises(ndshare.errors.TransportError, match="overwritten"):
        memory.open_memory(fd)  # as another process would that gets the queue
    os.pwrite(fd, before, field)
    assert q.get() == 1
    q.close()


@pytest.mark.parametrize("make", ["short", "not sealed", "not a memfd"])
def test_files_that_are_no_queue_are_refused(make, tmp_path):
    """Nobody who sends a queue can make its memory shorter later."""
    if make == "not a memfd":
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    else:
        fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 100 if make == "short" else memory._HEADER_BYTES)
        if make == "short":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memory._SEALS)
        with pytest.raises(ndshare.errors.TransportError, match="a queue was refused"):
            memory.open_memory(fd)
    finally:
        os.close(fd)


def scribble(seed: int) -> None:
    """Use queues while their memory is overwritten at random; errors are in order."""
    rng = random.Random(seed)
    for bounds in ({}, {"maxsize": 5}, {"maxbytes": 20_000}, {"maxsize": 3, "maxbytes": 9_000}) * 3:
        q = ndshare.Queue(**bounds)
        with mmap.mmap(q._line.wire.files.memory, 0) as view:
            for _ in range(60):
                if rng.random() < 0.7:
                    at = rng.randrange(len(view) // 8) * 8
                    value = rng.choice([0, 1, 2**32, 2**63, 2**64 - 1, rng.getrandbits(64)])
                    if at:  # the flags may end it, which is an error as well
                        struct.pack_into("<Q", view, at, value)
                with contextlib.suppress(Exception):
                    q.put(rng.choice([1, b"x" * 300, np.zeros(500)]), False)
                with contextlib.suppress(Exception):
                    q.full(), q.qsize(), q.empty(), repr(q)
                with contextlib.suppress(Exception):
                    q.get(False)
        q.close()


@pytest.mark.chaos
def test_scribbled_memory_gives_no_signal(chaos_rng, chaos_rounds):
    """In a process of its own, which ends as it should."""
    for _ in range(2 * chaos_rounds):
        seed = chaos_rng.randrange(1 << 31)
        assert ended(forked(lambda seed=seed: scribble(seed))) == 0, seed
