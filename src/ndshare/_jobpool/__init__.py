"""Jobs: the interface of `multiprocessing.Pool`, on the workers and the memory of executors.

::

    Pool ── apply ───────────────► CallTask ──┐
         ── map, starmap ──► chunks: JobTask ──┼──► a pool of tasks ──► workers
         ── imap ──► Feeder ──► JobTask ───────┘         │
    AsyncResult, IMapIterator ◄── callbacks ◄── note ◄───┘

Guarantees
----------
- Every job ends: a worker's death, a pool that is terminated, an input that raises are errors of the job.
- Callbacks have run when a job is ready, and when `join` returns; what one raises is logged and harms nobody.
- An input with a length is read at the call; any other one in a thread of its own, a few items ahead of the
  workers.

Not guaranteed: the order of callbacks.
"""

from __future__ import annotations

from ndshare._jobpool.pool import Pool

__all__ = ["Pool"]
