"""Shared-memory NumPy arrays for parallel Python."""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ndshare._pool_errors import InitializerError, WorkerDiedError
    from ndshare.executor import ProcessPoolExecutor
    from ndshare.sharing import share
    from ndshare.workers import shutdown

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
    "__version__",
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

# What takes longer to import than the arrays, or pulls in `concurrent.futures.process`.
_LATER = {
    "InitializerError": "_pool_errors",
    "ProcessPoolExecutor": "executor",
    "WorkerDiedError": "_pool_errors",
    "share": "sharing",
    "shutdown": "workers",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = getattr(_importlib.import_module(f"ndshare.{_LATER[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
