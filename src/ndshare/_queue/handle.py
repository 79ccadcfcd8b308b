"""What putting into a queue and getting out of it have in common: the line, and how long a wait may last."""

from __future__ import annotations

import time

from ndshare._queue.line import Line


class Handle:
    """Something that stands for a queue in this process, until it is closed."""

    _line: Line | None

    def _open(self) -> Line:
        if self._line is None:
            raise ValueError(f"{self!r} is closed")
        return self._line


def deadline_of(block: bool, timeout: float | None) -> float | None:
    """When to give up; None: never."""
    if not block:
        return 0.0
    if timeout is None:
        return None
    if timeout < 0:
        raise ValueError(f"timeout is {timeout}; allowed are 0 and more seconds, or None for no limit")
    return time.monotonic() + timeout


def left_of(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()
