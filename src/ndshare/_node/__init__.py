"""One engine process on another machine: runs shares, calls and workspaces that come to it, on warm workers.

::

    caller ── CallTask, ShareTask, NamedTask ──► run_task ──► contents of the machine ──► workers
      ▲                                                                               │
      └───────── TaskResult: outcome, what has changed; or which contents it lacks ◄───┘

Guarantees
----------
- A content is on a machine once, however many processes of the engine use it.
- What is kept beyond what the last task needs is at most a quarter of the memory that there is for it, all
  processes of the machine together; it does not count as memory of the engine's process.
- What goes back is what has changed, byte by byte; nothing else of the caller's is overwritten.
- What goes wrong is a failure in the result: `run_task` raises nothing but what ends the process.

Not guaranteed
--------------
- That a content is still there for the next task: the result says what is lacking, and the caller sends it.
"""

from __future__ import annotations

from ndshare._node.node import kept_memory, limit_memory, release_memory, relieve_memory, run_task, stop_map
from ndshare._node.shares import BatchTask, CallTask, NamedTask, Script, Setting, ShareTask, TaskResult
from ndshare._node.twins import Change

__all__ = [
    "BatchTask",
    "CallTask",
    "Change",
    "NamedTask",
    "Script",
    "Setting",
    "ShareTask",
    "TaskResult",
    "kept_memory",
    "limit_memory",
    "release_memory",
    "relieve_memory",
    "run_task",
    "stop_map",
]
