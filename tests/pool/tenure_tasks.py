"""Initializers, finalizers and tasks that keep something in their worker: imported by workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import ndshare


def begin(folder: str, seconds: float = 0.0) -> None:
    """Open a file, and keep it."""
    state = ndshare.worker_state()
    assert not state
    state["file"] = Path(folder, f"{os.getpid()}.txt").open("w")  # noqa: SIM115 - it stays
    state["count"] = 0
    state["seconds"] = seconds


def count(_item: Any = None) -> int:
    """Count the calls in this worker."""
    state = ndshare.worker_state()
    state["count"] += 1
    return os.getpid()


def end() -> None:
    """Write down how many there were, unflushed, and print."""
    state = ndshare.worker_state()
    time.sleep(state["seconds"])
    state["file"].write(f"{state['count']}")
    print("closed", end="")


def fail() -> None:
    """Raise."""
    raise ValueError("at the end")


def hang() -> None:
    """Take very long."""
    time.sleep(600)


def state_size() -> int:
    """How many things are kept."""
    return len(ndshare.worker_state())


def keep(name: str) -> None:
    """Keep a name."""
    ndshare.worker_state()[name] = name


def affinity(_item: Any = None) -> tuple[int | None, list[int]]:
    """Return the number of the worker, and where it may run."""
    time.sleep(0.05)
    return ndshare.worker_id(), sorted(os.sched_getaffinity(0))


def kill_self() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)
