"""Door."""

from __future__ import annotations

from ndshare._node.node import run_task, stop_map
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
    "run_task",
    "stop_map",
]
