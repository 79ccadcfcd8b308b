"""A queue between processes and threads; arrays in its messages are not pickled.

::

    process A                                                        process B
    queue ─ line ─ wire ── messages with descriptors ──▶ socket ──▶ wire ─ queue
              │      └──── flags, counters, sizes ──▶ memory ◀──────┘
            backlog ── what the socket has no room for, by a thread ──▶

`queue` is what users see; a `line` is the one sender of a process, whatever number of queue objects it has; a
`backlog` keeps and sends what had to wait; a `wire` is the open files; `messages` turn objects into what goes
through; `memory` is the layout of what all processes share. A `stream` is simpler: one process writes, and
the others see the newest only.

Guarantees
----------
* Each message arrives once, whole, and in the order of its sender's thread.
* The bounds hold whoever dies, and a process that is killed blocks nobody.
* A child of a fork has the queue, and nothing of what its parent still has to send.

Not guaranteed
--------------
* Fairness between receivers, or between senders that wait for room.
* What a killed process had accepted and the socket had no room for is lost.
"""

from __future__ import annotations

from ndshare._queue.backlog import finish_within
from ndshare._queue.memory import QueueCounts, counts
from ndshare._queue.queue import Queue
from ndshare._queue.stream import Stream, newest

__all__ = [
    "Queue",
    "QueueCounts",
    "Stream",
    "counts",
    "finish_within",
    "newest",
]
