"""What the tests of the joblib backend run in workers."""

from __future__ import annotations

import dataclasses
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


class FinickyError(Exception):
    """Cannot be made from its message."""

    def __init__(self, a: int, b: int, *, c: int) -> None:
        super().__init__(f"{a} {b} {c}")
        self.a, self.b, self.c = a, b, c

    def __reduce__(self) -> Any:
        return _finicky, (self.a, self.b, self.c)


def _finicky(a: int, b: int, c: int) -> FinickyError:
    return FinickyError(a, b, c=c)


ERRORS = {error.__name__: error for error in (ZeroDivisionError, KeyboardInterrupt, FinickyError)}


class Unpicklable:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not this one")


def raise_at(x: int, bad: int, kind: str) -> int:
    """Raise an error of the given kind for one of the arguments."""
    if x == bad:
        raise FinickyError(1, 2, c=3) if kind == "FinickyError" else ERRORS[kind]
    return x


def inner_failing(i: int) -> None:
    """Fail inside of a parallel call."""
    joblib.Parallel(n_jobs=2)(joblib.delayed(fail_at)(j, 3) for j in range(5))


def outer_failing(i: int) -> None:
    """Fail inside of a parallel call inside of a parallel call."""
    joblib.Parallel(n_jobs=2)(joblib.delayed(inner_failing)(j) for j in range(5))


def note(log: ndshare.Queue, i: int) -> None:
    """Say that a task has run."""
    log.put(i)


def levels(limit: int) -> list[tuple[str, int]]:
    """Return backend and nesting level of calls inside of calls."""
    with joblib.Parallel(n_jobs=2) as parallel:
        here = [(type(parallel._backend).__name__, parallel._backend.nesting_level)]
        return here + (parallel([joblib.delayed(levels)(limit - 1)])[0] if limit else [])


def level_of(name: str) -> int:
    """Return the nesting level of a backend that is chosen here."""
    if name == "ndshare":
        import ndshare.integrations.joblib

        ndshare.integrations.joblib.register()
    with joblib.parallel_config(name) as chosen:
        return int(chosen["backend"].nesting_level)


def nested_with(name: str, i: int) -> list[int]:
    """Run a parallel call on the named backend."""
    import ndshare.integrations.joblib

    ndshare.integrations.joblib.register()
    return joblib.Parallel(n_jobs=2, backend=name)(joblib.delayed(square)(i + k) for k in range(2))


def active() -> tuple[str, int]:
    """Return backend and number of jobs of a call here."""
    parallel = joblib.Parallel()
    return type(parallel._backend).__name__, parallel._effective_n_jobs()


def nested_pids() -> tuple[str, int, list[int]]:
    """Return backend and number of jobs of a call here, and who runs two jobs."""
    return *active(), joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(2))


def recurse() -> Any:
    """Make parallel calls without end."""
    return joblib.Parallel()(joblib.delayed(recurse)() for _ in range(2))


def byte_order(x: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the byte order of an argument, and the argument."""
    return x.dtype.byteorder, x


def product(a: np.ndarray) -> np.ndarray:
    """Return the matrix product with itself."""
    return a @ a.T


@dataclasses.dataclass(frozen=True)
class Refused(Exception):
    """An exception of which nothing can be set."""

    code: int


def refuse(code: int) -> None:
    """Raise one."""
    raise Refused(code)
