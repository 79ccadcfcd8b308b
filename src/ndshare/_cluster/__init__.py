"""Door."""

from __future__ import annotations

from ndshare._cluster.calls import Calls, Packed, crates_of
from ndshare._cluster.cargo import Cargo
from ndshare._cluster.context import ClusterContext
from ndshare._cluster.engines import find_engine
from ndshare._cluster.executor import ClusterExecutor
from ndshare._cluster.share_size import DEPTH, ShareSize

__all__ = [
    "DEPTH",
    "Calls",
    "Cargo",
    "ClusterContext",
    "ClusterExecutor",
    "Packed",
    "ShareSize",
    "crates_of",
    "find_engine",
]
