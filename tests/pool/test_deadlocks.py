"""Nothing ever waits for ever: everything at once, and the cases in which something did."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import ndshare
from tests import misdeeds

_HERE = Path(__file__).parent
_PLAY_S = 5


@pytest.mark.chaos
def test_everything_at_once_does_not_hang(chaos_seed: int, chaos_rounds: int) -> None:
    """Threads, cancels, callbacks that submit and wait, recycled and killed workers, abrupt ends: no hang."""
    for number in range(chaos_rounds):
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "faulthandler",
                str(_HERE / "hunt_deadlocks.py"),
                str(chaos_seed + number),
                str(_PLAY_S),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, f"seed {chaos_seed + number}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def executor() -> ndshare.ProcessPoolExecutor:
    """One warm worker, whose tasks travel by the dozen."""
    with ndshare.ProcessPoolExecutor(1) as pool:
        for _ in range(100):
            pool.submit(misdeeds.same, 1).result()
        yield pool


def test_callback_may_wait_for_a_future_whose_result_came_with_its_own(
    executor: ndshare.ProcessPoolExecutor,
) -> None:
    """Results that arrive together are not kept from the callbacks of the first ones."""
    for _ in range(20):
        heard = []
        head = executor.submit(misdeeds.nap, 0.005)
        first = executor.submit(misdeeds.same, 1)
        others = [executor.submit(misdeeds.same, i) for i in range(20)]
        first.add_done_callback(lambda _, o=others, h=heard: h.extend(f.result(20) for f in o))
        assert head.result(20) == 0.005
        assert first.result(20) == 1
        deadline = time.monotonic() + 20
        while len(heard) < 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert heard == list(range(20))


def test_result_is_seen_by_its_waiter_although_its_callback_blocks(
    executor: ndshare.ProcessPoolExecutor,
) -> None:
    """A callback that blocks until somebody has seen the result does not keep the result from him."""
    for _ in range(10):
        seen = threading.Event()
        outcome = []
        future = executor.submit(misdeeds.nap, 0.02)
        future.add_done_callback(lambda _, seen=seen, outcome=outcome: outcome.append(seen.wait(20)))
        waiter = threading.Thread(target=lambda f=future, s=seen: (f.result(20), s.set()))
        waiter.start()
        while not outcome:
            time.sleep(0.001)
        waiter.join()
        assert outcome == [True]


def test_futures_are_done_without_anybody_waiting_for_them(executor: ndshare.ProcessPoolExecutor) -> None:
    """The I/O thread hears again after a short wait of another thread, whatever has woken it meanwhile."""
    hub = executor._pool.hub

    def finished() -> bool:
        time.sleep(0.0005)  # the I/O thread sees that somebody leads
        hub.later(60, lambda: None)  # and is woken
        time.sleep(0.0005)
        return True

    for _ in range(20):
        future = executor.submit(misdeeds.nap, 0.02)
        hub.drive(finished, None)
        deadline = time.monotonic() + 10
        while not future.done():
            assert time.monotonic() < deadline, "nobody hears"
            time.sleep(0.0005)


def test_callbacks_come_while_a_thread_asks_for_short_tasks_only(
    executor: ndshare.ProcessPoolExecutor,
) -> None:
    """Who looks for the one result it waits for does not keep the results of others from being heard."""
    ready = ndshare.zeros(1)
    with ndshare.ProcessPoolExecutor(1) as other:
        for _ in range(10):
            heard: list[object] = []
            other.submit(misdeeds.nap_and_note, 0.02, ready).add_done_callback(heard.append)
            while not ready[0]:
                executor.submit(misdeeds.same, 1).result()
            ready[0] = 0
            for _ in range(3000):
                executor.submit(misdeeds.same, 1).result()
                if heard:
                    break
            assert heard


def test_cancel_of_what_a_worker_has_not_begun_lets_the_next_task_run(
    executor: ndshare.ProcessPoolExecutor,
) -> None:
    """A map that is dropped takes its items back from the worker, which is free again then."""
    for _ in range(50):
        results = executor.map(misdeeds.same, range(200))
        next(results)
        del results
        assert executor.submit(misdeeds.same, 3).result(20) == 3


def test_kill_workers_ends_every_future_although_other_threads_submit() -> None:
    """Tasks that are just being sent when the workers are killed end as well; `shutdown` returns."""
    for number in range(15):
        executor = ndshare.ProcessPoolExecutor(2)
        list(executor.map(misdeeds.same, range(50)))
        futures = []

        def submit(executor: ndshare.ProcessPoolExecutor = executor, futures: list = futures) -> None:
            try:
                while True:
                    futures.append(executor.submit(misdeeds.same, bytes(20_000)))
            except RuntimeError:
                pass

        threads = [threading.Thread(target=submit) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.002 * number)
        executor.kill_workers()
        for thread in threads:
            thread.join()
        for future in futures:
            assert future.cancelled() or future.exception(20) is None or future.exception() is not None
        executor.shutdown()
