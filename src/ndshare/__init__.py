"""Shared-memory NumPy arrays for parallel Python.

Data is put into shared memory once, every process works on the same pages, results come back without
a copy, and nothing is left behind whatever dies.

Arrays (docs/arrays.md)
    empty, zeros, ones, full, array, empty_like, zeros_like, ones_like, full_like: made in shared memory
    share, is_shared, shared_memory: what is there already, and what other code makes
    scratch, register_wrapper: places to work in; classes that wrap arrays
    stats, trim: what is held, and giving it back
Tasks (docs/executor.md)
    ProcessPoolExecutor: the interface of concurrent.futures, arrays without pickling; TaskReport: what it did
    Pool: the interface of multiprocessing.Pool, on the same workers (docs/pool.md)
    shutdown: ends the workers that are kept warm; freeze_support: for frozen programs
    options: time limit, tries and priority of a function's tasks
    worker_id: the number of the worker that code runs in; worker_state: what it keeps for its executor
Kernels over collections (docs/map.md)
    map, alloc, get_default_context, set_default_context: in the default context
    SerialContext, ThreadContext, ProcessContext, MapContext, MapReport
    lock, Lock, item_rng: one at a time; random numbers of an item
    Functor, SequenceFunctor, NdarrayFunctor, DataArrayFunctor, ExtraDataFunctor (docs/functors.md)
Other machines (docs/cluster.md)
    ClusterContext, ClusterExecutor: through Dask, MPI, or any engine with futures
Processes that talk (docs/queue.md, docs/shared_dict.md)
    Queue: messages; Stream: the newest of what one process makes
    SharedDict, prune: named arrays that many processes read and update
Named arrays and functions (docs/workspace.md)
    Workspace
Errors (docs/guarantees.md)
    NdshareError and, below it, CapacityError, ExitError, InheritedError, InitializerError, KeyLockError,
    KeyTimeoutError, LayoutError, OwnerDiedError, RemoteError, SegmentError, SegmentGoneError,
    TaskKilledError, TaskTimeoutError, TransportError, UnsendableGlobalError, WorkerDiedError, WorkerError,
    WorkerMemoryError, WriterDiedError; ShutDown of queues
    NdshareWarning and, below it, RepeatedCopyWarning, SilentWriteWarning
Figures
    Stats: what `stats` returns
"""

from __future__ import annotations

import sys as _sys
import typing as _typing

try:
    from ndshare import _system as _system  # before NumPy: it refuses where neither can work

    # isort: split
    from ndshare._arrays import (
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
    from ndshare._memory import Stats, is_shared, scratch, shared_memory, stats, trim
    from ndshare.errors import (
        CapacityError,
        InheritedError,
        KeyLockError,
        KeyTimeoutError,
        LayoutError,
        NdshareError,
        NdshareWarning,
        OwnerDiedError,
        RemoteError,
        RepeatedCopyWarning,
        SegmentError,
        SegmentGoneError,
        ShutDown,
        SilentWriteWarning,
        TaskKilledError,
        TaskTimeoutError,
        TransportError,
        UnsendableGlobalError,
        WorkerError,
        WorkerMemoryError,
        WriterDiedError,
    )
except ImportError:
    # Where nothing else can work, "ndshare doctor" says why.
    if not (_sys.argv[1:2] == ["doctor"] and _sys.argv[0].rpartition("/")[2] in ("ndshare", "-m")):
        raise
    _doctor = __import__("ndshare.cli.doctor", fromlist=["main"])
    _sys.exit(_doctor.main(_sys.argv[2:]))

if _typing.TYPE_CHECKING:
    from ndshare._cluster import ClusterContext, ClusterExecutor
    from ndshare._dict import SharedDict, prune
    from ndshare._locks import Lock, lock
    from ndshare._map import MapContext, MapReport, ProcessContext, SerialContext, ThreadContext, item_rng
    from ndshare._pickling import register_wrapper
    from ndshare._pool import ProcessPoolExecutor, TaskReport
    from ndshare._processes import freeze_support, options, shutdown, worker_id, worker_state
    from ndshare._queue import Queue, Stream
    from ndshare._transport import share
    from ndshare._workspace import Workspace
    from ndshare.default_context import (
        alloc,
        get_default_context,
        map,  # noqa: A004 - the word of the field
        set_default_context,
    )
    from ndshare.errors import ExitError, InitializerError, WorkerDiedError
    from ndshare.functors import (
        DataArrayFunctor,
        ExtraDataFunctor,
        Functor,
        NdarrayFunctor,
        SequenceFunctor,
    )
    from ndshare.integrations.pool import Pool

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "ClusterContext",
    "ClusterExecutor",
    "DataArrayFunctor",
    "ExitError",
    "ExtraDataFunctor",
    "Functor",
    "InheritedError",
    "InitializerError",
    "KeyLockError",
    "KeyTimeoutError",
    "LayoutError",
    "Lock",
    "MapContext",
    "MapReport",
    "NdarrayFunctor",
    "NdshareError",
    "NdshareWarning",
    "OwnerDiedError",
    "Pool",
    "ProcessContext",
    "ProcessPoolExecutor",
    "Queue",
    "RemoteError",
    "RepeatedCopyWarning",
    "SegmentError",
    "SegmentGoneError",
    "SequenceFunctor",
    "SerialContext",
    "SharedDict",
    "ShutDown",
    "SilentWriteWarning",
    "Stats",
    "Stream",
    "TaskKilledError",
    "TaskReport",
    "TaskTimeoutError",
    "ThreadContext",
    "TransportError",
    "UnsendableGlobalError",
    "WorkerDiedError",
    "WorkerError",
    "WorkerMemoryError",
    "Workspace",
    "WriterDiedError",
    "alloc",
    "array",
    "empty",
    "empty_like",
    "freeze_support",
    "full",
    "full_like",
    "get_default_context",
    "is_shared",
    "item_rng",
    "lock",
    "map",
    "ones",
    "ones_like",
    "options",
    "prune",
    "register_wrapper",
    "scratch",
    "set_default_context",
    "share",
    "shared_memory",
    "shutdown",
    "stats",
    "trim",
    "worker_id",
    "worker_state",
    "zeros",
    "zeros_like",
]

# Loaded when first asked for: workers, pickling and the standard library's executors take longer to import
# than everything else here.
__getattr__ = _system.later(
    __name__,
    {
        "_cluster": (
            "ClusterContext",
            "ClusterExecutor",
        ),
        "_dict": (
            "SharedDict",
            "prune",
        ),
        "_locks": (
            "Lock",
            "lock",
        ),
        "_map": (
            "MapContext",
            "MapReport",
            "ProcessContext",
            "SerialContext",
            "ThreadContext",
            "item_rng",
        ),
        "_pickling": ("register_wrapper",),
        "_pool": (
            "ProcessPoolExecutor",
            "TaskReport",
        ),
        "_processes": (
            "freeze_support",
            "options",
            "shutdown",
            "worker_id",
            "worker_state",
        ),
        "_queue": (
            "Queue",
            "Stream",
        ),
        "_transport": ("share",),
        "_workspace": ("Workspace",),
        "default_context": (
            "alloc",
            "get_default_context",
            "map",
            "set_default_context",
        ),
        "errors": (
            "ExitError",
            "InitializerError",
            "WorkerDiedError",
        ),
        "functors": (
            "DataArrayFunctor",
            "ExtraDataFunctor",
            "Functor",
            "NdarrayFunctor",
            "SequenceFunctor",
        ),
        "integrations.pool": ("Pool",),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# A child that multiprocessing has started anew, of a parent that has called `register`.
if hasattr(_sys.modules.get("multiprocessing"), "_ndshare_registered"):
    from ndshare.integrations import multiprocessing as _multiprocessing

    _multiprocessing.register_inherited()
