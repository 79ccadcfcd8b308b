"""What the kernel says of processes, which may end while it is asked."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def state(pid: int) -> str:
    """Return its state in one letter, "X" if it is not there."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def gone(pid: int) -> bool:
    """Tell whether it has ended; somebody may not have waited for it yet."""
    return state(pid) in "ZX"


def children(pid: int) -> list[int]:
    """Return the processes that it started and has not waited for, those of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below one."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def pss(pid: int) -> int:
    """Return its share of the memory it has mapped, in bytes; 0 if it is not there."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
