"""What a worker must be like when it runs a task: path, directory, environment, warning filters.

Snapshots are compared with the last one at each dispatch, so this has to cost microseconds.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from typing import Any

from ndshare import _wire


class CallerState:
    """The caller's process-wide settings, with a version that changes when they do."""

    def __init__(self) -> None:
        self.version = 0
        self._seen: tuple[Any, ...] = ()
        self._content: dict[str, Any] = {}

    def refresh(self) -> int:
        """Look whether anything changed, and return the version."""
        here = _wire.here()
        environ = os.environ._data  # type: ignore[attr-defined]  # bytes: a copy of os.environ takes 30 µs
        seen = self._seen
        if (
            not seen
            or seen[0] != here
            or seen[1] != sys.path
            or seen[2] != environ
            or seen[3] != warnings.filters
        ):
            self._seen = (here, list(sys.path), dict(environ), list(warnings.filters))
            try:
                cwd = os.getcwd()
            except FileNotFoundError:  # somebody removed it
                cwd = None
            base = cwd or "/"
            self._content = {
                "cwd": cwd,
                "path": [os.path.join(base, p) for p in sys.path if isinstance(p, str)],
                "environ": dict(os.environ),
                "filters": [f for f in warnings.filters if f[2].__module__ == "builtins" or _importable(f)],
            }
            self.version += 1
        return self.version

    def message(self, **extra: Any) -> bytes:
        """The last snapshot, pickled."""
        return pickle.dumps(self._content | extra, protocol=5)


def _importable(entry: tuple[Any, ...]) -> bool:
    """Whether a worker can rebuild this warning filter: its category may be anybody's class."""
    if entry[2].__module__ == "__main__" or entry[2].__module__.startswith(("_pytest", "pytest")):
        return False
    try:
        pickle.dumps(entry)
    except Exception:
        return False
    return True
