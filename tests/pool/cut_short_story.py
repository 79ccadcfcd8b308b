"""Calls that are cut short, each in a process of its own: they leave open files and threads there.

Run by test_cut_short.py, or by hand: NAME. Says ``ok`` at the end.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import ndshare
from ndshare._node.link import Link
from ndshare._node.node import run_task
from tests.dict.dict_tasks import forked

_STORM_S = 0.3


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

    def repeat() -> None:  # of its own: 3.13 has no handler for what strikes where a loop goes back
        until = time.monotonic() + 0.1  # the last one strikes nobody
        while time.monotonic() < until:
            operation()

    pid = forked(send)
    try:
        number = 0
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            try:
                armed = True
                repeat()
                armed = False
            except KeyboardInterrupt:
                number += 1
            yield number
    finally:
        signal.signal(signal.SIGINT, before)


def keys(operation: Callable[[ndshare.SharedDict], None]) -> None:
    """Wherever Ctrl-C comes, behind the call that takes a lock or at the end of the block: no key stays locked."""
    with ndshare.SharedDict({"a": np.zeros(8), "b": np.zeros(8)}) as shared:
        for number in _storm(lambda: operation(shared)):
            assert shared._store.held() == [], f"after {number} interrupts"


def write(shared: ndshare.SharedDict) -> None:
    """One key."""
    shared.write({"a": np.ones(8)})


def write_all(shared: ndshare.SharedDict) -> None:
    """Several as one."""
    shared.write({"a": np.ones(8), "b": np.ones(8)}, atomic=True)


def locked(shared: ndshare.SharedDict) -> None:
    """In place."""
    with shared.locked("a") as a:
        a += 1


def slots(**bounds: int) -> None:
    """No place in the queue stays taken: else every later `put` waits for it until the process ends."""
    shared, array = ndshare.Queue(**bounds), np.ones(9000)

    def operation() -> None:
        shared.put(array)
        shared.get()

    for number in _storm(operation):
        while shared.qsize():
            try:
                shared.get(False)
            except queue.Empty:
                raise AssertionError(
                    f"a slot is taken, nothing is there, after {number} interrupts"
                ) from None
    shared.close()


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


def contents() -> None:
    """One failure to send does not let all calls wait that lack the same."""
    large = np.random.default_rng().normal(size=1 << 18)
    executor = ndshare.ClusterExecutor(_Refusing())
    try:
        executor.submit(np.sum, large).result(20)
    except ConnectionError:
        assert executor.submit(np.sum, large).result(20) == large.sum()
    else:
        raise AssertionError("it was not refused")


def holder() -> None:
    """Who comes after the holder of contents was killed does not wait for a fork of it, which does not answer."""
    name = f"\0ndshare-test-{os.getpid()}"
    told, tell = os.pipe()

    def stay() -> None:
        os.write(tell, b"%-20d" % os.getpid())
        time.sleep(60)

    def hold() -> None:
        Link(list, name).find(b"a" * 16)
        forked(stay)
        stay()

    first = forked(hold)
    pids = [int(os.read(told, 20)) for _ in range(2)]
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(Link(list, name).find(b"a" * 16)), daemon=True)
    asking.start()
    asking.join(10)
    for pid in set(pids) - {first}:
        os.kill(pid, signal.SIGKILL)
    assert answers == [None]


STORIES: dict[str, Callable[[], object]] = {
    "keys": lambda: [keys(operation) for operation in (write, write_all, locked)],
    "slots": lambda: [slots(maxsize=4), slots(maxbytes=1 << 20)],
    "contents": contents,
    "holder": holder,
}

if __name__ == "__main__":
    STORIES[sys.argv[1]]()
    print("ok", flush=True)
    os._exit(0)
