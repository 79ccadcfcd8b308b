"""Maps: a kernel is called for every item of a collection, and writes its results where everybody sees them.

::

    caller                                              worker (thread, process, forked process, node)
    context.map ─► Job ─► Drive ─► workers.start ─────► run_job ─► take a share off the board ─► kernel(…)
                            ▲                             │            ▲                            │
                            │                             │            └─ done mask, item by item ──┤
    MapReport ◄─────────────┴── WorkerReport, or Lost ◄───┘              arrays of `alloc` ◄────────┘

    mapping   one map from the functor to the report       driving   waits, hands out again, draws progress
    runner    what a worker does (inner loop: _loop, C)    contexts  where a map runs
    workers   who does it: threads, pool, forked           watch     what a kernel uses, and writes to in vain
    savepoints  what rows held when a share began          used      which arrays a kernel uses
    checkpoint  the board as a file: what is done outlives the processes
    report, timeline, rows, randomness                     what comes of it

Guarantees
----------
- Every item is begun, finished once or reported as failed, whatever workers die of; which ones are done is
  read from the board, never from what a worker says.
- The same kernel gives the same result in every context.
- What a kernel wrote to an object that is not shared is told by name.
- What an item that was killed has added to rows per worker or per block is taken back, with its share.

Not guaranteed
--------------
- The order in which items run, and which worker runs them.
- What an item that was killed has written elsewhere, or whose kernel raised, is taken back by nobody.
"""

from __future__ import annotations

from ndshare._map._loop import drop as drop_result
from ndshare._map._loop import run
from ndshare._map.contexts import MapContext, ProcessContext, SerialContext, ThreadContext
from ndshare._map.contexts import resolved as resolved_layout
from ndshare._map.driving import Drive
from ndshare._map.job import Death, Job, WorkerReport
from ndshare._map.mapping import Batch
from ndshare._map.randomness import item_rng
from ndshare._map.report import MapReport
from ndshare._map.rows import known_rows
from ndshare._map.runner import run_in_worker
from ndshare._map.savepoints import Savepoint
from ndshare._map.watch.captured import Traffic, account, module_data, unsendable
from ndshare._map.workers.base import ItemError, MapWorkers, Outcome, Ranges
from ndshare._map.workers.pooled import PoolWorkers

__all__ = [
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
    "Savepoint",
    "SerialContext",
    "ThreadContext",
    "Traffic",
    "WorkerReport",
    "account",
    "drop_result",
    "item_rng",
    "known_rows",
    "module_data",
    "resolved_layout",
    "run",
    "run_in_worker",
    "unsendable",
]
