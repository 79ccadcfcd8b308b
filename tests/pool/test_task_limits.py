"""Time limits, tries and priorities of tasks, and futures that end theirs: no other task ever notices."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._processes import Worker, frames
from tests import misdeeds
from tests.pool import limit_tasks

pytestmark = pytest.mark.once


def _until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---------------------------------------------------------------------- time limits


def test_task_past_its_limit_fails_alone() -> None:
    """Its worker is killed; what waits runs elsewhere, each once."""
    runs = ndshare.zeros((2, 40))
    with ndshare.ProcessPoolExecutor(2) as executor:
        began = time.monotonic()
        late = executor.submit(ndshare.options(limit_tasks.note, timeout=0.3), runs, 0, 60.0)
        others = [executor.submit(limit_tasks.note, runs, index, 0.005) for index in range(1, 40)]
        assert [other.result() for other in others] == list(range(1, 40))
        with pytest.raises(ndshare.TaskTimeoutError, match=r"note\(\) took longer than 0\.3 s") as caught:
            late.result()
        assert time.monotonic() - began >= 0.3
    assert isinstance(caught.value, TimeoutError)
    assert not isinstance(caught.value, concurrent.futures.BrokenExecutor)
    assert caught.value.seconds == 0.3
    assert caught.value.attempts == 1
    assert runs[0].tolist() == [1.0] * 40
    assert runs[1].tolist() == [0.0, *[1.0] * 39]


def test_task_timeout_is_the_limit_of_all_tasks_and_options_come_first() -> None:
    """The executor's limit holds for `submit` and `map`; a function may have another one."""
    with ndshare.ProcessPoolExecutor(2, task_timeout=0.2) as executor:
        assert isinstance(executor.submit(time.sleep, 60).exception(), ndshare.TaskTimeoutError)
        assert executor.submit(ndshare.options(time.sleep, timeout=30), 0.5).result() is None
        results = executor.map(misdeeds.same, range(50), chunksize=10)
        assert list(results) == list(range(50))


def test_map_with_a_limit_gives_it_to_each_item() -> None:
    """A chunk of short items takes longer than the limit of one; the late item alone is missing."""
    runs = ndshare.zeros((2, 12))
    limited = ndshare.options(limit_tasks.note, timeout=0.25)
    seconds = [0.04] * 8 + [60.0] + [0.04] * 3
    with ndshare.ProcessPoolExecutor(1) as executor:
        results = executor.map(limited, [runs] * 12, range(12), seconds, chunksize=12)
        assert [next(results) for _ in range(8)] == list(range(8))
        with pytest.raises(ndshare.TaskTimeoutError):
            next(results)
    assert runs[1, :9].tolist() == [1.0] * 8 + [0.0]


def test_limit_does_not_count_waiting_nor_the_initializer() -> None:
    """It begins when a worker takes the task."""
    with ndshare.ProcessPoolExecutor(
        1, initializer=time.sleep, initargs=(0.5,), task_timeout=0.4
    ) as executor:
        futures = [executor.submit(time.sleep, 0.05) for _ in range(12)]
        assert [future.result() for future in futures] == [None] * 12


def test_limit_holds_while_nobody_waits_and_for_a_stopped_worker() -> None:
    """The I/O thread sees to it, and SIGKILL ends what SIGSTOP has stopped."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        future = executor.submit(ndshare.options(time.sleep, timeout=0.2), 60)
        _until(future.running)
        os.kill(executor.workers()[0].pid, signal.SIGSTOP)
        _until(future.done)
        assert isinstance(future.exception(), ndshare.TaskTimeoutError)
        assert executor.submit(misdeeds.same, 3).result() == 3


def test_retries_run_a_late_task_again_as_after_a_death() -> None:
    """A time-out counts as the death that it is; an exception does not."""
    runs = ndshare.zeros((2, 1))
    with ndshare.ProcessPoolExecutor(1, initializer=limit_tasks.ready) as executor:
        late = executor.submit(ndshare.options(limit_tasks.note, timeout=0.3, retries=2), runs, 0, 60.0)
        error = late.exception()
        assert isinstance(error, ndshare.TaskTimeoutError)
        assert error.attempts == 3
        assert "for the 3. time" in str(error)
        assert runs[0, 0] == 3.0
        again = executor.submit(ndshare.options(misdeeds.throw_made, retries=3), ValueError, "once")
        assert str(again.exception()) == "once"
        killed = executor.submit(ndshare.options(limit_tasks.die, retries=1)).exception()
        assert isinstance(killed, ndshare.WorkerDiedError)
        assert killed.attempts == 2


def test_retries_with_arguments_that_were_read_at_submit() -> None:
    """They are there for the second try, and unchanged by the first."""
    array = np.arange(300_000.0)

    def spoil(values: Any, runs: Any) -> float:
        total = float(values.sum())
        values[:] = -1.0
        runs[0] += 1
        time.sleep(60 if runs[0] == 1 else 0)
        return total

    runs = ndshare.zeros(1)
    with ndshare.ProcessPoolExecutor(1, snapshot="submit") as executor:
        future = executor.submit(ndshare.options(spoil, timeout=0.3, retries=1), array, runs)
        array[:] = 0.0
        assert future.result() == np.arange(300_000.0).sum()
    assert runs[0] == 2.0


def test_answer_and_kill_agree_who_was_first() -> None:
    """A task that has its answer is not killed, though nobody has read it; what it was sent beside goes on."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(misdeeds.same).result()
        pool = executor._pool
        (worker,) = pool.workers
        future = executor.submit(misdeeds.same, 1)
        with pool.hub.lock:  # nobody reads
            if worker.inflight:
                seq = next(iter(worker.inflight))
                _until(lambda: worker.board[frames.cell(worker.row, seq)] == frames.ANSWERED)
                assert not worker.kill(seq)
            assert not future.kill()
        assert future.result() == 1
        assert executor.submit(os.getpid).result() == worker.pid


def test_killed_worker_ends_by_itself_if_the_signal_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was claimed for death has no answer, and the next task finds another worker."""
    runs = ndshare.zeros((2, 3))
    with ndshare.ProcessPoolExecutor(1) as executor:
        first = executor.submit(limit_tasks.note, runs, 0, 0.3)
        _until(first.running)
        pid = executor._pool.workers[0].pid
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "signal", lambda *_: None)
            assert first.kill()
        others = [executor.submit(limit_tasks.note, runs, index) for index in (1, 2)]
        assert isinstance(first.exception(), ndshare.TaskKilledError)
        assert [other.result() for other in others] == [1, 2]
        assert executor._pool.workers[0].pid != pid
    assert runs.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


def test_many_tasks_that_take_about_their_limit(chaos_seed: int) -> None:
    """Whatever the moment, each ends by its result or its limit, and runs once."""
    rng = random.Random(chaos_seed)
    count = 150
    runs = ndshare.zeros((2, count))
    limited = ndshare.options(limit_tasks.note, timeout=0.02)
    with ndshare.ProcessPoolExecutor(2) as executor:
        futures = {
            executor.submit(
                limited if index % 3 == 0 else limit_tasks.note,
                runs,
                index,
                0.02 + rng.uniform(-0.002, 0.001) if index % 3 == 0 else rng.choice([0.0, 0.001]),
            ): index
            for index in range(count)
        }
        for future, index in futures.items():
            error = future.exception()
            assert error is None or isinstance(error, ndshare.TaskTimeoutError), repr(error)
            assert index % 3 == 0 or error is None
            assert runs[:, index].tolist() == [1.0, 1.0] or error is not None
    assert runs.max() == 1.0


def test_forked_child_that_returns_from_a_task_does_not_end_its_limit() -> None:
    """What the child says of the task is not heard."""

    def fork_and_wait() -> None:
        if os.fork() == 0:
            return
        time.sleep(60)

    with ndshare.ProcessPoolExecutor(1) as executor:
        future = executor.submit(ndshare.options(fork_and_wait, timeout=0.5))
        assert isinstance(future.exception(), ndshare.TaskTimeoutError)


# ---------------------------------------------------------------------- kill


def test_kill_ends_a_running_task_and_its_worker_alone() -> None:
    """The future fails with a sentence, is not tried again, and others run on."""
    with ndshare.ProcessPoolExecutor(2, retries=5) as executor:
        other = executor.submit(time.sleep, 0.6)
        doomed = executor.submit(time.sleep, 60)
        waiting = [executor.submit(misdeeds.same, index) for index in range(20)]
        _until(doomed.running)
        assert doomed.kill()
        with pytest.raises(ndshare.TaskKilledError, match=r"sleep\(\) was ended by kill\(\)"):
            doomed.result()
        assert [future.result() for future in waiting] == list(range(20))
        assert other.result() is None
        assert not doomed.kill()
        assert not other.kill()


def test_kill_does_not_end_what_has_not_begun() -> None:
    """For that there is `cancel`."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        first = executor.submit(time.sleep, 0.3)
        _until(first.running)
        second = executor.submit(misdeeds.same, 2)
        assert not second.kill()
        assert second.cancel()
        assert not second.kill()
        assert first.result() is None


# ---------------------------------------------------------------------- priorities


def test_priority_decides_who_is_sent_first() -> None:
    """Among tasks that wait; of equal ones the first comes first."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        first = executor.submit(time.sleep, 0.4)
        _until(first.running)
        asked = [0, 5, 0, -1, 5, 7, None]
        futures = [executor.submit(ndshare.options(time.monotonic, priority=p)) for p in asked]
        items = executor.map(ndshare.options(limit_tasks.when, priority=9), range(2))
        times = [future.result() for future in futures]
        assert np.argsort(times).tolist() == [5, 1, 4, 0, 2, 6, 3]
        assert max(items) < min(times)


# ---------------------------------------------------------------------- options


def test_options_call_pickle_and_look_like_the_function() -> None:
    """Called plainly it is the function; it has its name, and pickles by name or with its options."""
    limited = ndshare.options(misdeeds.same, timeout=3, priority=2)
    assert limited(5) == 5
    assert limited.__name__ == "same"
    assert limited.__wrapped__ is misdeeds.same  # type: ignore[attr-defined]
    assert limited.__doc__ == misdeeds.same.__doc__
    twin = pickle.loads(pickle.dumps(limited))
    assert twin.options == limited.options  # type: ignore[attr-defined]
    assert twin(6) == 6
    assert pickle.loads(pickle.dumps(limit_tasks.decorated)) is limit_tasks.decorated
    both = ndshare.options(limited, timeout=1, retries=4)
    assert both.options == (1, 4, 2)  # type: ignore[attr-defined]
    assert both.__wrapped__ is misdeeds.same  # type: ignore[attr-defined]
    assert "timeout=1" in repr(both)


def test_decorated_functions_and_methods_carry_their_options() -> None:
    """In a module, in a class, in a worker that has an executor of its own."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        error = executor.submit(limit_tasks.decorated, 60).exception()
        assert isinstance(error, ndshare.TaskTimeoutError)
        assert error.attempts == 2
        assert executor.submit(limit_tasks.decorated, 0).result() == executor.workers()[0].pid
        sleeper = limit_tasks.Sleeper()
        assert executor.submit(sleeper.rest, 0).result() == "rested"
        assert isinstance(executor.submit(sleeper.rest, 60).exception(), ndshare.TaskTimeoutError)
        assert executor.submit(_read, ndshare.options(len, timeout=7)).result() == (7, None, None)
        assert executor.submit(ndshare.options(max, timeout=7), 1, 2).result() == 2


def _read(function: Any) -> Any:
    return tuple(function.options)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds, got 0"),
        ({"timeout": float("nan")}, ValueError, "timeout must be more than 0"),
        ({"timeout": "3"}, TypeError, "timeout must be a number of seconds"),
        ({"retries": -1}, ValueError, "retries must be at least 0"),
        ({"priority": 1.5}, TypeError, "priority must be an integer"),
        ({"priority": True}, TypeError, "priority must be an integer"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options: Any, error: type[Exception], text: str) -> None:
    """At the call that made them."""
    with pytest.raises(error, match=text):
        ndshare.options(len, **options)
    with pytest.raises(error, match=text):
        ndshare.options(**options)
    with pytest.raises(TypeError, match="fn must be callable"):
        ndshare.options(3)  # type: ignore[call-overload]


def test_task_timeout_of_the_wrong_kind_is_refused() -> None:
    """No executor is made."""
    with pytest.raises(ValueError, match="task_timeout must be more than 0 seconds"):
        ndshare.ProcessPoolExecutor(1, task_timeout=-1)


def test_executor_whose_submit_is_somebodys_own_keeps_the_limit_of_a_map() -> None:
    """The calls that it sees carry the options."""

    class Mine(ndshare.ProcessPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            seen.append(fn)
            return super().submit(fn, *args, **kwargs)

    seen: list[Any] = []
    with Mine(1) as executor:
        assert list(executor.map(ndshare.options(abs, timeout=9), [-1, -2], chunksize=2)) == [1, 2]
        with pytest.raises(ndshare.TaskTimeoutError):
            list(executor.map(ndshare.options(time.sleep, timeout=0.1), [60]))
    assert [fn.options.timeout for fn in seen] == [9, 9, 0.1]


def test_items_of_unordered_and_measured_maps_have_the_options() -> None:
    """Limits make items tasks of their own; tries and priorities go to the pieces of what is left."""
    runs = ndshare.zeros((2, 20))
    limited = ndshare.options(limit_tasks.note, timeout=0.5)
    seconds = [60.0 if index == 5 else 0.0 for index in range(20)]
    with ndshare.ProcessPoolExecutor(2) as executor:
        results = executor.imap_unordered(limited, [runs] * 20, range(20), seconds, chunksize="auto")
        given = []
        with pytest.raises(ndshare.TaskTimeoutError):
            for result in results:
                given.append(result)  # noqa: PERF402
        results.close()
        assert set(given) <= set(range(20)) - {5}
        again = ndshare.options(limit_tasks.die_once, retries=1)
        counts = ndshare.zeros(30)
        assert list(executor.map(again, [counts] * 30, range(30), chunksize="auto")) == list(range(30))
        assert counts[7] == 2.0
    with ndshare.ProcessPoolExecutor(2, task_timeout=30) as executor:
        assert list(executor.map(abs, range(40), chunksize="auto")) == list(range(40))
