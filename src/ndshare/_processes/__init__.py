"""Processes that work for this one, and what surrounds their tasks.

For whoever has tasks (a pool, through it a map or a workspace): a crew that lends workers, and hears what
they answer, what became of them, and what they log. Workers are forked from a process that is clean, small
and has one thread, whatever the caller is like.

::

    caller                                                        worker, one of many
    ──────                                                        ───────────────────
    Crew ── Zygote ──Popen──► zygote ──fork────────────────────►  serve
     ├── Hub: one thread hears all, or who waits for a result      │
     └── Worker ── STATE, MAIN, FUNCTION, TASKS (`frames`) ─────►  Surroundings ─► unpack ─► call ─► pack
            ▲                                                      │
            └───── RESULT, LOG, ASK, TRACKER, RESTED ──────────────┘

Guarantees
----------
- A task runs once, or is reported with the death of the worker that was running it: exit status and peak
  memory are known.
- This process gone, however it went, all of them are gone, also in the middle of C code.
- Directory, environment, ``sys.path``, warning filters, log levels and NumPy's error state in a worker are
  the caller's as of the task's dispatch. Log records go to the caller's handlers, before the result.
- A worker is a process of `multiprocessing`, and a child of the caller, to whoever asks there. What it prints
  goes where the caller's standard streams point.
- What tasks leave in the process is put back between two pools and after each map, or the worker is not used
  again.
- Ctrl-C loses no message and no task, and hits the task that it was meant for.
- A forked child of this process has none of it, and makes its own.

Not guaranteed
--------------
- Processes that a task starts itself live on when their worker is killed.
- Modules, threads and files that a task leaves behind stay in the worker.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ndshare._processes import errstate, frames, inheritance

if TYPE_CHECKING:
    from ndshare._processes.crew import Crew, CrewClosedError, own_crew, shutdown
    from ndshare._processes.family import be, described, numbered, worker_id
    from ndshare._processes.hub import Todo
    from ndshare._processes.injection import SetUp, invoke
    from ndshare._processes.launcher import freeze_support
    from ndshare._processes.modules import loaded
    from ndshare._processes.records import handle_waiting, name_items, tell_lost
    from ndshare._processes.surroundings import add_aliases
    from ndshare._processes.task_options import (
        TaskOptions,
        WithOptions,
        check_timeout,
        options,
        options_of,
        with_options,
        without_options,
    )
    from ndshare._processes.tenure import Opening, worker_state
    from ndshare._processes.watching import MapNote, Row, board
    from ndshare._processes.worker_handle import Answer, Worker, WorkerGoneError

__all__ = [
    "Answer",
    "Crew",
    "CrewClosedError",
    "MapNote",
    "Opening",
    "Row",
    "SetUp",
    "TaskOptions",
    "Todo",
    "WithOptions",
    "Worker",
    "WorkerGoneError",
    "add_aliases",
    "be",
    "board",
    "check_timeout",
    "described",
    "errstate",
    "frames",
    "freeze_support",
    "handle_waiting",
    "inheritance",
    "invoke",
    "loaded",
    "name_items",
    "numbered",
    "options",
    "options_of",
    "own_crew",
    "shutdown",
    "tell_lost",
    "with_options",
    "without_options",
    "worker_id",
    "worker_state",
]

# Where the names are. A worker has no use for the caller's side, and is forked the sooner without it.
_FILES = {
    "crew": ("Crew", "CrewClosedError", "own_crew", "shutdown"),
    "family": ("be", "described", "numbered", "worker_id"),
    "hub": ("Todo",),
    "injection": ("SetUp", "invoke"),
    "launcher": ("freeze_support",),
    "modules": ("loaded",),
    "records": ("handle_waiting", "name_items", "tell_lost"),
    "surroundings": ("add_aliases",),
    "task_options": (
        "TaskOptions",
        "WithOptions",
        "check_timeout",
        "options",
        "options_of",
        "with_options",
        "without_options",
    ),
    "tenure": ("Opening", "worker_state"),
    "watching": ("MapNote", "Row", "board"),
    "worker_handle": ("Answer", "Worker", "WorkerGoneError"),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{file}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
