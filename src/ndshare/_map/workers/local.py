"""Workers of a map inside this process: the calling thread, or threads made for the map."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ndshare._map.job import Job
from ndshare._map.runner import run_job
from ndshare._map.watch.captured import Traffic
from ndshare._map.workers.base import Lost, Outcome, Ranges

#: How long after Ctrl-C threads are given to finish their item.
_PATIENCE_S = 0.5


class Caller:
    """The calling thread itself; `tell` is called after each share."""

    start_method = "serial"
    rolls_back = True
    captured: Mapping[str, Traffic] = MappingProxyType({})  # nothing is sent

    def __init__(self, job: Job, tell: Callable[[], None]) -> None:
        self._job = job
        self._tell = tell
        self._started: list[Ranges] = []

    @property
    def running(self) -> int:
        """See `MapWorkers`."""
        return len(self._started)

    def start(self, count: int, ranges: Ranges = ()) -> None:
        """See `MapWorkers`."""
        self._started += [ranges] * count

    def wait(self, _seconds: float | None) -> list[Outcome]:
        """Run the whole map."""
        return [run_job(self._job, self._started.pop(), portable=False, tell=self._tell)]

    def kill(self, pid: int) -> None:
        """Never called: there is no time limit here."""
        raise NotImplementedError

    def close(self) -> None:
        """See `MapWorkers`."""


class Threads:
    """Threads of this process."""

    start_method = "threads"
    rolls_back = True
    captured: Mapping[str, Traffic] = MappingProxyType({})  # nothing is sent

    def __init__(self, job: Job) -> None:
        self._job = job
        self._threads: list[threading.Thread] = []
        self._ended: list[Outcome] = []
        self._condition = threading.Condition()
        self.running = 0

    def start(self, count: int, ranges: Ranges = ()) -> None:
        """See `MapWorkers`."""
        for _ in range(count):
            thread = threading.Thread(target=self._run, args=(ranges,), name="ndshare-map", daemon=True)
            self._threads.append(thread)
            thread.start()
            self.running += 1

    def _run(self, ranges: Ranges) -> None:
        try:
            outcome: Outcome = run_job(self._job, ranges, portable=False)
        except BaseException as error:
            outcome = Lost(0, error)
        with self._condition:
            self._ended.append(outcome)
            self._condition.notify()

    def wait(self, seconds: float | None) -> list[Outcome]:
        """See `MapWorkers`."""
        with self._condition:
            self._condition.wait_for(lambda: self._ended, seconds)
            ended, self._ended = self._ended, []
        self.running -= len(ended)
        return ended

    def kill(self, pid: int) -> None:
        """Never called: there is no time limit here."""
        raise NotImplementedError

    def close(self) -> None:
        """See `MapWorkers`."""
        self._job.board.stop()
        deadline = time.monotonic() + (_PATIENCE_S if self.running else 60)
        for thread in self._threads:
            if thread.ident is None:  # it could not be started
                continue
            thread.join(max(0.0, deadline - time.monotonic()))
