"""Every error and warning ndshare raises, as one tree.

::

    NdshareError
    ├── SegmentError (OSError)              shared memory could not be made or mapped
    │   └── SegmentGoneError                the memory a message names no longer exists
    ├── CapacityError (MemoryError)         asked / free / the limit that binds
    ├── TransportError (RuntimeError)       an object could not be sent or rebuilt
    └── WorkerError (RuntimeError)
        ├── WorkerDiedError (BrokenProcessPool)     its process ended under a task
        ├── InitializerError (BrokenProcessPool)    its initializer failed
        └── InheritedError                          used in a forked child

    NdshareWarning (UserWarning)
    └── RepeatedCopyWarning     the same large array is copied again and again

Each class takes plain facts as positional arguments and builds its text in ``__str__``, so it
survives pickling. `WorkerDiedError` and `InitializerError` derive from
`concurrent.futures.process.BrokenProcessPool`; that module is slow to import, so they live in
`ndshare.executor_errors`.
"""

from __future__ import annotations
