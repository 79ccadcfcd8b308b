"""A local Dask cluster in a process of its own, and a count of what passes through its scheduler.

::

    client ◄──► scheduler ◄──► workers       counted: every byte on these connections
       ▲                          │
       └──────────────────────────┘           not counted: what goes past the scheduler

Run as a program (``python -m ndshare.bench.dask_cluster``) it is the cluster: prints the address of its
scheduler and lives until its input ends. The client's process has no part of it, as on a real cluster; that
the scheduler's connections can be told from the client's depends on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Load:
    """What a scheduler has done.

    Parameters
    ----------
    received, sent
        Bytes on all of its connections, to clients and workers, without the headers of TCP.
    cpu_s
        Processor time.
    """

    received: int = 0
    sent: int = 0
    cpu_s: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes in both directions."""
        return self.received + self.sent

    def __sub__(self, before: Load) -> Load:
        return Load(self.received - before.received, self.sent - before.sent, self.cpu_s - before.cpu_s)


class _Counter:
    """Counts what the sockets of a process carry; lives in the scheduler's."""

    def __init__(self) -> None:
        from tornado.iostream import IOStream

        stream: Any = IOStream
        self.received = self.sent = 0
        read, write = stream.read_from_fd, stream.write_to_fd

        def counting_read(one: Any, buffer: Any) -> Any:
            count = read(one, buffer)
            self.received += count or 0
            return count

        def counting_write(one: Any, data: Any) -> Any:
            count = write(one, data)
            self.sent += count or 0
            return count

        stream.read_from_fd = counting_read
        stream.write_to_fd = counting_write


_counter: _Counter | None = None


def _load() -> Load:
    global _counter
    if _counter is None:
        _counter = _Counter()
    return Load(_counter.received, _counter.sent, time.process_time())


def load_of(client: Any) -> Load:
    """Return what the scheduler of a client has done since this was first asked."""
    found: Load = client.run_on_scheduler(_load)
    return found


@contextlib.contextmanager
def started(workers: int, threads: int = 1, **environment: str) -> Iterator[str]:
    """Start a cluster, with more variables in its environment; yields the address of its scheduler."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "ndshare.bench.dask_cluster", str(workers), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(30)


@contextlib.contextmanager
def opened(workers: int) -> Iterator[Any]:
    """Start a cluster and yield a client of it."""
    import distributed

    connect: Any = distributed.Client
    with started(workers) as address, connect(address) as client:
        client.wait_for_workers(workers)
        yield client


def main() -> None:
    """Run the cluster."""
    import distributed

    local: Any = distributed.LocalCluster
    with local(
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
