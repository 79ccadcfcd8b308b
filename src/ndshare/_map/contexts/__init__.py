"""Where a map runs: `SerialContext`, `ThreadContext`, `ProcessContext`, and what they have in common.

::

    alloc ──► shared arrays, whatever the context: any other can map over them
    map   ──► functor, board, job ──► workers of the context (ndshare._map.driving) ──► MapReport

Guarantees
----------
- The same kernel gives the same result in every context. (Sums in `per_worker` rows depend on which worker
  had which item, in the last bits; `per_block` rows do not.)
- A map inside a kernel runs in that kernel's thread, with worker number 0.
"""

from __future__ import annotations

from ndshare._map.contexts.base import MapContext, SerialContext, ThreadContext
from ndshare._map.contexts.layouts import resolved
from ndshare._map.contexts.processes import ProcessContext

__all__ = ["MapContext", "ProcessContext", "SerialContext", "ThreadContext", "resolved"]
