"""What can be cancelled: all that no worker has begun, wherever it is by then."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ndshare

_LATE_S = 30.0

Make = Callable[..., ndshare.ProcessPoolExecutor]


@pytest.fixture
def warm() -> Iterator[ndshare.ProcessPoolExecutor]:
    """Two workers that are used to tiny tasks, so that they are sent many at once."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        for future in [executor.submit(abs, 1) for _ in range(200)]:
            future.result()
        yield executor


def _mark(marks: np.ndarray[Any, Any], number: int, seconds: float) -> int:
    marks[number] += 1
    time.sleep(seconds)
    return number


class Slow:
    """Takes its time to be pickled, and says when it has begun."""

    def __init__(self, begun: threading.Event, go_on: threading.Event) -> None:
        self.begun = begun
        self.go_on = go_on

    def __reduce__(self) -> Any:
        self.begun.set()
        assert self.go_on.wait(_LATE_S)
        return int, ()


def test_all_that_has_not_begun_can_be_cancelled_and_never_runs(warm: ndshare.ProcessPoolExecutor) -> None:
    """Tasks that lie in the socket of a busy worker included."""
    marks = ndshare.zeros(60, np.int64)
    futures = [warm.submit(_mark, marks, i, 0.05) for i in range(60)]
    cancelled = [future.cancel() for future in futures]
    assert sum(cancelled) >= 56
    done, _ = concurrent.futures.wait(futures, _LATE_S)
    assert len(done) == 60
    assert [future.cancelled() for future in futures] == cancelled
    assert marks.tolist() == [int(not one) for one in cancelled]
    assert [future.result() for future in futures if not future.cancelled()] == [
        i for i in range(60) if not cancelled[i]
    ]


def test_cancel_a_second_time_says_so_again(warm: ndshare.ProcessPoolExecutor) -> None:
    """As with the standard library; one that is done cannot be cancelled."""
    futures = [warm.submit(time.sleep, 0.1) for _ in range(4)]
    assert futures[-1].cancel()
    assert futures[-1].cancel()
    assert not futures[-1].running()
    assert futures[0].result() is None
    assert not futures[0].cancel()


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown_leaves_futures_that_are_cancelled_or_done(wait: bool) -> None:
    """None of them raises `CancelledError` without being cancelled."""
    executor = ndshare.ProcessPoolExecutor(2)
    for future in [executor.submit(abs, 1) for _ in range(200)]:
        future.result()
    futures = [executor.submit(time.sleep, 0.1) for _ in range(50)]
    executor.shutdown(wait=wait, cancel_futures=True)
    concurrent.futures.wait(futures, _LATE_S)
    assert all(future.cancelled() or future.exception() is None for future in futures)
    assert sum(future.cancelled() for future in futures) >= 46
    executor.shutdown()


def test_running_is_what_a_worker_has_begun(warm: ndshare.ProcessPoolExecutor) -> None:
    """Not what it was sent; and the text of a future says the same."""
    futures = [warm.submit(time.sleep, 0.5) for _ in range(40)]
    deadline = time.monotonic() + _LATE_S
    while sum(future.running() for future in futures) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    running = [future for future in futures if future.running()]
    assert len(running) == 2
    assert all("state=running" in repr(future) for future in running)
    assert sum("state=pending" in repr(future) for future in futures) == 38
    assert not any(future.cancel() for future in running)
    assert all(future.cancel() for future in futures if future not in running)
    for future in running:
        assert future.result() is None
        assert not future.running()


@pytest.mark.parametrize("limit", [None, 1])
def test_cancel_while_another_thread_pickles_the_arguments(limit: int | None) -> None:
    """It is not sent then, and the worker, which may have been hired for it, gets the next one."""
    begun, go_on = threading.Event(), threading.Event()
    with ndshare.ProcessPoolExecutor(1, max_tasks_per_child=limit) as executor:
        assert executor.submit(abs, -1).result() == 1
        futures: list[concurrent.futures.Future[Any]] = []
        sender = threading.Thread(target=lambda: futures.append(executor.submit(abs, Slow(begun, go_on))))  # type: ignore[arg-type]
        sender.start()
        assert begun.wait(_LATE_S)
        (leaving,) = executor._pool._leaving.values()
        task: Any = leaving[0]
        assert not task.running()
        assert task.cancel()
        go_on.set()
        sender.join()
        assert futures == [task]
        assert task.cancelled()
        assert executor.submit(abs, -2).result() == 2


def test_shutdown_cancels_what_is_being_pickled() -> None:
    """It has not begun either."""
    begun, go_on = threading.Event(), threading.Event()
    executor = ndshare.ProcessPoolExecutor(1)
    assert executor.submit(abs, -1).result() == 1
    futures: list[concurrent.futures.Future[Any]] = []
    sender = threading.Thread(target=lambda: futures.append(executor.submit(abs, Slow(begun, go_on))))  # type: ignore[arg-type]
    sender.start()
    assert begun.wait(_LATE_S)
    executor.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    sender.join()
    assert futures[0].cancelled()
    executor.shutdown()


def test_what_is_cancelled_again_and_again_costs_no_other_task(warm: ndshare.ProcessPoolExecutor) -> None:
    """More than a worker has room for on its board: numbers of tasks come round again."""
    marks = ndshare.zeros(3, np.int64)
    busy = [warm.submit(_mark, marks, i, 1.0) for i in range(2)]
    for _ in range(100):
        futures = [warm.submit(_mark, marks, 2, 0.0) for _ in range(64)]
        assert all(future.cancel() for future in reversed(futures))
    assert [future.result() for future in busy] == [0, 1]
    assert warm.submit(abs, -3).result() == 3
    assert marks.tolist() == [1, 1, 0]


def test_waiters_and_callbacks_hear_of_it(warm: ndshare.ProcessPoolExecutor) -> None:
    """`as_completed`, `wait` and callbacks, whether the task was sent or not."""
    futures = [warm.submit(time.sleep, 0.05) for _ in range(20)]
    called: list[concurrent.futures.Future[Any]] = []
    for future in futures:
        future.add_done_callback(called.append)
    heard: list[concurrent.futures.Future[Any]] = []
    listener = threading.Thread(
        target=lambda: heard.extend(concurrent.futures.as_completed(futures, _LATE_S))
    )
    listener.start()
    for future in futures:
        future.cancel()
    listener.join(_LATE_S)
    assert len(heard) == 20
    warm.shutdown()
    assert len(called) == 20


def test_killed_workers_leave_what_waits_cancelled(warm: ndshare.ProcessPoolExecutor) -> None:
    """Those that run fail."""
    futures = [warm.submit(time.sleep, _LATE_S) for _ in range(40)]
    while sum(future.running() for future in futures) < 2:
        time.sleep(0.001)
    warm.kill_workers()
    concurrent.futures.wait(futures, _LATE_S)
    dead = [future for future in futures if not future.cancelled()]
    assert all(isinstance(future.exception(), ndshare.WorkerDiedError) for future in dead)
    assert sum(future.cancelled() for future in futures) + len(dead) == 40


def test_a_task_that_is_cancelled_lets_its_arguments_go(warm: ndshare.ProcessPoolExecutor) -> None:
    """At once, not when the worker looks at it."""
    blocked = [warm.submit(time.sleep, 0.5) for _ in range(2)]
    argument = np.zeros(10)
    reference = weakref.ref(argument)
    future = warm.submit(_take, argument)
    del argument
    assert future.cancel()
    assert reference() is None
    for one in blocked:
        one.result()


def _take(_argument: object) -> None:
    pass
