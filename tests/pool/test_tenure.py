"""Workers: what they keep, what they do at their end, who is there, where they run, how many tasks wait."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._system import default_workers
from tests import misdeeds
from tests.jobs import wait_for
from tests.kernel import gone
from tests.pool import tenure_tasks


def _until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _counts(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.iterdir()]


# ---------------------------------------------------------------------- state and finalizer


def test_finalizer_runs_in_each_worker_before_the_end_of_the_executor(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its files are written and its prints are there when the block is left."""
    arguments = str(tmp_path), 0.2
    with ndshare.ProcessPoolExecutor(
        2, initializer=tenure_tasks.begin, initargs=arguments, finalizer=tenure_tasks.end
    ) as executor:
        pids = set(executor.map(tenure_tasks.count, range(40)))
    assert sum(_counts(tmp_path)) == 40
    assert {int(path.stem) for path in tmp_path.iterdir()} >= pids
    assert capfd.readouterr().out == "closed" * len(list(tmp_path.iterdir()))
    assert all(gone(pid) for pid in pids)


def test_finalizer_runs_when_a_worker_is_replaced_and_not_when_it_is_killed(tmp_path: Path) -> None:
    """After its last task, whoever decided that it was."""
    with ndshare.ProcessPoolExecutor(
        1,
        initializer=tenure_tasks.begin,
        initargs=(str(tmp_path),),
        finalizer=tenure_tasks.end,
        max_tasks_per_child=3,
    ) as executor:
        assert len({executor.submit(tenure_tasks.count).result() for _ in range(6)}) == 2
        killed = executor.submit(tenure_tasks.kill_self)
        assert isinstance(killed.exception(), ndshare.WorkerDiedError)
        executor.submit(tenure_tasks.count).result()
        executor.restart()
        executor.submit(tenure_tasks.count).result()
    texts = sorted(path.read_text() for path in tmp_path.iterdir())
    assert texts == ["", "1", "1", "3", "3"]


def test_finalizer_of_the_script_and_at_the_end_of_the_program(run_script: Any) -> None:
    """It may be a lambda or use names of the script; an executor that is never shut down has it run, too."""
    done = run_script(
        """
import ndshare
text = "good night"
def name(): return text
executor = ndshare.ProcessPoolExecutor(1, finalizer=lambda: print(name(), len(ndshare.worker_state())))
executor.submit(abs, 1).result()
"""
    )
    assert done.stdout == "good night 0\n"
    assert done.stderr == ""


def test_finalizer_that_fails_is_logged_and_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The tasks have their results."""
    with (
        caplog.at_level(logging.ERROR),
        ndshare.ProcessPoolExecutor(1, finalizer=tenure_tasks.fail) as executor,
    ):
        assert executor.submit(abs, -1).result() == 1
    assert "exception in the finalizer" in caplog.text
    assert "at the end" in caplog.text


def test_finalizer_that_is_killed_or_hangs_keeps_nobody(tmp_path: Path) -> None:
    """`shutdown(timeout=)` says so, and `kill_workers` ends it."""
    executor = ndshare.ProcessPoolExecutor(1, finalizer=tenure_tasks.hang)
    executor.submit(abs, -1).result()
    pid = executor.workers()[0].pid
    with pytest.raises(TimeoutError, match="finalizers run"):
        executor.shutdown(timeout=0.3)
    executor.kill_workers()
    executor.shutdown()
    wait_for(lambda: gone(pid))
    executor = ndshare.ProcessPoolExecutor(1, finalizer=tenure_tasks.hang)
    pid = executor.submit(os.getpid).result()
    executor.shutdown(wait=False)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    executor.shutdown()


def test_failing_initializer_has_no_finalizer(tmp_path: Path) -> None:
    """The error names the initializer."""
    with ndshare.ProcessPoolExecutor(
        1, initializer=misdeeds.throw_made, initargs=(ValueError, "no"), finalizer=tenure_tasks.fail
    ) as executor:
        error = executor.submit(abs, 1).exception()
    assert isinstance(error, ndshare.InitializerError)
    assert "throw_made" in str(error)


def test_worker_state_belongs_to_one_executor_and_worker() -> None:
    """A warm worker begins with an empty one; the caller has its own."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(tenure_tasks.keep, "a").result()
        executor.submit(tenure_tasks.keep, "b").result()
        assert executor.submit(tenure_tasks.state_size).result() == 2
        with ndshare.ProcessPoolExecutor(1) as other:
            assert other.submit(tenure_tasks.state_size).result() == 0
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(tenure_tasks.state_size).result() == 0
    assert ndshare.worker_state() is ndshare.worker_state()


@pytest.mark.leaves("open descriptor")  # memory of `multiprocessing`
def test_inherited_initializer_has_a_finalizer() -> None:
    """What can only be inherited is, with both."""
    import multiprocessing

    value = multiprocessing.Value("i", 0)

    def begin(shared: Any) -> None:
        ndshare.worker_state()["value"] = shared

    with ndshare.ProcessPoolExecutor(
        2, initializer=begin, initargs=(value,), finalizer=_add, start="fork"
    ) as executor:
        list(executor.map(tenure_tasks.affinity, range(6)))
    assert value.value >= 1


def _add() -> None:
    value = ndshare.worker_state()["value"]
    with value.get_lock():
        value.value += 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_caller_that_is_killed_takes_finalizers_along(number: int) -> None:
    """Nobody is left."""
    script = (
        "import ndshare, os, time\n"
        "from tests.pool import tenure_tasks\n"
        "executor = ndshare.ProcessPoolExecutor(1, finalizer=tenure_tasks.hang)\n"
        "print(executor.submit(os.getpid).result(), flush=True)\n"
        "executor.shutdown()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        time.sleep(0.2)
        program.send_signal(number)
    _until(lambda: gone(pid))


# ---------------------------------------------------------------------- who is there


def test_workers_say_what_they_have_done() -> None:
    """Tasks done, peak memory, state."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.workers() == []
        list(executor.map(misdeeds.same, range(10)))
        executor.submit(np.ones, 5_000_000).result()
        (status,) = executor.workers()
        assert status.state == "idle"
        assert status.done == 11
        assert status.peak_bytes > 40_000_000
        running = executor.submit(time.sleep, 0.4)
        _until(running.running)
        (status,) = executor.workers()
        assert status.state == "running"
        assert status.done == 11


def test_restart_replaces_all_workers_and_no_task_notices() -> None:
    """What runs ends where it runs, what waits runs in new processes."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        list(executor.map(tenure_tasks.affinity, range(4)))
        before = {status.pid for status in executor.workers()}
        slow = executor.submit(time.sleep, 0.5)
        _until(slow.running)
        waiting = [executor.submit(os.getpid) for _ in range(30)]
        executor.restart()
        after = [executor.submit(os.getpid) for _ in range(30)]
        assert slow.result() is None
        assert not {future.result() for future in after} & before
        assert all(future.result() for future in waiting)
        _until(lambda: all(gone(pid) for pid in before))
        executor.restart()
        last = executor.submit(os.getpid).result()
        executor.restart()
    _until(lambda: gone(last))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.restart()


def test_shutdown_with_a_timeout_says_what_still_runs() -> None:
    """The tasks go on."""
    executor = ndshare.ProcessPoolExecutor(1)
    future = executor.submit(time.sleep, 0.6)
    with pytest.raises(TimeoutError, match="1 tasks are not finished"):
        executor.shutdown(timeout=0.1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    executor.shutdown(timeout=30)
    assert future.result() is None
    with pytest.raises(ValueError, match="wait=False"):
        executor.shutdown(wait=False, timeout=1)


# ---------------------------------------------------------------------- a bounded backlog


def test_submit_waits_while_max_pending_tasks_are_unfinished() -> None:
    """From several threads, with callbacks, with cancellation: never more."""
    most = 0
    with ndshare.ProcessPoolExecutor(2, max_pending=4) as executor:
        pool = executor._pool

        def many(count: int) -> list[int]:
            nonlocal most
            futures = []
            for index in range(count):
                future = executor.submit(misdeeds.same, index)
                most = max(most, pool.pending)
                if index % 3 == 0:
                    future.add_done_callback(lambda _: None)
                futures.append(future)
            return [future.result() for future in futures]

        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            for result in threads.map(many, [60] * 3):
                assert result == list(range(60))
        assert list(executor.map(misdeeds.same, range(50))) == list(range(50))
        assert list(executor.map(misdeeds.same, range(50), buffersize=20)) == list(range(50))
        assert list(executor.map(misdeeds.same, range(50), chunksize="auto")) == list(range(50))
    assert most <= 4


def test_submit_in_a_callback_of_a_full_executor() -> None:
    """The thread that runs callbacks waits and hears the workers meanwhile."""
    done = threading.Event()
    with ndshare.ProcessPoolExecutor(1, max_pending=1) as executor:

        def again(future: Any) -> None:
            if future.result() < 5:
                executor.submit(misdeeds.same, future.result() + 1).add_done_callback(again)
            else:
                done.set()

        executor.submit(misdeeds.same, 0).add_done_callback(again)
        assert done.wait(30)


def test_full_executor_raises_if_asked_to_and_cancelling_makes_room() -> None:
    """The text says how many there are."""
    with ndshare.ProcessPoolExecutor(1, max_pending=2, when_full="raise") as executor:
        first = executor.submit(time.sleep, 0.4)
        second = executor.submit(misdeeds.same, 2)
        with pytest.raises(queue.Full, match="max_pending is 2"):
            executor.submit(misdeeds.same, 3)
        assert second.cancel()
        third = executor.submit(misdeeds.same, 4)
        assert first.result() is None
        assert third.result() == 4


def test_who_waits_to_submit_hears_of_the_end() -> None:
    """Shut down by another thread, it is refused."""
    executor = ndshare.ProcessPoolExecutor(1, max_pending=1)
    executor.submit(time.sleep, 0.5)
    timer = threading.Timer(0.1, executor.shutdown, kwargs={"wait": False})
    timer.start()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    timer.join()
    executor.shutdown()


# ---------------------------------------------------------------------- processors


def test_workers_run_on_their_processors_and_the_next_executor_s_anywhere() -> None:
    """One set per worker, by number or by the name of a node."""
    allowed = sorted(os.sched_getaffinity(0))
    one, other = [allowed[0]], [allowed[-1]]
    with ndshare.ProcessPoolExecutor(2, cpus=[set(one), allowed[-1]]) as executor:
        for number, where in executor.map(tenure_tasks.affinity, range(8)):
            assert where == (one, other)[number or 0]
        assert executor.submit(default_workers).result() == 1
    with ndshare.ProcessPoolExecutor(2) as executor:
        assert executor.submit(tenure_tasks.affinity).result()[1] == allowed
    if Path("/sys/devices/system/node/node0").exists():
        with ndshare.ProcessPoolExecutor(1, cpus=["node0"]) as executor:
            assert set(executor.submit(tenure_tasks.affinity).result()[1]) <= set(allowed)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"cpus": "node0"}, TypeError, r"written \['node0'\]"),
        ({"cpus": 3}, TypeError, "cpus must be a sequence"),
        ({"cpus": []}, ValueError, "at least one entry"),
        ({"cpus": [{10_000}]}, ValueError, "allowed are the processors of this process"),
        ({"cpus": [set()]}, ValueError, "at least one for each worker"),
        ({"cpus": [{"a"}]}, TypeError, "numbers of processors"),
        ({"cpus": ["node9999"]}, ValueError, "'node9999'; this machine has"),
        ({"cpus": ["../node0"]}, ValueError, "this machine has"),
        ({"max_pending": 0}, ValueError, "max_pending must be at least 1"),
        ({"when_full": "drop"}, ValueError, "when_full must be 'wait' or 'raise'"),
        ({"finalizer": 3}, TypeError, "finalizer must be callable"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options: Any, error: type[Exception], text: str) -> None:
    """No executor is made."""
    with pytest.raises(error, match=text):
        ndshare.ProcessPoolExecutor(1, **options)
