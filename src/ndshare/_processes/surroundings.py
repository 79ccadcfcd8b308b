"""What surrounds the tasks of a worker: directory, environment, threads, warnings, logging."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._system import set_inside_worker

#: Read by numerical libraries when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class Surroundings:
    """Where the tasks of this worker run.

    Parameters
    ----------
    overlay : dict
        Variables of the environment that this worker has, whatever its caller has.
    send : callable
        Sends a pickled log record to the caller.
    """

    def __init__(self, overlay: dict[str, str], send: Callable[[bytes], bool]) -> None:
        self._overlay = overlay
        self._send = send
        self._threads = 1
        self._forwarder: Any = None  # of log records

    def apply(self, state: dict[str, Any], *, fresh: bool) -> None:
        """Bring them to what the caller has said; `fresh` if tasks are another executor's from now on."""
        if fresh:
            np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
            self._overlay = state["overlay"]
        sys.path[:] = state["path"]
        importlib.invalidate_caches()
        if state["cwd"] is not None:
            with contextlib.suppress(OSError):
                os.chdir(state["cwd"])
        self._set_environment(state["environ"] | self._overlay, state["threads"], state["threads_asked"])
        warnings.filters[:] = state["filters"]  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        if state["logging"] is not None or self._forwarder is not None:
            self._set_logging(state["logging"])

    def _set_environment(self, wanted: dict[str, str], threads: int, asked: bool) -> None:
        for name in THREAD_VARIABLES:
            if asked or name not in wanted:
                wanted[name] = str(threads)
        for name in os.environ.keys() - wanted.keys():
            del os.environ[name]
        for name, value in wanted.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        set_inside_worker(threads)
        if threads != self._threads:
            import threadpoolctl

            threadpoolctl.threadpool_limits(threads)
            self._threads = threads

    def _set_logging(self, wanted: Any) -> None:
        from ndshare._processes import records as _records

        if self._forwarder is None:
            self._forwarder = _records.Forwarder(self._send, _current_item)
        self._forwarder.apply(wanted)


def _current_item() -> int | None:
    randomness = sys.modules.get("ndshare._map.randomness")  # there if a map ever ran here
    return None if randomness is None else randomness.current_item()
