"""What the tests of multiprocessing run in children: importable under every start method."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

import ndshare
from tests import array_tasks

BIG = 300_000  # elements: a segment of its own


def add_one(array: np.ndarray) -> int:
    """Write into the argument; return the process."""
    array += 1
    return os.getpid()


def make(n: int) -> np.ndarray:
    """Make a shared array that knows its process."""
    return ndshare.full(n, float(os.getpid()))


def serve(inbox: Any, outbox: Any) -> None:
    """Answer every array with what was seen of it, until None comes; `inbox` and `outbox` may be queues."""
    while (array := receive(inbox)) is not None:
        send(outbox, (array_tasks.look(array), array))


def receive(channel: Any) -> Any:
    """Take the next object from a queue or a connection."""
    return channel.get() if hasattr(channel, "get") else channel.recv()


def send(channel: Any, obj: Any) -> None:
    """Put an object into a queue or a connection."""
    (channel.put if hasattr(channel, "put") else channel.send)(obj)


def produce(queue: Any, count: int, n: int) -> None:
    """Put arrays whose content is their number, and end at once."""
    for number in range(count):
        queue.put(ndshare.full(n, float(number)))


def produce_both_kinds(queue: Any, count: int, n: int) -> None:
    """The same with shared and ordinary arrays in turn."""
    for number in range(count):
        queue.put(np.full(n, float(number)) if number % 2 else ndshare.full(n, float(number)))


def send_and_sleep(connection: Any) -> None:
    """Send one array and stay."""
    connection.send(ndshare.ones(BIG))
    time.sleep(60)


def pass_on(connection: Any, array: np.ndarray) -> None:
    """Send an array that this process has inherited, and end."""
    connection.send(array)


def add_to_first(array: np.ndarray) -> None:
    """Write through an argument of Process."""
    array[0] += 1
