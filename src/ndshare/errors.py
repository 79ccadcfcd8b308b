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

class NdshareError(Exception):
    """Root of all errors that ndshare raises on its own account."""


class TransportError(NdshareError, RuntimeError):
    """An object could not be rebuilt from a message.

    Parameters
    ----------
    what : str
        What was refused.
    got : str
        What the message or this process had instead.
    remedy : str
        What to do.
    """

    def __init__(self, what: str, got: str, remedy: str) -> None:
        super().__init__(what, got, remedy)
        self.what = what
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.got}; {self.remedy}."


class UnsendableGlobalError(NdshareError, TypeError):
    """A global of ``__main__`` that a task uses cannot be pickled.

    Parameters
    ----------
    name : str
        Name of the global.
    type_name : str
        Its type.
    user : str
        Who uses it: a function of ``__main__``, or "the task".
    reason : str
        What pickling it said.
    """

    def __init__(self, name: str, type_name: str, user: str, reason: str) -> None:
        super().__init__(name, type_name, user, reason)
        self.name = name
        self.type_name = type_name
        self.user = user
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the global {self.name!r} ({self.type_name}) of __main__, which {self.user} uses, cannot be sent to "
            f"another process: {self.reason}. Make it inside the function or in an initializer, or pass what is "
            "needed of it as an argument."
        )
