"""Waiting for a moment: looking without sleeping, and the sleep of a thread while another one is at it."""

from __future__ import annotations

import array
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import ndshare
from ndshare._processes.hub import Hub
from ndshare._system import _wire

pytestmark = pytest.mark.once


def test_rest_lasts_while_somebody_counts() -> None:
    """And no longer than it may; the counting thread has the GIL meanwhile."""
    count = array.array("Q", [0])
    pipe = os.pipe()
    stop = time.monotonic() + 0.3

    def keep_counting() -> None:
        while time.monotonic() < stop:
            count[0] += 1

    thread = threading.Thread(target=keep_counting)
    thread.start()
    try:
        _wire.rest(pipe[0], count, 20, 10_000)
        assert time.monotonic() > stop - 0.15
        began = time.monotonic()
        _wire.rest(pipe[0], count, 20, 60)
        assert time.monotonic() - began < 5
    finally:
        thread.join()
        for fd in pipe:
            os.close(fd)


def test_rest_ends_with_the_first_byte() -> None:
    """Of what an epoll hears, too."""
    count = array.array("Q", [0])
    with select.epoll() as poll:
        eventfd = os.eventfd(0)
        poll.register(eventfd, select.EPOLLIN)
        threading.Timer(0.05, os.eventfd_write, (eventfd, 1)).start()
        began = time.monotonic()
        _wire.rest(poll.fileno(), count, 10_000, 20_000)
        assert time.monotonic() - began < 5
        os.close(eventfd)


def test_rest_refuses_what_is_no_count() -> None:
    """Before it sleeps."""
    with pytest.raises(ValueError, match="eight aligned bytes"):
        _wire.rest(0, b"1234", 1, 1)
    with pytest.raises(TypeError, match="4 arguments"):
        _wire.rest(0, b"1234", 1)  # type: ignore[call-arg]


def test_callbacks_come_soon_after_many_results_were_waited_for() -> None:
    """The I/O thread, which left the messages to the waiting thread, takes over again."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        for _ in range(3):
            for number in range(100):
                assert executor.submit(abs, -number).result() == number
            called = threading.Event()
            executor.submit(abs, -1).add_done_callback(lambda _: called.set())
            assert called.wait(5)


def test_tasks_that_are_held_back_go_out_while_another_thread_waits() -> None:
    """A burst of submits is sent by the dozen; the rest of it waits for nobody's result."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        stop = threading.Event()

        def wait_for_results() -> None:
            while not stop.is_set():
                assert executor.submit(abs, -3).result() == 3

        thread = threading.Thread(target=wait_for_results)
        thread.start()
        try:
            for _ in range(5):
                called = [threading.Event() for _ in range(45)]
                for event in called:
                    executor.submit(abs, -1).add_done_callback(lambda _, event=event: event.set())
                assert all(event.wait(10) for event in called)
        finally:
            stop.set()
            thread.join()


def test_flush_that_is_wanted_while_the_thread_stops_counting() -> None:
    """Between its looks at how often somebody led and at whether it is parked: the worst moment."""
    flushed = threading.Event()

    class Watched(Hub):
        armed = wanted = False

        @property
        def _parked(self) -> bool:  # type: ignore[override]
            parked: bool = self.__dict__["_parked"]
            looks = self.in_thread and self.lock._is_owned()  # type: ignore[attr-defined]
            if looks and self.armed and parked and sys._getframe(1).f_locals["times"] == 0 and self._ticking:
                self.armed, self.wanted = False, True
                thread = threading.Thread(target=self.tick)
                thread.start()
                thread.join()
            return parked

        @_parked.setter
        def _parked(self, parked: bool) -> None:
            self.__dict__["_parked"] = parked

    hub = Watched()
    hub.flush = lambda: flushed.set() if hub.wanted else None
    hub.start()
    try:
        while not hub.wanted:
            hub.tick()
            hub.armed = True
            time.sleep(0.02)
            hub.armed = False
        assert flushed.wait(10)
    finally:
        hub.close()


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
