"""The thread that leads hears that what it waits for has happened, whoever else looks at the same time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from ndshare._processes.hub import Hub

#: Far longer than any round takes, far shorter than the patience of who leads.
_LATE_S = 10.0


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub whose I/O thread runs."""
    hub = Hub()
    hub.start()
    yield hub
    hub.close()


@pytest.fixture
def one_processor() -> Iterator[None]:
    """All threads share one processor: who is woken does not run at once."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def _lead(hub: Hub, over: threading.Event, took: list[float]) -> threading.Thread:
    """Have a thread lead until `over`; it says how long it went on after that."""

    def lead() -> None:
        hub.drive(over.is_set, time.monotonic() + 3 * _LATE_S)
        took.append(time.monotonic())

    thread = threading.Thread(target=lead)
    thread.start()
    while not hub._leader_thread:
        time.sleep(0)
    time.sleep(0.001)  # it sleeps
    return thread


@pytest.mark.usefixtures("one_processor")
def test_bell_is_the_leaders_although_another_thread_looks_first(hub: Hub) -> None:
    """Who rings, and then looks for messages, does not take the sound away."""
    for _ in range(8):
        over, ended = threading.Event(), list[float]()
        thread = _lead(hub, over, ended)
        over.set()
        rung = time.monotonic()
        hub.ring()
        hub.turn(0)
        thread.join()
        assert ended[0] - rung < _LATE_S


@pytest.mark.usefixtures("one_processor")
def test_bell_is_the_leaders_although_the_io_thread_hears_too(hub: Hub) -> None:
    """As it does when it was told to, for one who waited, just as the next thread began to lead."""
    for _ in range(8):
        over, ended = threading.Event(), list[float]()
        thread = _lead(hub, over, ended)
        hub._unpark()
        hub.put_off(over.set)  # it rings after that
        rung = time.monotonic()
        thread.join()
        assert ended[0] - rung < _LATE_S


def test_io_thread_leaves_the_workers_to_who_leads(hub: Hub) -> None:
    """It does not look again and again at what is not for it."""
    over, ended = threading.Event(), list[float]()
    thread = _lead(hub, over, ended)
    hub._unpark()
    hub.later(0, lambda: None)
    deadline = time.monotonic() + _LATE_S
    while not hub._parked and time.monotonic() < deadline:
        time.sleep(0.001)
    assert hub._parked
    over.set()
    hub.ring()
    thread.join()
    while hub._parked and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not hub._parked


@pytest.mark.usefixtures("one_processor")
def test_who_leads_leaves_before_the_hub_is_closed() -> None:
    """What it listens to is not taken away while it sleeps: it would not wake up any more."""
    for _ in range(8):
        hub = Hub()
        hub.start()
        over, ended = threading.Event(), list[float]()
        thread = _lead(hub, over, ended)
        over.set()
        rung = time.monotonic()
        hub.ring()
        hub.close()
        thread.join()
        assert ended[0] - rung < _LATE_S
        hub.drive(lambda: False, None)  # nobody leads any more
