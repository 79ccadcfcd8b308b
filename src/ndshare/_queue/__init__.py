"""Door."""

from __future__ import annotations

from ndshare._queue.queue import Queue

__all__ = [
    "Queue",
]
