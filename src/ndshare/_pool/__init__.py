"""Pools: the executor, its tasks and futures, and how they get to workers and back.

::

    executor ── submit, map ──►  Pool ── queue of Tasks
                                  ├── Roster     its workers: who can take how much
                                  └── Delivery   settings, names, functions, then TASKS ──►  worker
    future  ◄── result, error ── Pool ◄───────────────────────────────────── RESULT ──────────┘

The workers themselves, the loop that hears them and the processes they are forked from are
`ndshare._processes`; what travels, and how, is `ndshare._transport`.

Guarantees
----------
- A task runs once. Only one whose worker died is run again, and only if its pool was asked to (`retries`).
- Every task ends: by a result, an error or a cancellation, whatever dies and whenever Ctrl-C strikes.
- A task that cannot be sent, or whose result cannot be rebuilt, fails alone.

Not guaranteed: the order in which tasks begin, once they are shorter than what it takes to send them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndshare._pool.executor import ProcessPoolExecutor
from ndshare._pool.items import EachRun, EachTask
from ndshare._pool.pool import Pool, new_pool
from ndshare._pool.repeats import Repeats
from ndshare._pool.settings import Environment, PoolSettings, checked_settings
from ndshare._pool.tasks import QuietTask, Task, TaskFuture, describe
from ndshare._system import later

if TYPE_CHECKING:
    from ndshare._pool.report import Recorder, TaskReport
    from ndshare._pool.workers import WorkerProcess, processes

__all__ = [
    "EachRun",
    "EachTask",
    "Environment",
    "Pool",
    "PoolSettings",
    "ProcessPoolExecutor",
    "QuietTask",
    "Recorder",
    "Repeats",
    "Task",
    "TaskFuture",
    "TaskReport",
    "WorkerProcess",
    "checked_settings",
    "describe",
    "new_pool",
    "processes",
]

__getattr__ = later(
    __name__, {"report": ("Recorder", "TaskReport"), "workers": ("WorkerProcess", "processes")}
)
