"""What the tests of the joblib backend run in workers."""

from __future__ import annotations

import os
import time
from typing import Any

import joblib
import numpy as np

import ndshare

seen = 0  # set by `remember`


def square(x: Any) -> Any:
    """Return the square."""
    return x * x


def slow_square(x: Any, seconds: float) -> Any:
    """Return the square after a while."""
    time.sleep(seconds)
    return x * x


def fail_at(x: int, bad: int) -> int:
    """Raise for one of the arguments."""
    if x == bad:
        raise ValueError(f"item {x}")
    return x


def use_privately(x: np.ndarray, i: int) -> tuple[float, bool, bool, bool]:
    """Write into an argument; say what it was before, and of what kind it is."""
    before = float(x[0])
    x[0] = i
    return before, x.flags.writeable, x.flags.owndata, ndshare.is_shared(x)


def add_to(x: np.ndarray, i: int) -> None:
    """Write into a shared argument."""
    x[i] += i


def note_run(runs: np.ndarray, i: int) -> None:
    """Note in a shared array that the call was made, and take a while."""
    runs[i] += 1
    time.sleep(0.3)


def filled(n: int, value: float) -> np.ndarray:
    """Return a large result."""
    return np.full(n, value)


def die_at(x: int, bad: int) -> int:
    """Kill the worker at one of the arguments."""
    if x == bad:
        os.kill(os.getpid(), 9)
    return x


def nested(n: int) -> tuple[str, list[int]]:
    """Run a parallel call inside a task."""
    inner = joblib.Parallel(n_jobs=2)
    return type(inner._backend).__name__, inner(joblib.delayed(square)(i) for i in range(n))


def nested_on_ndshare(n: int) -> list[int]:
    """Run a parallel call on ndshare inside a task."""
    import ndshare.integrations.joblib

    ndshare.integrations.joblib.register()
    with joblib.parallel_config("ndshare", n_jobs=2):
        return joblib.Parallel()(joblib.delayed(square)(i) for i in range(n))


def threads() -> list[int]:
    """Return how many threads the pools of this process use."""
    import threadpoolctl

    np.ones((2, 2)) @ np.ones((2, 2))
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


def remember(value: int) -> None:
    """Keep something in the worker."""
    global seen
    seen = value


def recall() -> int:
    """Return what was kept."""
    return seen


def temporary_files() -> list[str]:
    """List what joblib keeps memory-mapped files in."""
    return [name for name in os.listdir("/dev/shm") if name.startswith("joblib")]
