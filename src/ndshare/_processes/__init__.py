"""Door."""

from __future__ import annotations

from ndshare._processes import errstate, frames
from ndshare._processes.crew import Crew, CrewClosedError, crew, shutdown
from ndshare._processes.hub import THREAD_NAME, Todo
from ndshare._processes.injection import SetUp, invoke
from ndshare._processes.placing import bring_here
from ndshare._processes.records import handle_waiting
from ndshare._processes.worker_handle import Answer, Worker, WorkerGoneError

__all__ = [
    "THREAD_NAME",
    "Answer",
    "Crew",
    "CrewClosedError",
    "SetUp",
    "Todo",
    "Worker",
    "WorkerGoneError",
    "bring_here",
    "crew",
    "errstate",
    "frames",
    "handle_waiting",
    "invoke",
    "shutdown",
]
