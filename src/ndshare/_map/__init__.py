"""Door."""

from __future__ import annotations

from ndshare._map._loop import run
from ndshare._map.contexts import MapContext, ProcessContext, SerialContext, ThreadContext
from ndshare._map.driving import Drive
from ndshare._map.job import Death, Job, WorkerReport
from ndshare._map.mapping import Batch
from ndshare._map.progress import Bar
from ndshare._map.randomness import item_rng
from ndshare._map.report.report import MapReport
from ndshare._map.rows import rows
from ndshare._map.runner import run_in_worker
from ndshare._map.watch.captured import Traffic, account, module_data, unsendable
from ndshare._map.workers.base import ItemError, MapWorkers, Outcome, Ranges
from ndshare._map.workers.pooled import PoolWorkers

__all__ = [
    "Bar",
    "Batch",
    "Death",
    "Drive",
    "ItemError",
    "Job",
    "MapContext",
    "MapReport",
    "MapWorkers",
    "Outcome",
    "PoolWorkers",
    "ProcessContext",
    "Ranges",
    "SerialContext",
    "ThreadContext",
    "Traffic",
    "WorkerReport",
    "account",
    "item_rng",
    "module_data",
    "rows",
    "run",
    "run_in_worker",
    "unsendable",
]
