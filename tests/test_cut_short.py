"""What a call that is cut short leaves to the others: by Ctrl-C, by a death, by an engine that refuses."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ndshare
from dict_tasks import ended, forked
from ndshare._node import run_task
from ndshare._node_link import Link
from ndshare._queue_opened import Opened

_STORM_S = 0.5


def _storm(operation: Callable[[], object]) -> Iterator[int]:
    """Interrupt something that is repeated, at random instants; yield behind each interrupt."""
    armed = False

    def strike(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, strike)

    def send() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(int(_STORM_S / 1e-3)):
            time.sleep(random.uniform(0.3e-3, 1.7e-3))
            os.kill(os.getppid(), signal.SIGINT)

    pid = forked(send)
    try:
        number = 0
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            try:
                until = time.monotonic() + 0.1  # the last one strikes nobody
                armed = True
                while time.monotonic() < until:
                    operation()
            except KeyboardInterrupt:
                number += 1
            armed = False
            yield number
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- SharedDict


@pytest.mark.parametrize("how", ["write", "atomic", "locked"])
def test_ctrl_c_leaves_no_key_locked(how: str) -> None:
    """Wherever it comes: behind the call that takes the lock, or at the end of the block."""
    with ndshare.SharedDict({"a": np.zeros(8), "b": np.zeros(8)}) as shared:

        def locked() -> None:
            with shared.locked("a") as a:
                a += 1

        value = np.ones(8)
        operation = {
            "write": lambda: shared.write({"a": value}),
            "atomic": lambda: shared.write({"a": value, "b": value}, atomic=True),
            "locked": locked,
        }[how]
        for number in _storm(operation):
            assert shared._store.held() == [], f"after {number} interrupts"


# ---------------------------------------------------------------------- Queue


@pytest.mark.leaves("open descriptor", "mapping of a memfd")  # what `get` had taken out
@pytest.mark.parametrize("bounds", [{"maxsize": 4}, {"maxbytes": 1 << 20}])
def test_ctrl_c_in_put_leaves_no_slot_taken(bounds: dict[str, int]) -> None:
    """Else every later `put` would wait for it until the process ends."""
    shared, array = ndshare.Queue(**bounds), np.ones(9000)

    def operation() -> None:
        shared.put(array)
        shared.get()

    for number in _storm(operation):
        while shared.qsize():
            try:
                shared.get(False)
            except queue.Empty:
                pytest.fail(f"a slot is taken and nothing is there, after {number} interrupts")
    shared.close()


def test_ctrl_c_while_the_feeder_starts_sends_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one feeder; what had to wait goes out once, in its order."""
    start, struck = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "ndshare-queue" and not struck:
            struck.append(1)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    shared, number = ndshare.Queue(), 0
    with pytest.raises(KeyboardInterrupt):
        while True:
            shared.put(np.full(20_000, number))
            number += 1
    for more in range(number + 1, number + 200):
        shared.put(np.full(20_000, more))
    got = [int(shared.get(timeout=20)[0]) for _ in range(number)]  # the one that was interrupted may be lost
    while got[-1] < number + 199:
        got.append(int(shared.get(timeout=20)[0]))
    assert [one for one in got if one != number] == [*range(number), *range(number + 1, number + 200)]
    shared.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_in_shutdown_keeps_nobody_waiting(when: str) -> None:
    """A process is killed before or after it has said that the queue is shut down."""
    shared = ndshare.Queue()
    ends: list[str] = []

    def wait() -> None:
        try:
            shared.get()
        except ndshare.ShutDown:
            ends.append("shut down")

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.1)

    def die() -> None:
        set_flags = Opened.set_flags

        def dies(opened: Opened, flags: int) -> None:
            if when == "after":
                set_flags(opened, flags)
            os.kill(os.getpid(), signal.SIGKILL)

        Opened.set_flags = dies  # type: ignore[method-assign]
        shared.shutdown()

    assert ended(forked(die)) == -signal.SIGKILL
    waiting.join(20)
    assert not waiting.is_alive()
    assert ends == ["shut down"]
    shared.close()


def test_a_child_keeps_nothing_of_a_queue_that_was_closed_and_had_again() -> None:
    """It was closed with a backlog, and received again while that was being sent."""
    shared, carrier = ndshare.Queue(), ndshare.Queue()
    carrier.put(shared)
    number = 0
    while not shared._line.backlog:
        shared.put(np.zeros(3000))
        number += 1
    shared.close()
    again = carrier.get()
    pid = forked(lambda: time.sleep(60))
    for _ in range(number):
        again.get(timeout=20)
    again.shutdown()
    with pytest.raises(ndshare.ShutDown):
        again.get(timeout=5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# ---------------------------------------------------------------------- ClusterExecutor


class _Refusing:
    """An engine of this process that takes no contents, once."""

    max_workers = 1

    def __init__(self) -> None:
        self.refused = False

    def submit(self, function: Any, task: Any) -> Any:
        if task.contents and not self.refused:
            self.refused = True
            raise ConnectionError("the node cannot be reached")
        future: Any = concurrent.futures.Future()
        future.set_result(run_task(task))
        return future


@pytest.mark.leaves("child process", "open descriptor", "thread", "mapping of a memfd")
def test_contents_that_could_not_be_sent_are_sent_with_the_next_call() -> None:
    """One failure to send does not let all wait that lack the same."""
    large = np.random.default_rng().normal(size=1 << 18)
    executor = ndshare.ClusterExecutor(_Refusing())
    with pytest.raises(ConnectionError):
        executor.submit(np.sum, large).result(20)
    assert executor.submit(np.sum, large).result(20) == large.sum()


@pytest.mark.leaves("open descriptor", "thread")
def test_a_fork_of_the_holder_does_not_keep_its_name() -> None:
    """Who comes after the holder was killed does not wait for somebody who does not answer."""
    name = f"\0ndshare-test-{os.getpid()}"
    told, tell = os.pipe()

    def stay() -> None:
        os.write(tell, b"%-20d" % os.getpid())
        time.sleep(60)

    def hold() -> None:
        Link(list, name).find(b"a" * 16)
        forked(stay)
        stay()

    holder = forked(hold)
    pids = [int(os.read(told, 20)) for _ in range(2)]
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    answers: list[object] = []
    link = Link(list, name)
    asking = threading.Thread(target=lambda: answers.append(link.find(b"a" * 16)), daemon=True)
    asking.start()
    asking.join(5)
    for pid in set(pids) - {holder}:
        os.kill(pid, signal.SIGKILL)
    link._drop()
    assert answers == [None]
    os.close(told)
    os.close(tell)
