"""A local Dask cluster in a process of its own, whose workers find the modules of the tests.

Its warnings and what it leaves open are its own.
"""

from __future__ import annotations

import contextlib
import os
import sys

from ndshare.bench.dask_cluster import started


def dask_cluster(workers: int, threads: int = 1) -> contextlib.AbstractContextManager[str]:
    """Start a cluster; yields the address of its scheduler."""
    paths = [os.path.abspath(path) for path in sys.path if path]
    return started(workers, threads, PYTHONPATH=os.pathsep.join(paths))
