"""Named arrays in shared memory, and functions that use the names as if they were variables of theirs.

::

    Workspace ──► Staff ── workers of this machine, which map the values    (`staff`)
        ▲             └─ nodes of a cluster, which get them once each       (`on_cluster`)
        └── handles, results in the order of the calls

Guarantees
----------
- On this machine all workers, and the caller, see the same memory.
- On a cluster what a call has written is in the caller's memory before its future is done.

Not guaranteed
--------------
- An order among calls that write to the same elements.
"""

from __future__ import annotations

from ndshare._workspace.workspace import Workspace

__all__ = [
    "Workspace",
]
