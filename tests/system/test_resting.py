"""The sleep of a thread while another one is at it."""

from __future__ import annotations

import array
import os
import select
import sys
import threading
import time

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
