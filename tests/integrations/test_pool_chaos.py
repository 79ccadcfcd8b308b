"""Workers are killed again and again: results are all there, or an error says why; nothing hangs."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ndshare

pytestmark = pytest.mark.chaos

_ROUND_S = 3.0


def _square(n: int) -> int:
    time.sleep(0.0005 if n % 5 else 0.003)
    return n * n


@contextlib.contextmanager
def _killing(pids: Callable[[], list[int]], rng: random.Random) -> Iterator[None]:
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05 + 0.25 * rng.random()):
            with contextlib.suppress(ProcessLookupError, ndshare.WorkerError, ValueError, RuntimeError):
                found = pids()
                if found:
                    os.kill(rng.choice(found), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _call_pool(pool: ndshare.Pool, n: int, rng: random.Random) -> list[int]:
    call = rng.choice(["map", "imap", "imap_unordered", "starmap_async"])
    if call == "map":
        return pool.map(_square, range(n))
    if call == "starmap_async":
        found: list[int] = pool.starmap_async(_square, ((k,) for k in range(n))).get()
        return found
    results = getattr(pool, call)(_square, iter(range(n)), rng.choice([1, 5]))
    return sorted(results)


def _call_executor(executor: ndshare.ProcessPoolExecutor, n: int, rng: random.Random) -> list[int]:
    chunksize: Any = rng.choice([1, 7, "auto"])
    buffersize = rng.choice([None, 3, 50])
    if rng.random() < 0.5:
        return list(executor.map(_square, range(n), chunksize=chunksize, buffersize=buffersize))
    return sorted(executor.imap_unordered(_square, range(n), chunksize=chunksize, buffersize=buffersize))


def test_pools_and_executors_whose_workers_are_killed(chaos_rng: random.Random, chaos_rounds: int) -> None:
    """With tries enough every result is there."""
    end = time.monotonic() + _ROUND_S * chaos_rounds
    while time.monotonic() < end:
        n = chaos_rng.randrange(1, 300)
        retries = chaos_rng.choice([0, 200])
        try:
            if chaos_rng.random() < 0.5:
                with ndshare.ProcessPoolExecutor(2, retries=retries) as executor:
                    with _killing(lambda: list(executor._processes), chaos_rng):
                        found = _call_executor(executor, n, chaos_rng)
            else:
                with ndshare.Pool(2, retries=retries) as pool:
                    pids = lambda: [worker.pid for worker in pool._pool]  # noqa: E731
                    with _killing(pids, chaos_rng):
                        found = _call_pool(pool, n, chaos_rng)
                pool.join()
                assert not pool._cache
        except ndshare.WorkerDiedError:
            assert not retries
        else:
            assert found == [k * k for k in range(n)]
