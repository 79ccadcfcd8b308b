"""A lock between threads and processes, freed by the kernel when its holder dies.

::

    process A                       shared memory                     process B
    lock = ndshare.lock()  ──▶  robust mutex, holder, died  ◀──  the same lock, sent by reference

It is a robust, process-shared mutex in a small shared array, and travels as that array does.

Guarantees
----------
* One holder at a time, among all threads of all processes that have the lock, forked children included.
* A holder that dies, by ``kill -9`` too, does not hold it any more: the next one gets it.
* Waiting needs no processor and no GIL, and Ctrl-C ends it.

Not guaranteed
--------------
* Order: who waits longest is not first.
* What the lock protects may be half written after a death; `lock` says how to hear of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from ndshare import _arrays
from ndshare._locks import _lock
from ndshare._pickling import register_reducer
from ndshare.errors import OwnerDiedError

__all__ = ["Lock", "leaving_machine", "lock", "locks_refused"]

_lock.configure(OwnerDiedError)


class Lock(_lock.Mutex):
    """A lock that works between threads and processes; made by `lock`.

    Page: docs/map.md.

    Methods and context manager are those of `threading.Lock`: ``acquire(blocking=True, timeout=-1)``,
    ``release()``, ``locked()``. It is not reentrant, and only the thread that acquired it may release it.

    Parameters
    ----------
    memory : numpy.ndarray
        Shared memory in which there is a lock already.
    report_death : bool
        Whether `OwnerDiedError` is raised after a holder died, until somebody has repaired the damage.

    See Also
    --------
    lock : makes one.
    """

    __slots__ = ("_memory", "report_death")

    def __init__(self, memory: np.ndarray[Any, Any], report_death: bool = False) -> None:
        self._memory = memory
        self.report_death = report_death

    @contextlib.contextmanager
    def repair(self) -> Iterator[bool]:
        """Hold the lock although a holder died, to put in order what it protects.

        Yields
        ------
        bool
            Whether there is something to repair: False if another process has done it meanwhile.

        Notes
        -----
        Left normally, the damage counts as repaired and nobody hears of it any more. Left by an
        exception, or by the death of the repairer, it does not.
        """
        damaged = self._acquire_damaged()
        try:
            yield damaged
            self._mark_repaired()
        finally:
            self.release()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a Lock cannot be pickled or copied: the copy would be another lock. It travels through ndshare "
            "only (map, Workspace, ProcessPoolExecutor) and never to another machine; pass it to a kernel or "
            "task, or let a forked child inherit it"
        )

    def __repr__(self) -> str:
        holder = self._holder
        return f"<ndshare.Lock {f'held by process {holder}' if holder else 'free'}>"


def lock(*, report_death: bool = False) -> Lock:
    """Make a lock that works between threads, workers and forked children.

    Page: docs/map.md.

    Parameters
    ----------
    report_death : bool
        After a holder died with the lock in its hands, what it protects may be half written. By default
        the next one gets the lock all the same. With True, `OwnerDiedError` is raised to everybody who
        asks for it, and nobody gets it, until somebody has repaired the damage within
        ``with lock.repair():``.

    Returns
    -------
    Lock
        With the methods of `threading.Lock`.

    Raises
    ------
    CapacityError
        If there is no shared memory for it (128 bytes).

    Notes
    -----
    To take and release it costs some 0.3 µs when it is free, as with `threading.Lock`. A thread that asks
    for a lock it holds gets a RuntimeError instead of waiting for ever. A child that is forked while its
    parent holds the lock does not hold it. A thread that ends holding it counts as a holder that died.

    Examples
    --------
    >>> import ndshare
    >>> total, lock = ndshare.zeros(3), ndshare.lock()
    >>> with lock:
    ...     total += 1
    """
    memory = _arrays.zeros(_lock.NBYTES, np.uint8)
    _lock.make(memory.data)
    return Lock(memory, report_death)


class _Refusal(threading.local):
    why = ""


_refusal = _Refusal()


@contextlib.contextmanager
def locks_refused(why: str) -> Iterator[None]:
    """Refuse to pickle locks in this thread, where what is pickled would be another lock."""
    _refusal.why = why
    try:
        yield
    finally:
        _refusal.why = ""


def leaving_machine() -> contextlib.AbstractContextManager[None]:
    """Refuse to pickle locks in this thread: what is pickled goes to other machines."""
    return locks_refused(
        "ndshare.lock() does not span machines, so that a ClusterContext refuses a kernel that uses one; "
        "give each worker its own row instead (alloc(per_worker=True)) and combine them with reduce"
    )


def _reduce_lock(lock: Lock) -> tuple[Any, ...]:
    """Return how ndshare sends a lock: by reference, as its memory."""
    if _refusal.why:
        raise TypeError(_refusal.why)
    return Lock, (lock._memory, lock.report_death)


register_reducer(Lock, _reduce_lock)
