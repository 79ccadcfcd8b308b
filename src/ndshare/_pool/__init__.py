"""Door."""

from __future__ import annotations

from ndshare._pool.executor import ProcessPoolExecutor, new_pool, warn_of_copies
from ndshare._pool.futures import TaskFuture
from ndshare._pool.muster import start_workers
from ndshare._pool.pool import Pool
from ndshare._pool.repeats import Repeats
from ndshare._pool.settings import Environment, PoolSettings, checked_settings
from ndshare._pool.tasks import QuietTask, Task, describe

__all__ = [
    "Environment",
    "Pool",
    "PoolSettings",
    "ProcessPoolExecutor",
    "QuietTask",
    "Repeats",
    "Task",
    "TaskFuture",
    "checked_settings",
    "describe",
    "new_pool",
    "start_workers",
    "warn_of_copies",
]
