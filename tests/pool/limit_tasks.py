"""What tasks with limits run: imported by workers."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import ndshare


def ready() -> None:
    """Have a worker import this module before the clock of its first task runs."""


def note(runs: Any, index: int, seconds: float = 0.0) -> int:
    """Count a run of an item, take a while, and count that it came to its end."""
    runs[0, index] += 1
    time.sleep(seconds)
    runs[1, index] += 1
    return index


@ndshare.options(timeout=0.2, retries=1)
def decorated(seconds: float) -> int:
    """Sleep, and return the process."""
    time.sleep(seconds)
    return os.getpid()


class Sleeper:
    """Has a method with a limit."""

    @ndshare.options(timeout=0.2)
    def rest(self, seconds: float) -> str:
        """Sleep."""
        time.sleep(seconds)
        return "rested"


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def when(_item: int) -> float:
    """Return the time."""
    return time.monotonic()


def die_once(counts: Any, index: int) -> int:
    """Count; item 7 is killed the first time."""
    counts[index] += 1
    if index == 7 and counts[index] == 1:
        die()
    return index
