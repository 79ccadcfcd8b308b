"""Engines whose futures have no callbacks, as those of batch systems have none."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ndshare
from ndshare._cluster.polling import Poller
from ndshare.testing import ContextConformance
from tests.cluster.cluster_suite import check_workspace

pytestmark = [pytest.mark.once, pytest.mark.leaves("child process", "open descriptor", "thread")]


class Job:
    """What a batch system gives for a call: it can be asked."""

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self._future = future

    def done(self) -> bool:
        """Whether it has ended."""
        return self._future.done()

    def result(self) -> Any:
        """What it returned."""
        return self._future.result()

    def cancel(self) -> bool:
        """Take it out of the queue."""
        return self._future.cancel()


class Batch:
    """Submits jobs."""

    num_workers = 2

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Job:
        """Return a job."""
        return Job(self._executor.submit(fn, *args))


_batch: list[Batch] = []


@pytest.fixture(scope="module", autouse=True)
def batch() -> Iterator[None]:
    """Two processes of the standard library behind it."""
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        list(executor.map(time.sleep, [0.1, 0.1]))
        _batch[:] = [Batch(executor)]
        yield


class TestBatch(ContextConformance):
    """On an engine that has to be asked."""

    def make_context(self) -> ndshare.MapContext:
        """Two processes."""
        return ndshare.ClusterContext(_batch[0])


def test_executor_and_workspace_on_it() -> None:
    """Results, errors, and what calls have changed."""
    with ndshare.ClusterExecutor(_batch[0]) as executor:
        assert list(executor.map(abs, range(-3, 0))) == [3, 2, 1]
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(60)
    check_workspace(_batch[0])


def test_thread_is_there_while_there_is_something_to_ask_for() -> None:
    """It ends by itself, and begins anew."""

    def asking() -> int:
        return sum(thread.name == "ndshare-polling" for thread in threading.enumerate())

    deadline = time.monotonic() + 30
    while asking() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert asking() == 0
    poller = Poller()
    for _ in range(2):
        theirs: concurrent.futures.Future[int] = concurrent.futures.Future()
        ours = poller.follow(Job(theirs))
        assert asking() == 1
        theirs.set_result(5)
        assert ours.result(30) == 5
        while asking() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert asking() == 0


def test_cancel_is_passed_on_and_what_runs_goes_on() -> None:
    """As with any future."""
    poller = Poller()
    waiting: concurrent.futures.Future[int] = concurrent.futures.Future()
    running: concurrent.futures.Future[int] = concurrent.futures.Future()
    running.set_running_or_notify_cancel()
    first, second = poller.follow(Job(waiting)), poller.follow(Job(running))
    assert first.cancel()
    assert waiting.cancelled()
    assert not second.cancel()
    running.set_result(3)
    assert second.result(30) == 3


def test_job_that_cannot_say_whether_it_is_done_has_failed() -> None:
    """What asking raises is its error."""

    class Lost:
        def done(self) -> bool:
            raise ConnectionError("no such job")

    with pytest.raises(ConnectionError, match="no such job"):
        Poller().follow(Lost()).result(30)
