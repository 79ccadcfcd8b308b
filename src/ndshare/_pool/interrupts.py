"""What Ctrl-C does to a pool: what runs is interrupted, what nobody will hear of is dropped."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from ndshare._pool.tasks import Task
from ndshare._processes import Worker
from ndshare._system import _wire

if TYPE_CHECKING:
    from ndshare._pool.pool import Pool

#: A worker that does not react to Ctrl-C within this time is killed.
_INTERRUPT_S = 0.6


def drop(pool: Pool, unwanted: Iterable[Task]) -> None:
    """Drop tasks that nobody will hear of; what waited behind them is sent by the I/O thread."""
    for task in unwanted:
        pool.withdraw(task)
    pool.hub.put_off(pool.pump)


def interrupt(pool: Pool, only: Collection[Task] | None = None) -> None:
    """Ctrl-C: interrupt what is running, or some of it; a worker that does not react is killed."""
    if pool.hub.pid != os.getpid():
        return
    _wire.shield()
    try:
        pool.interrupted = pool.interrupted or only is None
        with pool.hub.lock:
            first = [(w, *next(iter(w.inflight.items()))) for w in pool.workers if w.inflight]
            running = [(w, seq) for w, seq, task in first if only is None or task in only]
        for worker, seq in running:
            worker.interrupt(seq)
        if running:
            pool.hub.later(_INTERRUPT_S, functools.partial(_insist, pool, running))
    finally:
        _wire.unshield()


def _insist(pool: Pool, running: list[tuple[Worker, int]]) -> None:
    """Kill the workers that are still at the task they were interrupted in, or in their initializer.

    If the pool is being closed since, nobody wants what they have begun in the meantime either.
    """
    with pool.hub.lock:
        unwanted = pool.closed and pool.interrupted
        for worker, seq in running:
            if seq in worker.inflight or (unwanted and worker.inflight):
                worker.leaving = True  # it gets nothing more, should it be done when the signal comes
                worker.signal(signal.SIGKILL)
