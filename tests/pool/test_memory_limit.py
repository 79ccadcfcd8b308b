"""Memory limits of workers: the task that takes too much fails, shared arrays never count, leaks end."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np
import pytest

import ndshare
from tests import misdeeds
from tests.pool import limit_tasks

pytestmark = pytest.mark.once

_MB = 1 << 20


def _grab_arrays(seconds: float = 30.0) -> None:
    kept = []
    for _ in range(40):
        kept.append(np.ones(10 * _MB // 8))
        time.sleep(0.01)
    time.sleep(seconds)


def _grab_lists() -> None:
    kept = []
    for _ in range(40):
        kept.append(bytearray(10 * _MB))
        time.sleep(0.01)
    time.sleep(30)


@pytest.mark.parametrize("grab", [_grab_arrays, _grab_lists])
def test_task_over_the_limit_fails_alone(grab: Any) -> None:
    """With the peak and its name; arrays of NumPy, which lie in segments, count as everything else does."""
    with ndshare.ProcessPoolExecutor(2, memory_limit="200M") as executor:
        greedy = executor.submit(grab)
        others = [executor.submit(misdeeds.same, index) for index in range(40)]
        with pytest.raises(ndshare.WorkerMemoryError, match=r"_grab_\w+\(\) had its worker") as caught:
            greedy.result()
        assert [other.result() for other in others] == list(range(40))
        assert executor.submit(misdeeds.same, 1).result() == 1
    assert isinstance(caught.value, MemoryError)
    assert caught.value.limit_bytes == 200 * _MB
    assert caught.value.peak_bytes >= 200 * _MB


def test_retries_count_as_after_a_death() -> None:
    """It is one."""
    with ndshare.ProcessPoolExecutor(1, memory_limit=120 * _MB, retries=1) as executor:
        error = executor.submit(_grab_arrays).exception()
    assert isinstance(error, ndshare.WorkerMemoryError)
    assert error.attempts == 2


def test_shared_arrays_results_and_passing_use_are_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has made them, written to them first or keeps them, and however large they are."""
    shared = ndshare.zeros(200 * _MB // 8)

    def fill(where: Any, value: float) -> float:
        where[:] = value
        time.sleep(0.1)
        return float(where[-1])

    def read(where: Any) -> float:
        time.sleep(0.1)
        return float(where.sum())

    def make() -> float:
        made = ndshare.zeros(200 * _MB // 8)
        return fill(made, 3.0) + fill(ndshare.share(np.ones(100 * _MB // 8)), 4.0)

    with ndshare.ProcessPoolExecutor(1, memory_limit="150M") as executor:
        pid = executor.submit(os.getpid).result()
        assert executor.submit(make).result() == 7.0
        assert executor.submit(fill, shared, 2.0).result() == 2.0
        assert executor.submit(read, shared).result() == 2.0 * shared.size
        ordinary = np.ones(200 * _MB // 8)  # its copy belongs to the caller
        assert executor.submit(read, ordinary).result() == ordinary.size
        kept = [executor.submit(np.ones, 30 * _MB // 8).result() for _ in range(7)]
        for _ in range(6):  # what a task takes and gives back is not left
            assert executor.submit(_use, 60).result() == 60 * _MB
        assert executor.submit(os.getpid).result() == pid
        assert executor.workers()[0].own_bytes < 150 * _MB
        assert sum(array.nbytes for array in kept) > 200 * _MB
    assert not caplog.records


def _use(megabytes: int) -> int:
    return np.ones(megabytes * _MB, np.uint8).nbytes


_leak: list[Any] = []


def _grow(megabytes: int) -> int:
    _leak.append(np.ones(megabytes * _MB, np.uint8))
    return os.getpid()


def test_worker_in_which_tasks_leave_much_is_replaced_and_no_task_notices(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Between two tasks, and it is said."""
    with caplog.at_level(logging.WARNING), ndshare.ProcessPoolExecutor(1, memory_limit="200M") as executor:
        pids = [executor.submit(_grow, 25).result() for _ in range(12)]
    assert 2 <= len(set(pids)) <= 6
    assert "is replaced: its tasks have left" in caplog.text


def test_what_other_executors_left_in_warm_workers_does_not_count() -> None:
    """Workers with a limit are new ones."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(_grow, 150).result()
    with ndshare.ProcessPoolExecutor(1, memory_limit="200M") as executor:
        assert len({executor.submit(os.getpid).result() for _ in range(5)}) == 1


def test_initializer_that_keeps_much_does_not_have_its_worker_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Growth counts from the first task on."""
    with ndshare.ProcessPoolExecutor(1, initializer=_grow, initargs=(120,), memory_limit="200M") as executor:
        assert len({executor.submit(os.getpid).result() for _ in range(5)}) == 1
    assert not caplog.records


def test_nothing_is_looked_at_between_tasks() -> None:
    """No timer is left when the last task is done."""
    with ndshare.ProcessPoolExecutor(1, memory_limit="1G") as executor:
        assert executor.submit(misdeeds.same, 1).result() == 1
        memory = executor._pool.memory
        assert memory is not None
        deadline = time.monotonic() + 20
        while memory._armed:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_time_limit_and_memory_limit_together() -> None:
    """Each is told by its own error."""
    with ndshare.ProcessPoolExecutor(2, memory_limit="150M", task_timeout=20) as executor:
        greedy = executor.submit(_grab_arrays)
        late = executor.submit(ndshare.options(limit_tasks.when, timeout=20), 0)
        slow = executor.submit(ndshare.options(time.sleep, timeout=0.2), 60)
        assert isinstance(slow.exception(), ndshare.TaskTimeoutError)
        assert isinstance(greedy.exception(), ndshare.WorkerMemoryError)
        assert late.result() > 0


@pytest.mark.parametrize(
    ("limit", "error", "text"),
    [
        ("much", ValueError, "memory_limit is 'much'; allowed is a number of bytes"),
        (0, ValueError, "memory_limit must be at least 1"),
        (1.5, TypeError, "memory_limit must be an integer"),
    ],
)
def test_limits_of_the_wrong_kind_are_refused(limit: Any, error: type[Exception], text: str) -> None:
    """No executor is made."""
    with pytest.raises(error, match=text):
        ndshare.ProcessPoolExecutor(1, memory_limit=limit)
