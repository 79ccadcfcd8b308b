"""The executor as programs and libraries use the one of `concurrent.futures`."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ndshare

_LATE_S = 30.0


@pytest.fixture
def executor() -> Iterator[ndshare.ProcessPoolExecutor]:
    """Two workers."""
    with ndshare.ProcessPoolExecutor(2) as made:
        yield made


class Counting(ndshare.ProcessPoolExecutor):
    """Wraps `submit`, as programs do to count, log or limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See `ndshare.ProcessPoolExecutor`."""
        self.calls += 1
        return super().submit(fn, *args, **kwargs)


def test_it_is_one_of_the_standard_library(executor: ndshare.ProcessPoolExecutor) -> None:
    """For `isinstance` and `issubclass`, with the attribute that tells its size."""
    assert isinstance(executor, concurrent.futures.ProcessPoolExecutor)
    assert issubclass(ndshare.ProcessPoolExecutor, concurrent.futures.ProcessPoolExecutor)
    assert executor._max_workers == 2
    assert executor.submit(abs, -1).result() == 1
    inherited = set(vars(concurrent.futures.ProcessPoolExecutor)) & {"submit", "map", "shutdown"}
    assert all(vars(ndshare.ProcessPoolExecutor).get(name) for name in inherited)


@pytest.mark.parametrize("name", sorted(vars(concurrent.futures.ProcessPoolExecutor)))
def test_no_public_method_of_the_standard_class_is_left(name: str) -> None:
    """Its machinery is not there: what is called must be ndshare's own."""
    if not name.startswith("_"):
        assert name in vars(ndshare.ProcessPoolExecutor)


def test_processes_have_the_interface_of_multiprocessing(executor: ndshare.ProcessPoolExecutor) -> None:
    """Number, life and exit code; `terminate` and `kill` end what runs."""
    assert executor._processes == {}
    pids = {executor.submit(os.getpid).result()}
    assert set(executor._processes) == pids
    for end, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
        future = executor.submit(time.sleep, _LATE_S)
        while not future.running():
            time.sleep(0.002)
        (pid,) = [status.pid for status in executor.workers() if status.running]
        process = executor._processes[pid]
        assert process.pid == pid
        assert process.is_alive()
        assert process.exitcode is None
        assert "started" in repr(process)
        process.join(0.01)
        getattr(process, end)()
        process.join(_LATE_S)
        assert not process.is_alive()
        assert process.exitcode == -number
        assert f"exitcode=-{int(number)}" in repr(process)
        error = future.exception()
        assert isinstance(error, ndshare.WorkerDiedError)
        assert error.pid == pid
        process.kill()  # nobody is hit


def test_processes_stay_the_same_objects_and_are_what_is_ended() -> None:
    """What a program puts in the place of a method is called, as with the standard class of 3.14."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        future = executor.submit(time.sleep, _LATE_S)
        while not future.running():
            time.sleep(0.002)
        (process,) = executor._processes.values()
        assert process is next(iter(executor._processes.values()))
        called = []
        process.kill = lambda: called.append(process.pid)  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="'terminate' or 'kill', got 'stop'"):
            executor._force_shutdown("stop")
        executor.kill_workers()
        process.join()
        assert called == [process.pid]
        assert isinstance(future.exception(), ndshare.WorkerDiedError)


def test_processes_have_ended_when_their_executor_has() -> None:
    """Although they may be working for another one."""
    executor = ndshare.ProcessPoolExecutor(1)
    executor.submit(abs, 1).result()
    (process,) = executor._processes.values()
    executor.shutdown()
    process.join()
    assert process.exitcode == 0
    assert executor._processes == {}
    assert executor.workers() == []


def test_workers_says_what_each_runs_and_since_when(executor: ndshare.ProcessPoolExecutor) -> None:
    """The task that it has begun, not those that it was sent."""
    assert executor.workers() == []
    for future in [executor.submit(abs, 1) for _ in range(200)]:
        future.result()
    before = time.time()
    futures = [executor.submit(time.sleep, 0.4) for _ in range(10)]
    while sum(future.running() for future in futures) < 2:
        time.sleep(0.002)
    statuses = executor.workers()
    after = time.time()
    assert {status.running for status in statuses} == {"time.sleep()"}
    assert {status.pid for status in statuses} == set(executor._processes)
    assert all(status.since is not None and before - 0.05 < status.since < after for status in statuses)
    assert sum(status.waiting for status in statuses) <= 8
    for future in futures[2:]:
        future.cancel()
    for future in futures[:2]:
        future.result()
    while any(status.running for status in executor.workers()):
        time.sleep(0.002)
    assert [status.since for status in executor.workers()] == [None, None]


@pytest.mark.parametrize("chunksize", [1, 3])
def test_subclass_that_wraps_submit_sees_the_calls_of_map(chunksize: int) -> None:
    """One for each chunk, as with the standard library."""
    with Counting(2) as executor:
        assert list(executor.map(pow, range(7), [2] * 7, chunksize=chunksize)) == [i * i for i in range(7)]
        assert executor.calls == -(-7 // chunksize)
        read: list[int] = []
        items = (read.append(i) or i for i in range(20))  # type: ignore[func-returns-value]
        results = executor.map(abs, items, chunksize=chunksize, buffersize=2)
        assert len(read) == 2 * chunksize
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError):
            list(executor.map(time.sleep, [1.0], timeout=0.05))
        with pytest.raises(ZeroDivisionError), np.errstate(all="raise"):
            list(executor.map(divmod, [1], [0]))


def test_submit_that_is_replaced_on_the_executor_sees_them_too(
    executor: ndshare.ProcessPoolExecutor,
) -> None:
    """As programs that trace calls do."""
    submit = executor.submit
    seen: list[object] = []

    def traced(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(fn)
        return submit(fn, *args, **kwargs)

    executor.submit = traced  # type: ignore[method-assign]
    assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert len(seen) == 2


def _rosen(x: Any) -> float:
    return float(((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum())


def test_scipy_takes_its_map(executor: ndshare.ProcessPoolExecutor) -> None:
    """`workers=` of its optimisers."""
    optimize = pytest.importorskip("scipy.optimize")
    options: dict[str, Any] = {"maxiter": 5, "popsize": 4, "seed": 1, "updating": "deferred", "polish": False}
    bounds = [(0.0, 2.0)] * 3
    alone = optimize.differential_evolution(_rosen, bounds, **options)
    got = optimize.differential_evolution(_rosen, bounds, workers=executor.map, **options)
    assert got.fun == alone.fun


def test_dask_takes_it_as_its_pool(executor: ndshare.ProcessPoolExecutor) -> None:
    """`pool=`, of its scheduler for processes; it asks for the number of workers."""
    dask = pytest.importorskip("dask")
    calls = [dask.delayed(pow)(i, 2) for i in range(6)]
    total = dask.delayed(sum)(calls)
    assert total.compute(scheduler="processes", pool=executor) == sum(i * i for i in range(6))


def test_emcee_takes_it_for_its_map(executor: ndshare.ProcessPoolExecutor) -> None:
    """`pool=`, an object with `map`."""
    emcee = pytest.importorskip("emcee")
    sampler = emcee.EnsembleSampler(8, 2, _rosen_log, pool=executor)
    sampler.run_mcmc(np.random.default_rng(1).normal(size=(8, 2)), 3)
    assert sampler.get_chain().shape == (3, 8, 2)


def _rosen_log(x: Any) -> float:
    return -_rosen(x)


def test_adaptive_asks_it_for_its_size(executor: ndshare.ProcessPoolExecutor) -> None:
    """By `isinstance` of the standard class."""
    adaptive = pytest.importorskip("adaptive")
    learner = adaptive.Learner1D(abs, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=5, executor=executor)
    assert learner.npoints >= 5


@pytest.mark.parametrize("guard", [True, False])
def test_processes_that_tasks_start_find_the_script_if_it_has_a_main_guard(
    run_script: Callable[..., Any], guard: bool
) -> None:
    """As in the standard executor, by every start method; a script without one does not run again."""
    source = f"""
import multiprocessing, ndshare
print("runs", flush=True)
def square(x): return x * x
def by(method, function):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.map(function, [-3])
if {"__name__ == '__main__'" if guard else "True"}:
    with ndshare.ProcessPoolExecutor(1) as executor:
        for method in ("fork", "spawn", "forkserver"):
            assert executor.submit(by, method, {"square" if guard else "abs"}).result(60) == [{9 if guard else 3}]
    print("works")
"""
    done = run_script(source, timeout=90)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["runs"] * (3 if guard else 1) + ["works"]
