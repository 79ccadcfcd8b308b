"""Shared-memory NumPy arrays for parallel Python.

Data is put into shared memory once, every process works on the same pages, results come back without
a copy, and nothing is left behind whatever dies.
"""

from __future__ import annotations

import typing as _typing

from ndshare.arrays import (
    array,
    empty,
    empty_like,
    full,
    full_like,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from ndshare.errors import (
    CapacityError,
    InheritedError,
    NdshareError,
    NdshareWarning,
    RemoteError,
    RepeatedCopyWarning,
    SegmentError,
    SegmentGoneError,
    TransportError,
    UnsendableGlobalError,
    WorkerError,
)
from ndshare.segments import Stats, is_shared, shared_memory, stats, trim

if _typing.TYPE_CHECKING:
    from ndshare._pool_errors import InitializerError, WorkerDiedError
    from ndshare.crew import shutdown
    from ndshare.executor import ProcessPoolExecutor
    from ndshare.sharing import share
    from ndshare.workspace import Workspace

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "InheritedError",
    "InitializerError",
    "NdshareError",
    "NdshareWarning",
    "ProcessPoolExecutor",
    "RemoteError",
    "RepeatedCopyWarning",
    "SegmentError",
    "SegmentGoneError",
    "Stats",
    "TransportError",
    "UnsendableGlobalError",
    "WorkerDiedError",
    "WorkerError",
    "Workspace",
    "array",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "is_shared",
    "ones",
    "ones_like",
    "share",
    "shared_memory",
    "shutdown",
    "stats",
    "trim",
    "zeros",
    "zeros_like",
]

# Loaded when first asked for: workers, pickling and the standard library's executors take longer to import
# than everything else here.
_LATER = {
    "InitializerError": "ndshare._pool_errors",
    "ProcessPoolExecutor": "ndshare.executor",
    "WorkerDiedError": "ndshare._pool_errors",
    "Workspace": "ndshare.workspace",
    "share": "ndshare.sharing",
    "shutdown": "ndshare.crew",
}


def __getattr__(name: str) -> _typing.Any:
    if name in _LATER:
        import importlib

        value = getattr(importlib.import_module(_LATER[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
