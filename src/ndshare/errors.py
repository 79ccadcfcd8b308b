"""Every error and warning ndshare raises, as one tree.

::

    NdshareError
    └── WorkerError (RuntimeError)
        ├── WorkerDiedError (BrokenProcessPool)     a process ended under a task
        ├── InitializerError (BrokenProcessPool)    an initializer failed
        ├── InheritedError                          an executor was used in a forked child
        └── RemoteError                             a task's exception could not be sent as it was

    NdshareWarning (UserWarning)
    └── RepeatedCopyWarning     the same large array is copied again and again

Each class takes plain facts as positional arguments and builds its text in ``__str__``, so it
survives pickling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ndshare._pool_errors import InitializerError as InitializerError
    from ndshare._pool_errors import WorkerDiedError as WorkerDiedError


class NdshareError(Exception):
    """Root of all errors that ndshare raises on its own account."""


class WorkerError(NdshareError, RuntimeError):
    """Something went wrong with a worker process rather than with the task it ran."""


class InheritedError(WorkerError):
    """An executor, or a future of one, was used in a forked child of the process that made it.

    Parameters
    ----------
    what : str
        What was used.
    owner_pid : int
        The process it belongs to.
    pid : int
        The process that used it.
    """

    def __init__(self, what: str, owner_pid: int, pid: int) -> None:
        super().__init__(what, owner_pid, pid)
        self.what = what
        self.owner_pid = owner_pid
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"{self.what} belongs to process {self.owner_pid} and was inherited by process {self.pid} through a "
            "fork; its workers answer to their own process only. Make a new executor in this process."
        )


class RemoteError(WorkerError):
    """Stands for an exception of a task that could not be pickled, or not be rebuilt from its pickle.

    Parameters
    ----------
    type_name : str
        Qualified name of the exception's class.
    text : str
        What ``str(exception)`` gave in the worker.
    reason : str
        Why the exception itself could not be sent.
    """

    def __init__(self, type_name: str, text: str, reason: str) -> None:
        super().__init__(type_name, text, reason)
        self.type_name = type_name
        self.text = text
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text} (the exception itself could not be sent: {self.reason})"


class NdshareWarning(UserWarning):
    """Root of all warnings that ndshare gives."""


class RepeatedCopyWarning(NdshareWarning):
    """The same large ordinary array was sent to workers several times, a copy each time."""


def __getattr__(name: str) -> Any:
    # These two derive from a class whose module takes longer to import than ndshare.
    if name in {"WorkerDiedError", "InitializerError"}:
        from ndshare import _pool_errors

        return getattr(_pool_errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
