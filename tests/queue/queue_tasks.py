"""What the queue tests run in other processes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np

import ndshare
from tests import array_tasks


class Plain:
    """Something with an attribute."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Unpicklable:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not this one")


class Unreadable:
    """Can be pickled and not rebuilt."""

    def __reduce__(self) -> Any:
        return divmod, (1, 0)


def put_numbers(q: ndshare.Queue, who: int, n: int) -> None:
    """Put ``(who, 0), (who, 1), …``."""
    for number in range(n):
        q.put((who, number))


def put_arrays(q: ndshare.Queue, n: int, size: int) -> None:
    """Put ordinary and shared arrays in turn."""
    for number in range(n):
        q.put(np.full(size, number) if number % 2 else ndshare.full(size, number))


def put_reused(q: ndshare.Queue, n: int) -> None:
    """Put one buffer again and again, changed each time."""
    buffer = np.empty(50_000)
    for number in range(n):
        buffer[:] = number
        q.put(buffer)
    buffer[:] = -1


def put_and_die(q: ndshare.Queue, n: int, size: int) -> None:
    """Put arrays, then be killed."""
    put_arrays(q, n, size)
    os.kill(os.getpid(), signal.SIGKILL)


def get_and_die(q: ndshare.Queue, n: int) -> None:
    """Take messages out, then be killed with them in hand."""
    kept = [q.get() for _ in range(n)]
    assert kept
    os.kill(os.getpid(), signal.SIGKILL)


def echo(there: ndshare.Queue, back: ndshare.Queue) -> None:
    """Send back what comes, with a look at it, until None comes."""
    while (got := there.get()) is not None:
        back.put((got, array_tasks.look(got) if isinstance(got, np.ndarray) else None))


def add_one(q: ndshare.Queue, shape: tuple[int, ...]) -> bool:
    """Add 1 to a shared array in place and pass it on."""
    a = q.get()
    assert a.shape == shape
    a += 1
    return ndshare.is_shared(a)


def produce_for_ever(q: ndshare.Queue, who: int, out: Any) -> None:
    """Put marked messages, arrays among them, until killed; note in shared memory what put has accepted."""
    number = 0
    while True:
        size = (10, 10, 2000, 30_000)[number % 4]
        q.put((who, number, np.full(size, number % 251, np.uint8)))
        number += 1
        out[who] = number


def consume_for_ever(q: ndshare.Queue, seen: Any, wrong: Any) -> None:
    """Take messages and count each in shared memory, until killed or the end.

    Damaged arrays and messages that one producer put in another order are counted as wrong.
    """
    last: dict[int, int] = {}
    while True:
        try:
            who, number, a = q.get()
        except ndshare.ShutDown:
            return
        if not (a == number % 251).all() or number <= last.get(who, -1):
            wrong[0] += 1
        last[who] = number
        seen[who, number] += 1


def hold_slot(q: ndshare.Queue, seconds: float) -> None:
    """Put one object into a bounded queue, and stay."""
    q.put("held")
    time.sleep(seconds)


def exit_with_backlog(q: ndshare.Queue, n: int, cancel: bool) -> None:
    """Put more than the socket holds and return at once."""
    for number in range(n):
        q.put(number)
    if cancel:
        q.cancel_join_thread()


def write_frames(stream: ndshare.Stream, count: int, shared: bool) -> None:
    """Put frames that are all of one number, made in one array that is used again and again."""
    frame = ndshare.empty(50_000) if shared else np.empty(50_000)
    for number in range(count):
        frame[:] = number
        stream.put((number, frame))
    stream.close()


def read_frames(stream: ndshare.Stream, results: ndshare.Queue) -> None:
    """Read until the end; tell how many frames came, how many were skipped, and what was wrong."""
    last, count, wrong, kept = -1, 0, [], []
    try:
        while True:
            number, frame = stream.get(timeout=60)
            if number <= last or frame.flags.writeable or not (frame == number).all():
                wrong.append((last, number, frame[0], frame[-1]))
            last, count = number, count + 1
            if count % 10 == 0:
                kept.append((number, frame))
    except ndshare.ShutDown:
        wrong += [("kept", number) for number, frame in kept if not (frame == number).all()]
        results.put((count, stream.skipped, last, wrong))


def put_later(q: ndshare.Queue, value: object, seconds: float) -> None:
    """Put something twice, after a while."""
    time.sleep(seconds)
    q.put(value)
    q.put(value)


def sum_of_newest(stream: ndshare.Stream) -> float:
    """Return the sum of the newest frame."""
    return float(stream.get(timeout=30).sum())


def put_newest(stream: ndshare.Stream, value: object) -> None:
    """Put something, and be done with it."""
    stream.put(value)
