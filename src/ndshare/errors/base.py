"""The classes of errors and warnings whose bases are builtins."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any


class NdshareError(Exception):
    """Root of all errors that ndshare raises on its own account.

    Page: docs/guarantees.md.
    """

    def __reduce__(self) -> str | tuple[Any, ...]:
        # Errors with an __init__ but no __reduce__ of their own are rebuilt without __init__ by tblib, which
        # Dask installs; for those that are a MemoryError as well that is refused.
        return super().__reduce__()


_REMEDIES = {
    errno.EMFILE: "too many open files in this process: raise the limit (ulimit -n) or drop arrays",
    errno.ENFILE: "too many open files on this machine: close some, or raise fs.file-max",
    errno.ENOMEM: "the kernel has no memory or no mappings left: drop arrays, call ndshare.trim(), or raise "
    "vm.max_map_count",
    errno.ENOSPC: "no memory left for shared pages: drop arrays or call ndshare.trim()",
    errno.EFBIG: "larger than files may be (ulimit -f): raise that limit",
    errno.EPERM: "not allowed",
    errno.ESTALE: "its owner has given it up",
}


def readable_size(nbytes: int) -> str:
    """Return a number of bytes with a unit."""
    value = float(nbytes)
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)):
        value, unit = value / 1000, larger
    return f"{value:.4g} {unit}"


class SegmentError(NdshareError, OSError):
    """The system refused to make, map or lend shared memory.

    Page: docs/arrays.md.

    Parameters
    ----------
    number : int
        The errno.
    doing : str
        What was refused.
    """

    def __init__(self, number: int, doing: str) -> None:
        super().__init__(number, doing)
        self.number = number
        self.doing = doing

    def __str__(self) -> str:
        name = errno.errorcode.get(self.number, str(self.number))
        remedy = _REMEDIES.get(self.number, "see errno(3)")
        return f"could not {self.doing}: {name}, {os.strerror(self.number)}; {remedy}"


class SegmentGoneError(SegmentError):
    """The memory that a message names is not there any more.

    Page: docs/arrays.md.
    """


class CapacityError(NdshareError, MemoryError):
    """A request for memory that cannot be met; nothing was taken.

    Page: docs/arrays.md.

    Parameters
    ----------
    asked : int
        Bytes that were asked for.
    available : int
        Bytes that could be had.
    limit : str
        The limit that binds.
    """

    def __init__(self, asked: int, available: int, limit: str) -> None:
        super().__init__(asked, available, limit)
        self.asked = asked
        self.available = available
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{readable_size(self.asked)} of shared memory were asked for ({self.asked} bytes), "
            f"{readable_size(self.available)} are free; the limit that binds is the {self.limit}. Drop "
            "arrays or results, call ndshare.trim(), work in smaller pieces, or raise that limit"
        )


class TransportError(NdshareError, RuntimeError):
    """An object could not be rebuilt from a message.

    Page: docs/executor.md.

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


class LayoutError(NdshareError, ValueError):
    """A file is not a SharedDict, or a damaged one; nothing of it was used.

    Page: docs/shared_dict.md.

    Parameters
    ----------
    file : str
        Path of the file.
    field : str
        What in it is wrong.
    got : str
        What is there.
    allowed : str
        What could be there.
    """

    def __init__(self, file: str, field: str, got: str, allowed: str) -> None:
        super().__init__(file, field, got, allowed)
        self.file = file
        self.field = field
        self.got = got
        self.allowed = allowed

    def __str__(self) -> str:
        return (
            f"{self.file} is refused: its {self.field} is {self.got}, and {self.allowed} is allowed. The "
            "file is foreign, truncated or damaged; remove it, or use another name or path"
        )


class KeyLockError(NdshareError, RuntimeError):
    """Keys of a SharedDict were to be locked in a way that could wait for ever.

    Page: docs/shared_dict.md.

    Parameters
    ----------
    wanted : str
        The keys that were asked for.
    held : str
        The keys that this thread has locked already.
    remedy : str
        What to do.
    """

    def __init__(self, wanted: str, held: str, remedy: str) -> None:
        super().__init__(wanted, held, remedy)
        self.wanted = wanted
        self.held = held
        self.remedy = remedy

    def __str__(self) -> str:
        return (
            f"key {self.wanted} cannot be locked while this thread has locked {self.held}: it might wait for "
            f"ever; {self.remedy}"
        )


class KeyTimeoutError(NdshareError, TimeoutError):
    """The lock of a key of a SharedDict, or a newer value of it, did not come in time.

    Page: docs/shared_dict.md.

    Parameters
    ----------
    what : str
        What was waited for.
    seconds : float
        How long.
    why : str
        Who has the lock, or what is there instead.
    """

    def __init__(self, what: str, seconds: float, why: str) -> None:
        super().__init__(what, seconds, why)
        self.what = what
        self.seconds = seconds
        self.why = why

    def __str__(self) -> str:
        return f"{self.what} did not come within {self.seconds:g} s: {self.why}; wait longer or try again"


class OwnerDiedError(NdshareError, RuntimeError):
    """A process died while it held a lock; what the lock protects may be half written.

    Page: docs/map.md.

    Parameters
    ----------
    pid : int
        The process that died, or whose thread ended; -1 if it is not known.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid > 0 else "a process"
        return (
            f"{who} ended while it held the lock, so that what the lock protects may be half written; nobody "
            "is given the lock until that is repaired: check and mend it within `with lock.repair():`"
        )


class UnsendableGlobalError(NdshareError, TypeError):
    """A global of ``__main__`` that a task uses cannot be pickled.

    Page: docs/executor.md.

    It is raised where a task does something with the global: a task that only names it runs.

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
            f"the global {self.name!r} ({self.type_name}) of __main__, which {self.user} uses, cannot be "
            f"sent to another process: {self.reason}. Make it inside the function or in an initializer, or "
            "pass what is needed of it as an argument."
        )


class WorkerError(NdshareError, RuntimeError):
    """Something went wrong with a worker process rather than with the task it ran.

    Page: docs/executor.md.
    """


class InheritedError(WorkerError):
    """An executor, or a future of one, was used in a forked child of the process that made it.

    Page: docs/executor.md.

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
            f"{self.what} belongs to process {self.owner_pid} and was inherited by process {self.pid} "
            "through a fork; its workers answer to their own process only. Make a new executor here."
        )


class TaskTimeoutError(WorkerError, TimeoutError):
    """A task took longer than it may; the worker that ran it was killed.

    Page: docs/executor.md.

    Parameters
    ----------
    task : str
        What was running.
    seconds : float
        How long it may take.
    pid : int
        Of the worker.
    attempts : int
        How often the task was tried.

    Notes
    -----
    Only this task fails. What it has written so far is in the shared arrays.
    """

    def __init__(self, task: str, seconds: float, pid: int, attempts: int = 1) -> None:
        super().__init__(task, seconds, pid, attempts)
        self.task = task
        self.seconds = seconds
        self.pid = pid
        self.attempts = attempts

    def __str__(self) -> str:
        tries = f", for the {self.attempts}. time" if self.attempts > 1 else ""
        return (
            f"{self.task} took longer than {self.seconds:g} s{tries}; its worker (pid {self.pid}) was "
            "killed, and what the task has written so far is in the shared arrays. Allow it more time, or "
            "let it do less at a time"
        )


class WorkerMemoryError(WorkerError, MemoryError):
    """A worker had more memory of its own than it may, and was killed; its task fails.

    Page: docs/executor.md.

    Parameters
    ----------
    task : str
        What was running.
    peak_bytes : int
        What the worker had of its own, shared arrays not counted.
    limit_bytes : int
        What it may have.
    pid : int
        Of the worker.
    attempts : int
        How often the task was tried.

    Notes
    -----
    Only this task fails. What it has written so far is in the shared arrays.
    """

    def __init__(self, task: str, peak_bytes: int, limit_bytes: int, pid: int, attempts: int = 1) -> None:
        super().__init__(task, peak_bytes, limit_bytes, pid, attempts)
        self.task = task
        self.peak_bytes = peak_bytes
        self.limit_bytes = limit_bytes
        self.pid = pid
        self.attempts = attempts

    def __str__(self) -> str:
        return (
            f"{self.task} had its worker (pid {self.pid}) killed: with {readable_size(self.peak_bytes)} of "
            "its own, shared arrays not counted, it was over its memory_limit of "
            f"{readable_size(self.limit_bytes)}. Let the task hold less at a time, share its inputs, or "
            "raise the limit"
        )


class TaskKilledError(WorkerError):
    """The caller has ended a running task, and its worker with it.

    Page: docs/executor.md.

    Parameters
    ----------
    task : str
        What was running.
    pid : int
        Of the worker.
    """

    def __init__(self, task: str, pid: int) -> None:
        super().__init__(task, pid)
        self.task = task
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"{self.task} was ended by kill() of its future, and its worker (pid {self.pid}) with it; what "
            "it has written so far is in the shared arrays"
        )


class RemoteError(WorkerError):
    """Stands for an exception of a task that could not be pickled, or not be rebuilt from its pickle.

    Page: docs/executor.md.

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
    """Root of all warnings that ndshare gives.

    Page: docs/guarantees.md.
    """


class RepeatedCopyWarning(NdshareWarning):
    """The same large ordinary array was sent to workers several times, a copy each time.

    Page: docs/executor.md.
    """


class SilentWriteWarning(NdshareWarning):
    """A kernel wrote to an object that is not shared, so that what it wrote is lost.

    Page: docs/map.md.

    Parameters
    ----------
    name : str
        Name of the captured variable, such as ``results['a']``.
    what : str
        What it is: "list", shape and dtype of an array, or "random generator" and which.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name, what)
        self.name = name
        self.what = what

    def __str__(self) -> str:
        if self.what.startswith("random generator"):
            return (
                f"numbers were drawn from {self.name} ({self.what}), of which each worker has a copy of its "
                "own: all workers draw the same numbers, and the caller's generator does not move on; use "
                "ndshare.item_rng() and map(..., seed=0), or give each task one of its own: rng.spawn(n)."
            )
        if self.what.startswith("array"):
            remedy = (
                "make it with ndshare.alloc(), or put ndshare.share() around it, and all workers write to "
                "the same memory; if it is only a place to work in, say so with ndshare.scratch()"
            )
        else:
            remedy = (
                "write results into an array made by ndshare.alloc(), each item at its own index, and build "
                "other objects of them after the map"
            )
        return (
            f"the kernel wrote to {self.name} ({self.what}), which is not shared: each worker has a copy "
            f"of its own, and what was written there is lost; {remedy}."
        )


if sys.version_info >= (3, 13):
    from queue import ShutDown as ShutDown
else:

    class ShutDown(Exception):  # noqa: N818 - the name of the standard library from 3.13 on
        """Raised by a queue that was shut down; equals `queue.ShutDown` of Python 3.13."""


class WriterDiedError(NdshareError, ShutDown):
    """The process that wrote to a stream is gone without having closed it; what it wrote last was taken.

    Page: docs/queue.md.

    Parameters
    ----------
    pid : int
        The process that wrote.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"process {self.pid}, which wrote to the stream, is gone without having closed it, and nothing "
            "newer will come from it; start another writer and call get() again, or stop reading"
        )
