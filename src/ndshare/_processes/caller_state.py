"""What a worker must be like when it runs a task: path, directory, environment, warning filters, log levels.

Snapshots are compared with the last one at each dispatch, so this has to cost microseconds.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import sys
import warnings
from typing import Any, NamedTuple

from ndshare._processes import records
from ndshare._system import _wire


class Snapshot(NamedTuple):
    """The settings at one time; equal versions, equal settings."""

    version: int
    seen: tuple[Any, ...]
    content: dict[str, Any]

    def message(self, **extra: Any) -> bytes:
        """Pickle it for a worker."""
        return pickle.dumps(self.content | extra, protocol=5)


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
                and records.is_marked()
            ):
                return last
        self._last = new = self._look(here, environ)
        return new

    def _look(self, here: Any, environ: dict[bytes, bytes]) -> Snapshot:
        records.mark()  # before looking: who sets a level meanwhile removes it
        handled = bool(logging.root.handlers)
        seen = (here, list(sys.path), dict(environ), list(warnings.filters), handled)
        try:
            cwd = os.getcwd()
        except FileNotFoundError:  # somebody removed it
            cwd = None
        base = cwd or "/"
        content = {
            "cwd": cwd,
            "path": [os.path.join(base, p) for p in seen[1] if isinstance(p, str)],
            "environ": {os.fsdecode(name): os.fsdecode(value) for name, value in seen[2].items()},
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
