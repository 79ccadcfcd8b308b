"""How a pool ends: closed, abandoned or killed; its workers are given back after its last task."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from typing import TYPE_CHECKING

from ndshare._system import _wire
from ndshare.errors import WorkerDiedError

if TYPE_CHECKING:
    from ndshare._pool.pool import Pool


def shutdown(pool: Pool, *, wait: bool, cancel: bool) -> None:
    """Take no more tasks; end when those that were taken are finished.

    Page: docs/executor.md.
    """
    if pool.hub.pid != os.getpid():
        pool.closed = True
        return
    try:
        _wire.shield()
        try:
            _close(pool, cancel=cancel)
            if wait:
                pool.hub.drive(lambda: pool.over, None)
                pool.hub.wait(pool.ended, lambda: pool.over, None)
        finally:
            _wire.unshield()
    except KeyboardInterrupt:  # nobody wants the rest of the queue to be computed first
        pool.interrupt()
        _close(pool, cancel=True)
        raise


def _close(pool: Pool, *, cancel: bool) -> None:
    with pool.hub.lock:
        pool.closed = True
        waiting = list(pool.queue) if cancel else []
        sent = [task for worker in pool.workers for task in worker.inflight.values()] if cancel else []
    for task in waiting:
        if not task.cancel() and pool.withdraw(task):
            task.fail(concurrent.futures.CancelledError())  # it was on its way already
    for task in sent:
        if pool.withdraw(task):
            task.fail(concurrent.futures.CancelledError())
    pool.hub.ring()
    pool.when_empty()


def abandon(pool: Pool) -> None:
    """Let nobody wait: called by the garbage collector, so it takes no lock."""
    if pool.hub.pid == os.getpid() and not pool.over:
        pool.closed = True
        pool.hub.from_finalizer(pool.when_empty)


def kill(pool: Pool, number: int) -> None:
    """End all workers of this pool by a signal; nothing that waits is run any more."""
    with pool.hub.lock:
        pool.closed = True
        pool.killed = number
        for worker in pool.workers:
            worker.signal(number)
    drop_waiting(pool)
    pool.when_empty()


def drop_waiting(pool: Pool) -> None:
    """End what waits in the queue of a pool whose workers were killed, or came back to it since."""
    for task in list(pool.queue):
        if not task.cancel():  # it was sent to a worker, and taken back
            with pool.hub.lock, contextlib.suppress(ValueError):
                pool.queue.remove(task)
            pool.fail(task, WorkerDiedError(task.describe(), 0, None, pool.killed, 0))
    pool.hub.ring()


def _is_over(pool: Pool) -> bool:
    if not pool.closed or pool.pending or pool.over:
        return False
    # A thread may not have noticed yet that what it has just sent is done: the worker is still its own.
    return not any(worker.sending for worker in pool.workers)


def when_empty(pool: Pool) -> None:
    """After the last task of a closed pool: give the workers back."""
    if not _is_over(pool):
        return
    with pool.hub.lock:
        if not _is_over(pool):  # somebody else has done it
            return
        pool.crew.pools.discard(pool)
        for worker in list(pool.workers):
            pool.roster.dismiss(worker)
            pool.crew.release(worker)
    with pool.ended:
        pool.over = True
        pool.ended.notify_all()
    pool.hub.ring()
