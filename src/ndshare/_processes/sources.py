"""Which files the modules of a worker come from, and how old these were when they were imported."""

from __future__ import annotations

import contextlib
import os
import sys

_MOST = 1000


class Sources:
    """The files of modules that were imported since this was made; those of Python itself are left out."""

    def __init__(self) -> None:
        self._noted = set(sys.modules)  # modules that were looked at, or are nobody's to change
        self._modules = len(sys.modules)
        self._changed: dict[str, int] = {}  # file -> time of its last change

    def note(self) -> None:
        """Look at the files of newly imported modules at once: they may change once the result is out."""
        if len(sys.modules) == self._modules:
            return
        for name in sys.modules.keys() - self._noted:
            path = getattr(sys.modules.get(name), "__file__", None)
            if path and not path.startswith((sys.prefix, sys.base_prefix)):
                with contextlib.suppress(OSError):
                    self._changed.setdefault(path, os.stat(path).st_mtime_ns)
        self._noted.update(sys.modules)
        self._modules = len(sys.modules)

    def found(self) -> list[tuple[str, int]]:
        """Return the files with the times of their last changes, in nanoseconds."""
        return list(self._changed.items())[:_MOST]
