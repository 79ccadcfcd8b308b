"""What the kernel says of a process."""

from __future__ import annotations


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
