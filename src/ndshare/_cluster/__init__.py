"""The caller's side of maps and calls on other machines; the engine, such as Dask, is the user's.

::

    ClusterContext, ClusterExecutor ──► shares, calls ──► engine ──► nodes (`ndshare._node`)
          ▲                                                            │
          └── the caller's arrays, merged once ◄── what has changed ◄──┘

Guarantees
----------
- Each share and each call counts once, whatever the engine loses or runs twice.
- A content goes to a machine once, and only if it is lacking there.

Not guaranteed
--------------
- That functions see what others write at the same time: they see what arrays held when they were sent.
"""

from __future__ import annotations

from ndshare._cluster.calls import CallFuture, Calls, Packed, crates_of
from ndshare._cluster.cargo import Cargo
from ndshare._cluster.context import ClusterContext
from ndshare._cluster.engines import find_engine
from ndshare._cluster.executor import ClusterExecutor
from ndshare._cluster.flights import DEPTH, ShareSize

__all__ = [
    "DEPTH",
    "CallFuture",
    "Calls",
    "Cargo",
    "ClusterContext",
    "ClusterExecutor",
    "Packed",
    "ShareSize",
    "crates_of",
    "find_engine",
]
