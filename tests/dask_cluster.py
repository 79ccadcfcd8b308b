"""A local Dask cluster in a process of its own: prints its address, lives until its input ends.

Its warnings and what it leaves open are its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_HERE = os.path.abspath(__file__)


@contextlib.contextmanager
def dask_cluster(workers: int, threads: int = 1) -> Iterator[str]:
    """Start a cluster; yields the address of its scheduler."""
    paths = [os.path.dirname(_HERE), *(os.path.abspath(p) for p in sys.path if p)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", _HERE, str(workers), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(30)


def main() -> None:
    """Run the cluster."""
    import logging

    import distributed

    with distributed.LocalCluster(
        n_workers=int(sys.argv[1]),
        threads_per_worker=int(sys.argv[2]),
        processes=True,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
