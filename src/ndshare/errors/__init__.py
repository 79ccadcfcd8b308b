"""Every error and warning ndshare raises, as one tree.

::

    NdshareError
    ├── SegmentError (OSError)              shared memory could not be made or mapped
    │   └── SegmentGoneError                the memory a message names is not there any more
    ├── CapacityError (MemoryError)         asked / free / the limit that binds
    ├── TransportError (RuntimeError)           a message could not be rebuilt
    ├── LayoutError (ValueError)                a file is not a SharedDict, or is damaged
    ├── KeyLockError (RuntimeError)             locks of a SharedDict asked for in a way that could deadlock
    ├── KeyTimeoutError (TimeoutError)          a lock or value of a SharedDict did not come in time
    ├── OwnerDiedError (RuntimeError)           a process ended while it held a lock
    ├── UnsendableGlobalError (TypeError)       a global of __main__ cannot be pickled
    └── WorkerError (RuntimeError)
        ├── WorkerDiedError (BrokenProcessPool)     a process ended under a task
        ├── InitializerError (BrokenProcessPool)    an initializer failed
        ├── ExitError (SystemExit, BrokenProcessPool)   what rebuilds an argument or a result called exit
        ├── TaskTimeoutError (TimeoutError)         a task took longer than it may
        ├── WorkerMemoryError (MemoryError)         a worker had more memory than it may
        ├── TaskKilledError                         the caller has ended a running task
        ├── InheritedError                          an executor was used in a forked child
        └── RemoteError                             a task's exception could not be sent as it was

    NdshareWarning (UserWarning)
    ├── RepeatedCopyWarning     the same large array is copied again and again
    └── SilentWriteWarning      a kernel wrote to something that is not shared

Each class takes plain facts as positional arguments and builds its text in ``__str__``, so it
survives pickling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ndshare.errors.base import (
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
    readable_size,
)
from ndshare.errors.given import add_note, forget_origin, forget_traceback, set_cause

if TYPE_CHECKING:
    from ndshare.errors.broken import ExitError, InitializerError, WorkerDiedError, code_or_signal

__all__ = [
    "CapacityError",
    "ExitError",
    "InheritedError",
    "InitializerError",
    "KeyLockError",
    "KeyTimeoutError",
    "LayoutError",
    "NdshareError",
    "NdshareWarning",
    "OwnerDiedError",
    "RemoteError",
    "RepeatedCopyWarning",
    "SegmentError",
    "SegmentGoneError",
    "ShutDown",
    "SilentWriteWarning",
    "TaskKilledError",
    "TaskTimeoutError",
    "TransportError",
    "UnsendableGlobalError",
    "WorkerDiedError",
    "WorkerError",
    "WorkerMemoryError",
    "WriterDiedError",
    "add_note",
    "code_or_signal",
    "forget_origin",
    "forget_traceback",
    "readable_size",
    "set_cause",
]

# A name of this package is what users read in a traceback, and what pickles hold.
for _class in [
    value for value in globals().values() if getattr(value, "__module__", "") == "ndshare.errors.base"
]:
    _class.__module__ = __name__


def __getattr__(name: str) -> Any:
    # Their base class is in a module that takes longer to import than ndshare.
    if name in {"ExitError", "InitializerError", "WorkerDiedError", "code_or_signal"}:
        from ndshare.errors import broken

        return getattr(broken, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
