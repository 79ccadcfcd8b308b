"""`ndshare.Pool`: the interface of `multiprocessing.Pool`, and what happens when workers die."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import logging
import multiprocessing
import multiprocessing.pool
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from tests import jobs


@pytest.fixture
def pool() -> Iterator[ndshare.Pool]:
    """Return a pool of two workers."""
    with ndshare.Pool(2) as pool:
        yield pool
    pool.join()


def _die_at_three(n: int) -> int:
    if n == 3:
        jobs.kill_self()
    return n


def _fail_at_three(n: int) -> int:
    if n == 3:
        raise ValueError("three")
    return n


def _die_once(directory: Path, n: int) -> int:
    if n == 3 and not (directory / "died").exists():
        (directory / "died").touch()
        jobs.kill_self()
    return n


def _deaf(started: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    started.touch()
    time.sleep(600)


# ---------------------------------------------------------------------- the interface


def test_every_method_gives_what_the_original_gives(pool: ndshare.Pool) -> None:
    """The blocking ones, the asynchronous ones, and the iterators."""
    squares = [n * n for n in range(20)]
    pairs = [(n, 2) for n in range(20)]
    assert pool.apply(pow, (3,), {"exp": 2}) == 9
    assert pool.apply_async(pow, (3, 2)).get() == 9
    assert pool.map(np.square, range(20)) == squares
    assert pool.map_async(np.square, iter(range(20)), 3).get(60) == squares
    assert pool.starmap(pow, iter(pairs)) == squares
    assert pool.starmap_async(pow, pairs, chunksize=7).get() == squares
    for chunksize in (1, 6):
        assert list(pool.imap(np.square, range(20), chunksize)) == squares
        assert list(pool.imap(np.square, iter(range(20)), chunksize)) == squares
        assert sorted(pool.imap_unordered(np.square, range(20), chunksize)) == squares
        assert sorted(pool.imap_unordered(np.square, iter(range(20)), chunksize)) == squares
    assert pool.map(abs, []) == list(pool.imap(abs, [])) == list(pool.imap(abs, iter([]))) == []


def test_it_is_a_pool_for_whoever_asks(pool: ndshare.Pool) -> None:
    """`isinstance`, and the names where libraries look."""
    assert isinstance(pool, multiprocessing.pool.Pool)
    assert pool._processes == pool.size == len(pool._pool) == 2  # type: ignore[attr-defined]
    assert all(worker.is_alive() and worker.pid for worker in pool._pool)
    result = pool.apply_async(jobs.pid)
    assert isinstance(result, multiprocessing.pool.AsyncResult)
    assert result.get() in [worker.pid for worker in pool._pool]
    assert not pool._cache
    assert repr(pool) == "<ndshare.Pool state=RUN pool_size=2>"


def test_async_results_say_how_they_are(pool: ndshare.Pool, tmp_path: Path) -> None:
    """`ready`, `successful`, `wait` and the timeouts of `multiprocessing`."""
    result = pool.apply_async(jobs.touch_and_wait, (tmp_path / "started", tmp_path / "go"))
    assert len(pool._cache) == 1
    result.wait(0.01)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    (tmp_path / "go").touch()
    assert result.get(60) == "went on"
    assert result.ready()
    assert result.successful()
    failed = pool.apply_async(jobs.fail, (KeyError, "k"))
    failed.wait()
    assert not failed.successful()
    for _ in range(2):
        with pytest.raises(KeyError, match="k"):
            failed.get()


def test_iterators_take_a_timeout_and_go_on_after_an_error(pool: ndshare.Pool, tmp_path: Path) -> None:
    """With single items each result comes, or its error; in chunks the error ends it, as in the original."""
    results = pool.imap(jobs.touch_and_wait, [], 1)
    assert next(results, None) is None
    slow = pool.imap(jobs.wait_for, [(tmp_path / "go").exists])
    with pytest.raises(multiprocessing.TimeoutError):
        slow.next(0.01)
    (tmp_path / "go").touch()
    assert slow.next(60) is None
    results = pool.imap(_fail_at_three, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(results) == [4, 5]
    results = pool.imap(_fail_at_three, range(6), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(results) == []


def test_an_error_has_the_traceback_of_the_worker(pool: ndshare.Pool) -> None:
    """As its cause, of the class that programs know."""
    with pytest.raises(ValueError, match="three") as caught:
        pool.map(_fail_at_three, range(6))
    assert type(caught.value.__cause__) is multiprocessing.pool.RemoteTraceback  # type: ignore[attr-defined]
    assert "_fail_at_three" in str(caught.value.__cause__)


def test_callbacks_have_run_when_a_job_is_ready(pool: ndshare.Pool) -> None:
    """One for the whole job; one that raises is logged and stops nobody."""
    told: list[Any] = []
    assert pool.map_async(jobs.add_one, range(9), 2, told.append, told.append).get() == list(range(1, 10))
    assert told == [list(range(1, 10))]
    pool.starmap_async(pow, [(2, 3)], callback=told.append).wait()
    assert told[1:] == [[8]]
    result = pool.apply_async(jobs.fail, (KeyError,), callback=told.append, error_callback=told.append)
    result.wait()
    assert isinstance(told[2], KeyError)


def test_a_callback_that_raises_is_logged(pool: ndshare.Pool, caplog: pytest.LogCaptureFixture) -> None:
    """The original stops receiving for ever."""
    with caplog.at_level(logging.ERROR, "ndshare"):
        assert pool.apply_async(abs, (-1,), callback=lambda _: 1 // 0).get(60) == 1
    assert "exception calling callback" in caplog.text
    assert pool.apply(abs, (-2,)) == 2


def test_callbacks_may_use_the_pool(pool: ndshare.Pool) -> None:
    """Ask for more, and wait for it."""
    found: list[int] = []
    pool.apply_async(abs, (-1,), callback=lambda one: found.append(pool.apply(jobs.add_one, (one,)))).wait(60)
    assert found == [2]


def test_join_returns_after_all_jobs_and_callbacks() -> None:
    """Of results that nobody waits for, and of inputs that are read in a thread."""
    told: list[int] = []
    pool = ndshare.Pool(2)
    for n in range(20):
        pool.apply_async(jobs.nap, (0.002, n), callback=told.append)
    results = pool.imap(jobs.add_one, (n for n in range(200)))
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.map(abs, [1])
    pool.join()
    assert sorted(told) == list(range(20))
    assert list(results) == list(range(1, 201))


def test_initializer_runs_in_each_worker() -> None:
    """Also where there is no job."""
    with ndshare.Pool(2, jobs.initialize, ("a",), maxtasksperchild=3) as pool:
        assert set(pool.map(_initialized, range(12), 1)) == {"a"}
    pool.join()


def _initialized(_: int) -> str:
    return "".join(jobs.initialized)


def test_a_failing_initializer_is_an_error_of_the_jobs() -> None:
    """The original starts workers for ever."""
    with ndshare.Pool(1, jobs.fail, (ValueError, "broken")) as pool, pytest.raises(ndshare.InitializerError):
        pool.map(abs, [1])
    pool.join()


def test_workers_are_replaced_after_so_many_tasks() -> None:
    """`maxtasksperchild` counts chunks."""
    with ndshare.Pool(1, maxtasksperchild=2) as pool:
        assert len(set(pool.map(jobs.pid, range(6), 1))) == 3
    pool.join()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"processes": 0}, ValueError, "Number of processes must be at least 1, got 0"),
        ({"processes": 1.5}, TypeError, r"processes must be an integer, got 1\.5"),
        ({"maxtasksperchild": 0}, ValueError, "positive int or None, got 0"),
        ({"initializer": 5}, TypeError, "initializer must be callable, got 5"),
        ({"context": "fork"}, TypeError, "context must be a context of multiprocessing or None, got 'fork'"),
        ({"retries": -1}, ValueError, "retries must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    """With what was got and what is allowed."""
    with pytest.raises(error, match=words):
        ndshare.Pool(**arguments)


@pytest.mark.parametrize("call", ["map", "map_async", "imap", "imap_unordered", "starmap"])
def test_bad_chunks_and_functions_are_refused_at_the_call(pool: ndshare.Pool, call: str) -> None:
    """With what was got and what is allowed."""
    with pytest.raises(ValueError, match="chunksize must be at least 1, got 0"):
        getattr(pool, call)(abs, [(1,)], chunksize=0)
    with pytest.raises(TypeError, match="func must be callable, got 3"):
        getattr(pool, call)(3, [(1,)])


def test_contexts_choose_where_workers_come_from() -> None:
    """Fork: what the program has in memory is there. Others: a clean process."""
    seen = jobs.seen
    seen.append("here")
    try:
        with ndshare.Pool(1, context=multiprocessing.get_context("fork")) as pool:
            assert pool.apply(_seen) == ["here"]
        pool.join()
        for method in ("spawn", "forkserver"):
            with ndshare.Pool(1, context=multiprocessing.get_context(method)) as pool:
                assert pool.apply(_seen) == []
            pool.join()
    finally:
        seen.clear()


def _seen() -> list[Any]:
    return jobs.seen


def test_a_pool_is_not_pickled(pool: ndshare.Pool) -> None:
    """As the original refuses it; errors of workers are pickled."""
    with pytest.raises(NotImplementedError, match="pool objects cannot be passed between processes"):
        pickle.dumps(pool)
    with pytest.raises(NotImplementedError, match="pool objects"):
        pool.apply(repr, (pool,))
    with pytest.raises(ndshare.WorkerDiedError) as caught:
        pool.map(_die_at_three, range(5))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_shared_arrays_arrive_as_the_same_memory(pool: ndshare.Pool) -> None:
    """Lambdas and closures are functions like others."""
    table = ndshare.share(np.zeros((4, 3)))

    def fill(n: int) -> None:
        table[n] = n

    pool.map(fill, range(4))
    assert np.array_equal(table, np.arange(4)[:, None] * np.ones(3))
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        pool.starmap(np.divide, [(np.ones(2), np.zeros(2))])


def test_the_same_large_array_is_hinted_at(pool: ndshare.Pool) -> None:
    """Where the method was called."""
    data = np.zeros(200_000)
    with pytest.warns(ndshare.RepeatedCopyWarning, match="200000") as caught:
        pool.starmap(np.dot, [(data, data)] * 3)
    assert caught[0].filename == __file__


# ---------------------------------------------------------------------- inputs


def test_an_input_without_length_is_read_a_little_ahead(pool: ndshare.Pool) -> None:
    """An endless one, too; what it raises comes after all results."""
    items = itertools.count()
    results = pool.imap(jobs.add_one, items)
    assert [next(results) for _ in range(50)] == list(range(1, 51))

    def broken() -> Iterator[int]:
        yield from range(5)
        raise KeyError("input")

    results = pool.imap(jobs.add_one, broken())
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(KeyError, match="input"):
        next(results)
    assert next(results, None) is None


def test_an_input_that_waits_for_a_result_does_not_hang(pool: ndshare.Pool) -> None:
    """It is read in a thread of its own."""
    given = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert given.wait(60)
        yield 2

    results = pool.imap(jobs.add_one, items())
    assert next(results) == 2
    given.set()
    assert list(results) == [3]


def test_a_pool_that_is_terminated_says_so_to_the_reader() -> None:
    """Not as if the input had ended."""
    pool = ndshare.Pool(1)
    results = pool.imap(jobs.nap, itertools.repeat(0.01))
    next(results)
    pool.terminate()
    pool.join()
    found = []
    while True:
        try:
            next(results)
        except StopIteration:
            break
        except Exception as error:
            found.append(error)
    assert "terminated before its input was read" in str(found[-1])


# ---------------------------------------------------------------------- deaths


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.map(_die_at_three, range(8)),
        lambda pool: pool.map_async(_die_at_three, range(8), 1).get(60),
        lambda pool: pool.starmap(_die_at_three, [(n,) for n in range(8)]),
        lambda pool: pool.apply(_die_at_three, (3,)),
        lambda pool: pool.apply_async(_die_at_three, (3,)).get(60),
        lambda pool: list(pool.imap(_die_at_three, range(8))),
        lambda pool: list(pool.imap(_die_at_three, iter(range(8)), 2)),
        lambda pool: list(pool.imap_unordered(_die_at_three, range(8))),
    ],
)
def test_a_worker_that_is_killed_fails_its_job_and_no_other(
    pool: ndshare.Pool, call: Callable[[ndshare.Pool], Any]
) -> None:
    """The original waits for ever."""
    with pytest.raises(ndshare.WorkerDiedError, match="_die_at_three"):
        call(pool)
    assert pool.map(jobs.add_one, range(20)) == list(range(1, 21))


def test_results_beside_a_death_are_not_lost(pool: ndshare.Pool) -> None:
    """With single items an iterator goes on."""
    results = pool.imap(_die_at_three, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ndshare.WorkerDiedError):
        next(results)
    assert list(results) == [4, 5]


@pytest.mark.parametrize("call", ["starmap", "imap"])
def test_tasks_of_dead_workers_are_tried_again_if_asked(tmp_path: Path, call: str) -> None:
    """`retries`, as of the executor."""
    with ndshare.Pool(2, retries=1) as pool:
        if call == "starmap":
            assert pool.starmap(_die_once, [(tmp_path, n) for n in range(8)]) == list(range(8))
        else:
            once = _Once(tmp_path)
            assert list(pool.imap(once, range(8))) == list(range(8))
    pool.join()


class _Once:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, n: int) -> int:
        return _die_once(self.directory, n)


def test_workers_that_are_killed_from_outside_are_replaced(pool: ndshare.Pool) -> None:
    """Idle ones, too."""
    for worker in pool._pool:
        os.kill(worker.pid, signal.SIGKILL)
    assert pool.map(jobs.add_one, range(30)) == list(range(1, 31))


@pytest.mark.parametrize("call", ["map", "imap", "imap_unordered", "apply"])
def test_a_call_that_takes_too_long_is_killed(call: str) -> None:
    """It alone: items with a limit are tasks of their own."""
    with ndshare.Pool(2, task_timeout=60) as pool:
        limited = ndshare.options(_sleep_at_three, timeout=0.3)
        with pytest.raises(ndshare.TaskTimeoutError, match="_sleep_at_three"):
            if call == "apply":
                pool.apply(limited, (3,))
            elif call == "map":
                pool.map(limited, range(6), 6)
            else:
                list(getattr(pool, call)(limited, range(6), 6))
        assert pool.map(jobs.add_one, range(5)) == list(range(1, 6))
    pool.join()


def _sleep_at_three(n: int) -> int:
    if n == 3:
        time.sleep(600)
    return n


def test_terminate_ends_everything_at_once(tmp_path: Path) -> None:
    """What runs fails, what waits is cancelled, whoever waits gets it; callbacks are called no more."""
    told: list[Any] = []
    pool = ndshare.Pool(1)
    running = pool.apply_async(jobs.touch_and_wait, (tmp_path / "started", tmp_path / "go"), {}, told.append)
    waiting = pool.map_async(abs, range(100), error_callback=told.append)
    jobs.wait_for((tmp_path / "started").exists)
    pool.terminate()
    pool.join()
    with pytest.raises(ndshare.WorkerDiedError):
        running.get(60)
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.get(60)
    assert told == []
    assert not pool._cache
    pool.terminate()


def test_terminate_kills_what_does_not_react(tmp_path: Path) -> None:
    """A task that ignores SIGTERM is killed a second later."""
    with ndshare.Pool(1) as pool:
        result = pool.apply_async(_deaf, (tmp_path / "started",))
        jobs.wait_for((tmp_path / "started").exists)
    pool.join()
    with pytest.raises(ndshare.WorkerDiedError, match="SIGKILL"):
        result.get(60)


def test_leaving_an_idle_pool_keeps_its_workers_warm() -> None:
    """The next pool has the same."""
    with ndshare.Pool(1) as pool:
        first = pool.apply(jobs.pid)
    pool.join()
    with ndshare.Pool(1) as pool:
        assert pool.apply(jobs.pid) == first
    pool.join()


def test_a_pool_that_is_forgotten_warns_and_is_given_back() -> None:
    """As the original's."""

    def forget() -> None:
        pool = ndshare.Pool(1)
        assert pool.apply(abs, (-1,)) == 1
        del pool
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool <ndshare.Pool state=RUN"):
        forget()


def test_a_pool_in_a_forked_child_is_refused(pool: ndshare.Pool) -> None:
    """The original hangs there."""
    assert pool.apply(abs, (-1,)) == 1
    with ndshare.ProcessPoolExecutor(1):
        pass
    pid = os.fork()
    if not pid:
        code = 1
        try:
            pool.map(abs, [1])
        except ndshare.InheritedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_join_of_a_running_pool_is_refused(pool: ndshare.Pool) -> None:
    """As by the original."""
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()


def test_a_program_that_ends_terminates_its_pools(run_script: Callable[..., Any]) -> None:
    """As with the original: what runs is not waited for."""
    run_script(
        "import time, ndshare\npool = ndshare.Pool(1)\nresult = pool.apply_async(time.sleep, (600,))\n"
    )


def test_several_threads_take_from_one_iterator(pool: ndshare.Pool) -> None:
    """Each result goes to one of them."""
    results = pool.imap(jobs.nap, [0.001] * 60)
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.extend(1 for _ in results)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 60


def test_ctrl_c_ends_a_map(tmp_path: Path) -> None:
    """One traceback; the program goes on, its workers too."""
    script = tmp_path / "program.py"
    script.write_text(
        "import time, ndshare\n"
        "with ndshare.Pool(2) as pool:\n"
        "    pool.map(abs, [1])\n"
        "    print('up', flush=True)\n"
        "    try:\n"
        "        pool.map(time.sleep, [600] * 4)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', pool.map(abs, [-2]), flush=True)\n"
        "pool.join()\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        time.sleep(0.3)
        program.send_signal(signal.SIGINT)
        rest = program.communicate(timeout=60)[0]
    assert rest == "interrupted [2]\n"
    assert program.returncode == 0
