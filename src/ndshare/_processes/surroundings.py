"""What surrounds a task: the caller's process-wide settings, and how a worker comes to have them.

::

    caller   CallerState.refresh() ──► Snapshot ── STATE ──►  worker   Surroundings.apply()

Snapshots are compared with the last one at each dispatch, so this has to cost microseconds.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import itertools
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ndshare._processes import records
from ndshare._system import _wire, set_inside_worker

#: Read by numerical libraries when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# ---------------------------------------------------------------------- the caller's side


class Snapshot(NamedTuple):
    """The settings at one time; equal versions, equal settings."""

    version: int
    seen: tuple[Any, ...]
    content: dict[str, Any]

    def message(self, **extra: Any) -> bytes:
        """Pickle it for a worker."""
        return pickle.dumps(self.content | extra, protocol=5)


_aliases: dict[str, str] = {}


def add_aliases(names: dict[str, str]) -> None:
    """Have the workers of this process import modules under other names, too.

    Parameters
    ----------
    names : dict of str to str
        What code in workers says, and the module that it gets.
    """
    _aliases.update(names)


class CallerState:
    """The caller's process-wide settings, with a version that changes when they do.

    Several threads may ask at once: a snapshot is published whole, and none is ever changed.
    """

    def __init__(self) -> None:
        self._versions = itertools.count(1)
        self._last: Snapshot | None = None

    def refresh(self) -> Snapshot:
        """Look whether anything changed, and return the snapshot of now."""
        here = _wire.here()
        environ = os.environ._data  # type: ignore[attr-defined]  # bytes: a copy of os.environ takes 30 µs
        last = self._last
        if last is not None:
            seen = last.seen
            if (
                seen[0] == here
                and seen[1] == sys.path
                and seen[2] == environ
                and seen[3] == warnings.filters
                and seen[4] == bool(logging.root.handlers)
                and seen[5] == len(_aliases)
                and records.is_marked()
            ):
                return last
        self._last = new = self._look(here, environ)
        return new

    def _look(self, here: Any, environ: dict[bytes, bytes]) -> Snapshot:
        records.mark()  # before looking: who sets a level meanwhile removes it
        handled = bool(logging.root.handlers)
        seen = (here, list(sys.path), dict(environ), list(warnings.filters), handled, len(_aliases))
        try:
            cwd = os.getcwd()
        except FileNotFoundError:  # somebody removed it
            cwd = None
        base = cwd or "/"
        content = {
            "cwd": cwd,
            "path": [os.path.join(base, p) for p in seen[1] if isinstance(p, str)],
            "environ": {os.fsdecode(name): os.fsdecode(value) for name, value in seen[2].items()},
            "aliases": dict(_aliases),
            "logging": records.settings(),
            "filters": [f for f in seen[3] if f[2].__module__ == "builtins" or _importable(f)],
        }
        return Snapshot(next(self._versions), seen, content)


def _importable(entry: tuple[Any, ...]) -> bool:
    """Whether a worker can rebuild this warning filter: its category may be anybody's class."""
    if entry[2].__module__ == "__main__" or entry[2].__module__.startswith(("_pytest", "pytest")):
        return False
    try:
        pickle.dumps(entry)
    except Exception:
        return False
    return True


# ---------------------------------------------------------------------- the worker's side


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
        self._threads = 1
        self._forwarder = records.Forwarder(send)

    def apply(self, state: dict[str, Any], *, fresh: bool) -> None:
        """Bring them to what the caller has said; `fresh` if tasks are another executor's from now on."""
        if fresh:
            np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
            self._overlay = state["overlay"]
        _learn_aliases(state["aliases"])
        sys.path[:] = state["path"]
        importlib.invalidate_caches()
        if state["cwd"] is not None:
            with contextlib.suppress(OSError):
                os.chdir(state["cwd"])
        self._set_environment(state["environ"] | self._overlay, state["threads"], state["threads_asked"])
        warnings.filters[:] = state["filters"]  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        self._forwarder.apply(state["logging"])

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


class _Aliases:
    """Finds modules under other names, before anything else does; imports them when they are asked for."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """See `importlib.abc.MetaPathFinder`."""
        return importlib.machinery.ModuleSpec(name, self) if name in self.names else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        """See `importlib.abc.Loader`; the module keeps the spec under which it was made."""
        module = importlib.import_module(self.names[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        """See `importlib.abc.Loader`; it was executed under its own name."""
        module.__spec__ = module.__spec__.loader_state


_finder = _Aliases()


def _learn_aliases(names: dict[str, str]) -> None:
    if names == _finder.names:
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name in names.keys() - _finder.names.keys():
        sys.modules.pop(name, None)  # of an earlier task: what it has imported stays as it is
    _finder.names = names
