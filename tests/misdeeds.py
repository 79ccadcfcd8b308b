"""What tasks do that they should not: imported by workers, so it needs next to nothing."""

from __future__ import annotations

import functools
import os
import pickle
import resource
import signal
import sys
import threading
import time
from typing import Any

import numpy as np


class Unpicklable:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        """Refuse."""
        raise pickle.PicklingError("this one stays at home")


class UnpicklableError(Exception):
    """An exception that carries something that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text, threading.Lock())


class TwoArgumentsError(Exception):
    """Its constructor takes other arguments than its base: the classic mistake."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class NeverAgainError(TwoArgumentsError):
    """Pickles, but does not unpickle: its own way lacks what its constructor takes."""

    def __reduce__(self) -> Any:
        """Give one argument of two."""
        return type(self), self.args


class ExitWhenRebuilt:
    """Its pickle exits the interpreter that loads it."""

    def __reduce__(self) -> Any:
        """Exit there."""
        return sys.exit, ("rebuilt",)


class FailsWhenRebuilt:
    """Its pickle raises where it is loaded."""

    def __reduce__(self) -> Any:
        """Raise there."""
        return int, ("not a number",)


class OddError(BaseException):
    """Not an Exception."""


class NoTextError(Exception):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise ValueError("no text")


def same(value: Any = None) -> Any:
    """Return the argument."""
    return value


def call(task: functools.partial[Any]) -> Any:
    """Call it."""
    return task()


def pid(_: object = None) -> int:
    """Return the worker's number."""
    return os.getpid()


def throw(error: BaseException) -> None:
    """Raise it."""
    raise error


def throw_made(kind: type[BaseException], *args: Any) -> None:
    """Make it and raise it."""
    raise kind(*args)


def make(kind: type) -> Any:
    """Make a result in the worker."""
    return kind()


def end_by(number: int) -> None:
    """Send this process a signal."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(30)


def leave(code: int) -> None:
    """End without a word."""
    os._exit(code)


def end_if(value: int, which: int) -> int:
    """Kill this process at one of the items."""
    if value == which:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def once(path: str) -> str:
    """Kill this process the first time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "second"
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def recurse(depth: int = 0) -> int:
    """Recurse without end."""
    return recurse(depth + 1) + 1


def deep() -> Any:
    """Return what pickling cannot follow."""
    value: Any = None
    for _ in range(1_000_000):
        value = (value,)
    return value


def hungry(room: int) -> int:
    """Take more than the address space has."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        kept = []
        while True:
            kept.append(np.ones(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def close_everything() -> None:
    """Close all descriptors, the worker's own included, and go on for a while."""
    os.closerange(3, 4096)
    time.sleep(30)


def close_and_return() -> int:
    """Close all descriptors, the worker's own included, and answer."""
    os.closerange(3, 4096)
    return 1


def fork_and_return(seconds: float) -> int:
    """Leave a child behind that falls out of this function, as the parent does."""
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
    return child


def fork_and_die(seconds: float) -> None:
    """Leave a child behind, and be killed."""
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def nap_and_note(seconds: float, ready: np.ndarray) -> None:
    """Sleep, and note it in shared memory."""
    time.sleep(seconds)
    ready[0] = 1


def nap(seconds: float) -> float:
    """Sleep in Python, where Ctrl-C can wake it."""
    time.sleep(seconds)
    return seconds


def stubborn(seconds: float) -> None:
    """Ignore Ctrl-C."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            pass


def in_c(count: int) -> int:
    """Block in C code, where no signal handler of Python's can run: some 10 s per 10**9."""
    return sum(range(count))


def note(path: str, value: int) -> int:
    """Say in a file that this ran."""
    with open(path, "a") as file:
        file.write(f"{value}\n")
    return value


def filled(count: int, value: float) -> Any:
    """Return an array."""
    return np.full(count, value)


def total(array: Any) -> float:
    """Read an array."""
    return float(array.sum())


def deaf(seconds: float) -> None:
    """Ignore all signals that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(seconds)


def nested(count: int) -> list[int]:
    """Use a pool inside a worker."""
    import ndshare

    with ndshare.ProcessPoolExecutor(1) as executor:
        return list(executor.map(same, range(count)))


def counted(count: int) -> Any:
    """Return the numbers from 0."""
    return np.arange(count)


def first(array: Any) -> float:
    """Look at one element."""
    return float(array[0])


def shared_total(nbytes: int) -> float:
    """Make a shared array in the worker and keep it for a moment."""
    import ndshare

    array = ndshare.ones(nbytes // 8)
    time.sleep(0.05)
    return float(array[-1])


def whole_total(array: Any) -> tuple[int, float]:
    """Read something of each page of an array, and say who did."""
    time.sleep(0.02)
    return os.getpid(), float(array[::512].sum() * 512)
