"""How many workers a pool has when nobody says."""

from __future__ import annotations

import os

from ndshare._system import platform

_inside_worker: int | None = None


def default_workers() -> int:
    """Number of workers by default.

    Returns
    -------
    int
        The smaller of the CPU affinity of this process and its container's CPU quota (rounded up), at
        least 1. Inside a worker: the number of threads that worker was given, so that nested pools do
        not multiply.
    """
    if _inside_worker is not None:
        return _inside_worker
    return platform.cpu_count()


def processors() -> int:
    """Return how many threads can run at once for a moment (a quota of time does not matter then)."""
    return len(os.sched_getaffinity(0)) if _inside_worker is None else _inside_worker


def set_inside_worker(threads: int) -> None:
    """Say that this process is a worker which has `threads` processors to itself."""
    global _inside_worker
    _inside_worker = threads
