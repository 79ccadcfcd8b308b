"""Tasks that fork inside a worker."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import ndshare

_LEFT: dict[str, Any] = {}


def _child(run: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def fork_and_return(how: str, plain: np.ndarray, shared: np.ndarray) -> Any:
    """Fork a child that writes everywhere; return two arguments, one of them changed, and a result."""
    made = plain * 2
    second = plain.copy()
    _LEFT[how] = plain[:1].copy()

    def run() -> None:
        assert np.array_equal(made, plain * 2)
        assert np.array_equal(shared, plain)
        plain[:] = -1
        made[:] = -2
        second[:] = -3
        shared[-1] = -5

    if how == "os.fork":
        assert os.waitpid(_child(run), 0)[1] == 0
    elif how == "multiprocessing":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = multiprocessing.get_context("fork").Process(target=run)
            process.start()
        process.join()
        assert process.exitcode == 0
    else:
        subprocess.run(["true"], check=True, close_fds=False)
    second += 1
    return plain, second, shared, made


def after(how: str) -> str:
    """Look at what an earlier task of this worker kept."""
    return "as before" if _LEFT[how][0] == 0 else "changed"


def leave_child(plain: np.ndarray, shared: np.ndarray, report: np.ndarray) -> int:
    """Leave a child behind that looks at its arrays when it is told to."""
    made = plain + 1

    def run() -> None:
        deadline = time.monotonic() + 30
        while not report[0] and time.monotonic() < deadline:
            time.sleep(0.005)
        expected = np.arange(plain.size)
        assert np.array_equal(plain, expected)
        assert np.array_equal(made, expected + 1)
        assert np.array_equal(shared, expected)
        report[1] = 1

    return _child(run)


def reap(pid: int) -> int:
    """Wait for the child that an earlier task left."""
    return os.waitpid(pid, 0)[1]


def child_with_executor(shared: np.ndarray) -> int:
    """Fork; the child has an executor whose worker writes to the shared array."""

    def run() -> None:
        with ndshare.ProcessPoolExecutor(1) as executor:
            executor.submit(_add_one, shared).result()
        ndshare.shutdown()

    return os.waitpid(_child(run), 0)[1]


def _add_one(a: np.ndarray) -> None:
    a += 1
