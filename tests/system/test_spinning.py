"""A thread that looks for a message without sleeping gives way to whoever wants its processor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import ndshare
from ndshare._system import _wire

pytestmark = pytest.mark.once


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Confine this process, and those it starts, to one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_processor")
def test_spinning_ends_when_somebody_else_has_run() -> None:
    """Not after the ten seconds that it may take: the other process gets the processor at the first yield."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with mine, theirs:
            time.sleep(0.2)  # until it computes
            began = time.monotonic()
            _wire.spin(mine.fileno(), 10_000_000)
            assert time.monotonic() - began < 5
    finally:
        busy.kill()
        busy.wait()


def test_spinning_sees_a_message_that_is_there() -> None:
    """At once, whatever time it is given."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        theirs.send(b"x")
        began = time.monotonic()
        _wire.spin(mine.fileno(), 10_000_000)
        assert time.monotonic() - began < 5


@pytest.mark.usefixtures("one_processor")
def test_caller_and_workers_share_one_processor() -> None:
    """Short tasks, each waited for, and many at once."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        for number in range(300):
            assert executor.submit(abs, -number).result(30) == number
        assert list(executor.map(abs, range(-500, 0), timeout=60)) == list(range(500, 0, -1))
