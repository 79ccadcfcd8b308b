"""The self-test: a task, a map, a queue, a dict, a kill, as a program of its own.

It prints a line of JSON per step: its name, the seconds it took, and what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_WORKERS = 2
_SIZE = 250_000
_KEY = "values"


def _total(values: Any) -> float:
    values[0] = -1.0  # the caller sees it
    return float(values.sum())


def _task(executor: Any) -> None:
    import ndshare

    shared, ordinary = ndshare.ones(_SIZE), np.ones(_SIZE)
    assert executor.submit(_total, shared).result() == executor.submit(_total, ordinary).result() == _SIZE - 2
    assert shared[0] == -1, "what a worker writes into a shared array is not seen"
    assert ordinary[0] == 1, "what a worker writes into its own copy is seen"
    result = executor.submit(np.arange, 1e6).result()
    assert result[-1] == 999_999, "a result has arrived wrong"


def _map(_executor: Any) -> None:
    import ndshare

    with_squares = ndshare.alloc(1000)

    def kernel(_worker: int, index: int, value: float) -> None:
        with_squares[index] = value**2

    report = ndshare.ProcessContext(_WORKERS).map(kernel, np.arange(1000.0))
    assert report.done.all(), "a map has not done all of its items"
    assert with_squares[-1] == 999.0**2, "a map has written something wrong"


def _put(queue: Any, count: int) -> None:
    for number in range(count):
        queue.put(np.full(_SIZE, number))


def _queue(executor: Any) -> None:
    import ndshare

    with contextlib.closing(ndshare.Queue(2)) as queue:
        sent = executor.submit(_put, queue, 5)
        assert [int(queue.get(timeout=10)[-1]) for _ in range(5)] == list(range(5)), "messages out of order"
        sent.result()


def _add(name: str) -> None:
    import ndshare

    with ndshare.SharedDict.attach(name) as shared:
        shared.update({_KEY: 1.0}, lambda one, values: values + one)


def _dict(executor: Any) -> None:
    import ndshare

    with ndshare.SharedDict({_KEY: np.zeros(1000)}) as shared:
        for _ in executor.map(_add, [shared.name] * 4):
            pass
        assert (shared[_KEY] == 4).all(), "an update was lost"


def _kill(executor: Any) -> None:
    import ndshare

    victim = executor.submit(_die)
    try:
        victim.result()
    except ndshare.WorkerDiedError:
        pass
    else:
        raise AssertionError("a task has survived its worker")
    assert executor.submit(abs, -1).result() == 1, "the pool did not go on after the death of a worker"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


STEPS: dict[str, Callable[[Any], None]] = {
    "task": _task,
    "map": _map,
    "queue": _queue,
    "dict": _dict,
    "kill": _kill,
}


def main() -> int:
    """Run all steps; return the exit status."""
    import ndshare

    failed = False
    with ndshare.ProcessPoolExecutor(_WORKERS) as executor:
        for name, step in STEPS.items():
            began, why = time.perf_counter(), ""
            print(json.dumps({"step": name}), flush=True)
            try:
                step(executor)
            except Exception as error:  # whatever it is, it is to be told
                why, failed = f"{type(error).__name__}: {error}", True
            line = {"step": name, "seconds": time.perf_counter() - began, "why": why}
            print(json.dumps(line), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
