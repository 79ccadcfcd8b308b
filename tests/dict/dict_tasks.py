"""Processes that use a SharedDict, and die while they do."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import ndshare
from ndshare._dict import _store

KEYS = ("a", "b", "c")
N = 2000  # a copy takes long enough to be interrupted
LARGE = 40_000  # update functions make their result in the slot itself


def forked(function: Callable[[], Any]) -> int:
    """Run a function in a forked child, which ends with status 0 or, after a traceback, 1; return its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Wait for a child; return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def running(*functions: Callable[[], Any]) -> Iterator[list[int]]:
    """Have forked children run for the length of a block, then kill them."""
    pids = [forked(function) for function in functions]
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def is_locked(d: ndshare.SharedDict, key: Any) -> bool:
    """Tell whether somebody has the lock of a key, which this thread has not."""
    hold = _store.Hold(d._store, [list(d).index(key)])
    locked = hold.take(0) is not None
    hold.free()
    return locked


def accounts() -> dict[str, Any]:
    """Return arrays whose sum, element by element, is always 300, and a counter of single updates."""
    return {**dict.fromkeys(KEYS, np.full(N, 100.0)), "single": np.zeros(LARGE)}


def transfer(d: ndshare.SharedDict, rng: random.Random) -> None:
    """Move something from one account to another, as one store, in one of three ways."""
    amount = float(rng.randint(1, 9))
    giver, taker = rng.sample(KEYS, 2)
    how = rng.randrange(3)
    if how == 0:
        with d.locked(giver, taker) as (a, b):
            a -= amount
            b += amount
    elif how == 1:
        d.update({giver: -amount, taker: amount}, lambda new, old: old + new, atomic=True)
    else:
        with d.locked(*KEYS) as arrays:
            values = [array.copy() for array in arrays]
            for array, value in zip(arrays, values[1:] + values[:1], strict=True):
                array[:] = value


def check(d: ndshare.SharedDict) -> None:
    """No value is torn, and the sum of the accounts is what it always was."""
    values = d.read()
    for key, value in values.items():
        assert (value == value[0]).all(), f"{key} is torn: {np.unique(value)}"
    total = sum(values[key][0] for key in KEYS)
    assert total == 300, f"sum {total}"


def work(name: str, seed: int) -> None:
    """Transfer and update until killed."""
    rng = random.Random(seed)
    with ndshare.SharedDict.attach(name) as d:
        while True:
            transfer(d, rng)
            d.update({"single": 1}, lambda new, old: old + new, copy=rng.random() < 0.5)


def killed_at(name: str, steps: int, action: Callable[[ndshare.SharedDict], None]) -> None:
    """Do something once and be killed at the given step of it."""
    d = ndshare.SharedDict.attach(name)
    _store.kill_after(steps)
    action(d)
    _store.kill_after(-1)
    d.close()
