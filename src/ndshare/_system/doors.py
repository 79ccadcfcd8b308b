"""Doors whose files are loaded in part when something in them is first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def later(package: str, files: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package, which loads a file when one of its names is first asked for.

    Parameters
    ----------
    package : str
        The ``__name__`` of the door.
    files : mapping
        Names by the file of the package that has them.
    """
    file_of = {name: file for file, names in files.items() for name in names}

    def __getattr__(name: str) -> Any:  # noqa: N807 - what it becomes
        if name not in file_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{file_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
