"""All workers of a pool at once: there before the first task."""

from __future__ import annotations

from ndshare._pool.futures import TaskFuture
from ndshare._pool.pool import Pool
from ndshare._system import _wire


def start_workers(pool: Pool) -> None:
    """Start all workers now; return when each of them has run its initializer.

    Raises
    ------
    InitializerError
        If that failed in one of them.
    WorkerDiedError
        If a worker ended.
    """
    probes = [TaskFuture(pool, start_worker, (), {}) for _ in range(pool.settings.max_workers)]
    _wire.shield()
    try:
        for number, probe in enumerate(probes):
            try:
                with pool.hub.lock:
                    worker = pool.roster.hire()
                    worker.sent -= 1  # what is asked of it here is no task of the user's
                    worker.sending = probe.dispatched = probe.start()
                    pool.pending += 1
            except BlockingIOError:  # no room for another process now: the queue tries again
                pool.submit_all(probes[number:])
                break
            try:
                pool.dispatch(worker, [probe])
            except BaseException:  # Ctrl-C while the initializer was pickled: the I/O thread sends what waits
                pool.hub.put_off(pool.pump)
                raise
    finally:
        _wire.unshield()
    for probe in probes:
        probe.result()
    with pool.hub.lock:
        pool.roster.seconds = None  # says nothing about the tasks to come


def start_worker() -> None:
    """What a worker is asked to do to see that it is there."""
