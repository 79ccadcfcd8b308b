"""contextshare 0.1.0 on ndshare: named arrays in shared memory, registered functions that use the names.

A program says ``from ndshare.compat import contextshare as shared``.
"""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing import shared_memory as mpshm
from typing import Any

import numpy as np

from ndshare.compat.contextshare.contextshare import SharedMemory

__version__ = "0.1.0"

# `import *` gave what the original had imported, too.
__all__ = ["SharedMemory", "cloudpickle", "mp", "mpshm", "np"]


def __getattr__(name: str) -> Any:
    if name == "cloudpickle":
        import cloudpickle

        return cloudpickle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
