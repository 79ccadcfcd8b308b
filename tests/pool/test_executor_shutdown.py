"""How executors end: in order, by force, forgotten, and with the interpreter."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import ProcessPoolExecutor, WorkerDiedError
from tests import jobs
from tests.kernel import gone

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_HANG_S = 60


# ---------------------------------------------------------------------- shutdown


def test_submit_after_shutdown_is_refused() -> None:
    """Any number of shutdowns, and nothing after them."""
    executor = ProcessPoolExecutor(1)
    executor.shutdown()
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 5)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(pow, [2], [5])


def test_context_manager_waits_for_all_and_closes() -> None:
    """Leaving the block waits for what was submitted."""
    with ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(jobs.nap, 0.02, n) for n in range(10)]
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == list(range(10))
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)


def test_context_manager_left_by_an_error_waits_as_well() -> None:
    """An error in the block does not lose tasks."""
    futures = []
    with contextlib.suppress(ZeroDivisionError), ProcessPoolExecutor(2) as executor:
        futures.append(executor.submit(jobs.nap, 0.1, 5))
        raise ZeroDivisionError
    assert futures[0].result(0) == 5


def test_shutdown_without_waiting_finishes_what_was_submitted() -> None:
    """`wait=False` returns at once; tasks in the queue are run all the same."""
    executor = ProcessPoolExecutor(1)
    futures = [executor.submit(jobs.nap, 0.05, n) for n in range(4)]
    executor.shutdown(wait=False)
    assert not futures[-1].done()
    assert [future.result(_HANG_S) for future in futures] == [0, 1, 2, 3]


def test_shutdown_with_cancel_runs_what_has_begun_and_no_more(tmp_path: Path) -> None:
    """`cancel_futures` cancels what waits; what runs is finished."""
    executor = ProcessPoolExecutor(1)
    running = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    waiting = [executor.submit(jobs.add_one, n) for n in range(20)]
    jobs.wait_for((tmp_path / "started").exists)
    threading.Timer(0.1, (tmp_path / "go").touch).start()
    executor.shutdown(cancel_futures=True)
    assert running.result(0) == "went on"
    assert all(future.done() for future in waiting)
    assert sum(future.cancelled() for future in waiting) >= 15
    with pytest.raises(CancelledError):
        waiting[-1].result()


def test_shutdown_from_several_threads_returns_in_all() -> None:
    """Every thread that shuts down waits, and comes back."""
    executor = ProcessPoolExecutor(1)
    future = executor.submit(jobs.nap, 0.2, 1)
    threads = [threading.Thread(target=executor.shutdown) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_HANG_S)
    assert not any(thread.is_alive() for thread in threads)
    assert future.result(0) == 1


def test_shutdown_while_threads_submit_leaves_no_future_open() -> None:
    """Every `submit` that returned a future gets a result; the others are refused."""
    for _ in range(5):
        executor = ProcessPoolExecutor(2)
        futures: list[Future[int]] = []
        refused: list[BaseException] = []

        def flood(
            executor: ProcessPoolExecutor, futures: list[Future[int]], refused: list[BaseException]
        ) -> None:
            try:
                while True:
                    futures.append(executor.submit(jobs.add_one, 1))
            except RuntimeError as error:
                refused.append(error)

        threads = [threading.Thread(target=flood, args=(executor, futures, refused)) for _ in range(3)]
        for thread in threads:
            thread.start()
        jobs.wait_for(lambda futures=futures: len(futures) > 50)
        executor.shutdown()
        for thread in threads:
            thread.join(_HANG_S)
        assert len(refused) == 3
        assert not wait(futures, timeout=_HANG_S).not_done
        assert {future.result() for future in futures} == {2}


def test_shutdown_gives_shared_workers_back_warm() -> None:
    """The next executor is served by the same process; `ndshare.shutdown` ends it."""
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(jobs.pid).result(_HANG_S)
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(jobs.pid).result(_HANG_S) == pid
    ndshare.shutdown()
    jobs.wait_for(lambda: gone(pid))
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(jobs.pid).result(_HANG_S) != pid


def test_shutdown_of_the_module_finishes_open_executors() -> None:
    """`ndshare.shutdown` waits for what was submitted anywhere."""
    executor = ProcessPoolExecutor(1)
    futures = [executor.submit(jobs.nap, 0.02, n) for n in range(5)]
    ndshare.shutdown()
    assert [future.result(0) for future in futures] == list(range(5))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    ndshare.shutdown()


def test_shutdown_ends_workers_with_an_initializer() -> None:
    """Workers that belong to one executor end with it."""
    with ProcessPoolExecutor(2, initializer=jobs.initialize, initargs=(1,)) as executor:
        pids = {executor.submit(jobs.nap_pid, 0.05).result(_HANG_S) for _ in range(4)}
    for pid in pids:
        jobs.wait_for(lambda pid=pid: gone(pid))


def test_result_stays_valid_after_the_end() -> None:
    """Arrays that came from a worker outlive executor, workers and zygote."""
    with ProcessPoolExecutor(1) as executor:
        result = executor.submit(np.ones, 1_000_000).result(_HANG_S)
    ndshare.shutdown()
    result += 1
    assert result.sum() == 2e6


def test_executor_dropped_without_shutdown_finishes_its_tasks() -> None:
    """Futures of a forgotten executor are completed, and the executor itself is gone at once."""
    executor = ProcessPoolExecutor(1)
    gone = weakref.ref(executor)
    futures = [executor.submit(jobs.nap, 0.02, n) for n in range(5)]
    del executor
    assert gone() is None
    assert [future.result(_HANG_S) for future in futures] == list(range(5))


def test_executor_dropped_without_shutdown_gives_its_workers_back() -> None:
    """Dropping executors in a loop does not pile up processes."""
    pids = set()
    for _ in range(10):
        executor = ProcessPoolExecutor(1)
        pids.add(executor.submit(jobs.pid).result(_HANG_S))
        del executor
        gc.collect()
        time.sleep(0.02)
    assert len(pids) <= 3


def test_executor_dropped_in_a_cycle_is_no_trouble() -> None:
    """The garbage collector may find an executor in any thread, at any moment."""
    for _ in range(6):
        executor = ProcessPoolExecutor(1)
        cycle: list[Any] = [executor]
        cycle.append(cycle)
        future = executor.submit(jobs.add_one, 1)
        del executor, cycle
        gc.collect()
        assert future.result(_HANG_S) == 2


# ---------------------------------------------------------------------- terminate_workers, kill_workers


@pytest.mark.parametrize(
    ("method", "number"), [("terminate_workers", signal.SIGTERM), ("kill_workers", signal.SIGKILL)]
)
class TestByForce:
    """`terminate_workers` and `kill_workers` of Python 3.14."""

    def test_running_task_fails_and_waiting_ones_are_cancelled(
        self, method: str, number: int, tmp_path: Path
    ) -> None:
        """Nothing that waited is begun; workers are gone; the executor is closed."""
        executor = ProcessPoolExecutor(1)
        running = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "never")
        waiting = [executor.submit((tmp_path / f"ran_{n}").touch) for n in range(5)]
        jobs.wait_for((tmp_path / "started").exists)
        getattr(executor, method)()
        error = running.exception(_HANG_S)
        assert isinstance(error, WorkerDiedError)
        assert error.signal_number == number
        assert gone(error.pid)
        for future in waiting:
            with pytest.raises((CancelledError, WorkerDiedError)):
                future.result(_HANG_S)
        assert not list(tmp_path.glob("ran_*"))
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(abs, 1)

    def test_short_tasks_under_way_all_come_to_an_end(self, method: str, number: int) -> None:
        """A burst of batched tasks: each future is done, cancelled or failed, and none hangs."""
        executor = ProcessPoolExecutor(2)
        for _ in range(20):
            executor.submit(jobs.add_one, 1).result(_HANG_S)
        futures = [executor.submit(jobs.nap, 0.001, n) for n in range(2000)]
        getattr(executor, method)()
        assert not wait(futures, timeout=_HANG_S).not_done
        executor.shutdown()

    def test_idle_and_unused_executors_end_quietly(self, method: str, number: int) -> None:
        """Without a task, without a worker, twice, and after shutdown."""
        executor = ProcessPoolExecutor(2)
        getattr(executor, method)()
        executor = ProcessPoolExecutor(1)
        pid = executor.submit(jobs.pid).result(_HANG_S)
        getattr(executor, method)()
        getattr(executor, method)()
        executor.shutdown()
        jobs.wait_for(lambda: gone(pid))
        with ProcessPoolExecutor(1) as other:
            assert other.submit(jobs.add_one, 1).result(_HANG_S) == 2

    def test_other_executors_are_not_touched(self, method: str, number: int) -> None:
        """Workers of another executor go on."""
        with ProcessPoolExecutor(1) as other:
            future = other.submit(jobs.nap, 0.3, "fine")
            executor = ProcessPoolExecutor(1)
            executor.submit(jobs.nap, 60)
            getattr(executor, method)()
            executor.shutdown()
            assert future.result(_HANG_S) == "fine"

    def test_dead_workers_are_no_trouble(self, method: str, number: int) -> None:
        """A worker that has died already."""
        executor = ProcessPoolExecutor(1)
        assert isinstance(executor.submit(jobs.kill_self).exception(_HANG_S), WorkerDiedError)
        getattr(executor, method)()
        executor.shutdown()


# ---------------------------------------------------------------------- with the interpreter

_HEAD = """
import atexit, sys, threading, time
from ndshare import ProcessPoolExecutor

def slow_print(seconds, text):
    time.sleep(seconds)
    print(text)
    sys.stdout.flush()
    return text

"""


def test_interpreter_exit_without_shutdown_finishes_tasks(run_script: RunScript) -> None:
    """A script that ends with tasks in the queue runs them first, and exits with 0."""
    done = run_script(
        _HEAD
        + """
executor = ProcessPoolExecutor(1)
futures = [executor.submit(slow_print, 0.1, f"task {n}") for n in range(4)]
futures[-1].add_done_callback(lambda f: print("callback", f.result(), flush=True))
print("end of script", flush=True)
""",
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.split("\n")[:1] == ["end of script"]
    assert sorted(done.stdout.split("\n")[1:-1]) == [
        "callback task 3",
        "task 0",
        "task 1",
        "task 2",
        "task 3",
    ]


def test_interpreter_exit_after_shutdown_without_waiting_finishes_tasks(run_script: RunScript) -> None:
    """`shutdown(wait=False)`, then the end of the script."""
    done = run_script(
        _HEAD
        + """
executor = ProcessPoolExecutor(2)
for n in range(3):
    executor.submit(slow_print, 0.2, f"task {n}")
executor.shutdown(wait=False)
del executor
print("end of script", flush=True)
""",
        timeout=60,
    )
    assert done.stderr == ""
    for text in ("end of script", "task 0", "task 1", "task 2"):  # two may be in one line
        assert done.stdout.count(text) == 1


def test_interpreter_exit_with_a_dropped_executor_finishes_tasks(run_script: RunScript) -> None:
    """An executor nobody refers to, with tasks under way when the script ends."""
    done = run_script(
        _HEAD + "ProcessPoolExecutor(1).submit(slow_print, 0.5, 'task')\n",
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("task\n", "")


def test_interpreter_exit_while_another_thread_waits(run_script: RunScript) -> None:
    """A thread that is not a daemon gets its result while the main thread has ended."""
    done = run_script(
        _HEAD
        + """
executor = ProcessPoolExecutor(1)
def use():
    time.sleep(0.2)
    print(executor.submit(slow_print, 0.2, "task").result(), flush=True)
threading.Thread(target=use).start()
""",
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("task\ntask\n", "")


def test_submit_in_an_exit_handler_works_or_is_refused(run_script: RunScript) -> None:
    """In handlers that run before ndshare's own, `submit` works; in later ones it is refused."""
    done = run_script(
        """
import atexit
@atexit.register
def late():
    try:
        executor.submit(abs, -1)
    except RuntimeError as error:
        print("late:", error)
import ndshare
executor = ndshare.ProcessPoolExecutor(1)
@atexit.register
def early():
    print("early:", executor.submit(abs, -1).result())
""",
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout == "early: 1\nlate: cannot schedule new futures after shutdown\n"


@pytest.mark.parametrize(
    "how", ["sys.exit(3)", "raise ValueError('no')", "os._exit(4)", "os.kill(os.getpid(), 9)"]
)
def test_interpreter_ended_in_any_way_leaves_no_worker(run_script: RunScript, how: str) -> None:
    """However the script ends, its workers and zygote go with it."""
    done = run_script(
        f"""
import os, sys, time
from ndshare import ProcessPoolExecutor
executor = ProcessPoolExecutor(2)
futures = [executor.submit(time.sleep, 0.3) for _ in range(2)]
pids = [f.pid for f in []]
print(executor.submit(os.getpid).result(), executor.submit(os.getppid).result(), flush=True)
executor.submit(time.sleep, 0.1 if "exit(3)" in {how!r} or "raise" in {how!r} else 100)
{how}
""",
        check=False,
        timeout=60,
    )
    assert done.returncode == {"s": 3, "r": 1, "o": 4}[how[0]] if "kill" not in how else -9
    worker, zygote = map(int, done.stdout.split())
    jobs.wait_for(lambda: gone(worker) and gone(zygote))


def test_interpreter_exit_with_daemon_threads_that_use_the_executor(run_script: RunScript) -> None:
    """Daemon threads that submit and wait do not hang or crash the end of the interpreter."""
    done = run_script(
        _HEAD
        + """
executor = ProcessPoolExecutor(2)
def use():
    while True:
        executor.submit(abs, -1).result()
for _ in range(3):
    threading.Thread(target=use, daemon=True).start()
time.sleep(0.3)
""",
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_sigterm_of_a_worker_from_outside_is_told(tmp_path: Path) -> None:
    """Somebody else's signal is named in the error, and the next task finds a worker."""
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(jobs.pid).result(_HANG_S)
        future = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "never")
        jobs.wait_for((tmp_path / "started").exists)
        os.kill(pid, signal.SIGTERM)
        with pytest.raises(WorkerDiedError, match="SIGTERM"):
            future.result(_HANG_S)
        assert executor.submit(jobs.pid).result(_HANG_S) != pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(executor.submit(jobs.pid).result(_HANG_S), signal.SIGKILL)
        assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2
