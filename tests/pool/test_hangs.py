"""Cases in which somebody waited for ever, each forced at its worst moment.

The executors of these tests end by `kill_workers`: after a failure nothing of them may keep the others waiting.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ndshare
from ndshare._pool import Pool
from ndshare._processes.hub import Hub
from tests import misdeeds

#: Far longer than any of it takes.
_LATE_S = 20.0

Make = Callable[..., ndshare.ProcessPoolExecutor]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make executors with one warm worker, or as asked."""
    made = []

    def one(workers: int = 1, **options: Any) -> ndshare.ProcessPoolExecutor:
        executor = ndshare.ProcessPoolExecutor(workers, **options)
        made.append(executor)
        executor.submit(misdeeds.same, 1).result()
        return executor

    yield one
    for executor in made:
        executor.kill_workers()


def _beside(function: Callable[[], object]) -> threading.Thread:
    """Call something in a thread; what it raises is of no interest."""

    def call() -> None:
        try:
            function()
        except (RuntimeError, concurrent.futures.CancelledError):
            pass

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def _until_led(hub: Hub) -> None:
    """Wait until a thread leads, and sleeps."""
    deadline = time.monotonic() + _LATE_S
    while not hub._leader_thread:
        assert time.monotonic() < deadline, "nobody leads"
        time.sleep(0.001)
    time.sleep(0.05)


def _ends(thread: threading.Thread) -> bool:
    thread.join(_LATE_S)
    return not thread.is_alive()


class Slow:
    """Rebuilt in two steps: it has begun, it may go on."""

    begun, go = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        return Slow.rebuilt, ()

    @staticmethod
    def rebuilt() -> int:
        """In the caller's process, in place of the object."""
        Slow.begun.set()
        Slow.go.wait(_LATE_S)
        return 1

    @staticmethod
    def make() -> Slow:
        """In the worker."""
        return Slow()


class Strike:
    """Ctrl-C while it is pickled, in the main thread."""

    def __reduce__(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return abs, (-5,)


# ---------------------------------------------------------------------- who leads hears of what others resolve


def test_error_of_a_future_with_a_callback_is_heard_by_who_leads(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The I/O thread, which calls back, rings after it has resolved the future, not only before."""
    executor = make()
    finish = Pool._finish

    def slowly(pool: Pool, task: Any) -> bool:
        if pool.hub.in_thread:
            time.sleep(0.1)  # who leads has heard the bell of before, and sleeps again
        return finish(pool, task)

    monkeypatch.setattr(Pool, "_finish", slowly)
    future = executor.submit(os._exit, 3)
    future.add_done_callback(lambda _: None)
    assert _ends(_beside(future.result))
    assert isinstance(future.exception(), ndshare.WorkerDiedError)


def test_cancel_is_heard_by_who_leads(make: Make) -> None:
    """And not only with the next message of a worker."""
    executor = make()
    executor.submit(time.sleep, 0.3).result()  # tasks are not short: nothing is sent ahead
    executor.submit(time.sleep, 2 * _LATE_S)
    waiting = executor.submit(misdeeds.same, 1)
    thread = _beside(waiting.result)
    _until_led(executor._pool.hub)
    assert waiting.cancel()
    assert _ends(thread)


@pytest.mark.parametrize("count", [1, 64])
def test_cancelled_futures_are_heard_by_who_leads(make: Make, count: int) -> None:
    """Those in the queue, and those that were sent already."""
    executor = make()
    for _ in range(200):
        executor.submit(misdeeds.same, 1).result()
    executor.submit(time.sleep, 2 * _LATE_S)
    time.sleep(0.05)
    futures = [executor.submit(misdeeds.same, i) for i in range(count)]
    thread = _beside(futures[0].result)
    _until_led(executor._pool.hub)
    executor.shutdown(wait=False, cancel_futures=True)
    assert _ends(thread)


def test_who_leads_hears_what_was_done_before_an_error(make: Make) -> None:
    """Ctrl-C in one thing that was put off does not take the bell from what came before it."""
    hub = make()._pool.hub
    over = threading.Event()

    def strike() -> None:
        raise KeyboardInterrupt

    thread = _beside(lambda: hub.drive(over.is_set, time.monotonic() + 2 * _LATE_S))
    _until_led(hub)
    hub._todo.extend([over.set, strike])
    with pytest.raises(KeyboardInterrupt):
        hub.finish()
    assert _ends(thread)


# ---------------------------------------------------------------------- no task is lost


def test_cells_of_tasks_that_lie_unread_are_not_used_again(make: Make) -> None:
    """A worker that gets no processor is sent one map after the other, each given up: no byte means two tasks."""
    executor = make()
    for _ in range(300):
        executor.submit(misdeeds.same, 1).result()
    pid = executor._pool.workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(40):
            results = executor.map(misdeeds.same, range(60), timeout=0)
            with pytest.raises(TimeoutError):
                next(results)
        future = executor.submit(misdeeds.same, 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert future.result(_LATE_S) == 2


def test_ctrl_c_while_an_argument_is_pickled_keeps_the_task(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The I/O thread sends what was being sent, however quick it is; nobody waits for that executor."""
    one, two = make(), make()
    hub = two._pool.hub
    two.submit(time.sleep, 0.3).result()  # tasks are not short: nothing is sent ahead
    two.submit(time.sleep, 0.8)
    second = two.submit(misdeeds.same, Strike())  # sent by who leads, once the first is done
    tick = hub.tick

    def quick() -> None:
        tick()
        time.sleep(0.05)

    monkeypatch.setattr(hub, "tick", quick)
    with pytest.raises(KeyboardInterrupt):
        one.submit(time.sleep, 2.0).result()
    monkeypatch.undo()
    assert concurrent.futures.wait([second], _LATE_S).done


def test_ctrl_c_while_an_initializer_is_pickled_lets_the_pool_end() -> None:
    """When all workers are started at once, what was to be sent is sent by the I/O thread."""
    executor = ndshare.ProcessPoolExecutor(1, initializer=misdeeds.same, initargs=(Strike(),))
    with pytest.raises(KeyboardInterrupt):
        executor._pool.start_workers()
    try:
        assert _ends(_beside(executor.shutdown))
    finally:
        executor.kill_workers()


def test_environment_larger_than_a_message(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches workers that run, and those that are started then."""
    executor = make()
    for i in range(30):
        monkeypatch.setenv(f"LARGE_{i}", "x" * 100_000)
    assert len(executor.submit(os.environ.get, "LARGE_29").result(_LATE_S)) == 100_000
    assert len(make(max_tasks_per_child=1).submit(os.environ.get, "LARGE_29").result(_LATE_S)) == 100_000


def test_killed_workers_are_nobodys_next(make: Make) -> None:
    """A signal that is still on its way does not hit the task of another executor."""
    for _ in range(20):
        one, two = make(), make()
        one.kill_workers()
        two.submit(time.sleep, 0.01).result()
        two.shutdown()


# ---------------------------------------------------------------------- callbacks


def test_shutdown_in_a_callback_while_another_thread_leads(make: Make) -> None:
    """The I/O thread, which waits there for the rest, hears the workers once nobody else does."""
    executor = make(2)
    long = executor.submit(time.sleep, 1.0)
    _beside(long.result)
    _until_led(executor._pool.hub)
    down = threading.Event()

    def close(_: object) -> None:
        executor.shutdown(wait=True)
        down.set()

    executor.submit(time.sleep, 0.2).add_done_callback(close)
    executor.submit(time.sleep, 0.2).add_done_callback(lambda _: None)
    assert down.wait(_LATE_S)


def test_callback_that_is_added_while_the_result_is_rebuilt_runs_in_the_io_thread(make: Make) -> None:
    """As any other: not in the thread that happens to lead."""
    executor = make(2)
    Slow.begun.clear()
    Slow.go.clear()
    future = executor.submit(Slow.make)
    _beside(executor.submit(time.sleep, 1.0).result)
    assert Slow.begun.wait(_LATE_S)
    where: list[threading.Thread] = []
    called = threading.Event()
    future.add_done_callback(lambda _: (where.append(threading.current_thread()), called.set()))
    Slow.go.set()
    assert future.result(_LATE_S) == 1
    assert called.wait(_LATE_S)
    assert where == [executor._pool.hub._thread]


def test_callback_may_want_a_lock_that_another_thread_holds_while_it_submits(make: Make) -> None:
    """Who submits a burst receives results now and then, but calls nobody back."""
    executor = make()
    lock, over = threading.Lock(), threading.Event()
    for _ in range(300):
        executor.submit(misdeeds.same, 1).result()

    def burst() -> None:
        while not over.is_set():
            with lock:
                executor.submit(misdeeds.same, 1)
            while len(executor._pool.queue) > 5000:
                time.sleep(0.001)

    def want(_: object) -> None:
        with lock:
            pass

    for _ in range(8):
        for event in (Slow.begun, Slow.go, over):
            event.clear()
        thread = _beside(burst)
        future = executor.submit(Slow.make)
        assert Slow.begun.wait(_LATE_S)
        future.add_done_callback(want)
        Slow.go.set()
        assert future.result(_LATE_S) == 1
        over.set()
        assert _ends(thread)


def test_callback_that_raises_keyboard_interrupt_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no Ctrl-C: those reach the main thread only. The pool ends all the same."""
    executor = make()
    future = executor.submit(os._exit, 1)

    def strike(_: object) -> None:
        raise KeyboardInterrupt

    future.add_done_callback(strike)
    executor.shutdown(wait=True)
    deadline = time.monotonic() + _LATE_S
    while "exception calling callback" not in caplog.text:  # nobody waits for callbacks: they may block
        assert time.monotonic() < deadline
        time.sleep(0.01)
