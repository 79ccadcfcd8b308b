"""Whatever a task does, it reaches the caller as that task's outcome, soon, and the pool goes on."""

from __future__ import annotations

import functools
import os
import pickle
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._processes import crew
from tests import misdeeds
from tests.kernel import gone, state

_SOON_S = 2.0
_KILL = int(signal.SIGKILL)


@pytest.fixture
def executor() -> Iterator[ndshare.ProcessPoolExecutor]:
    """Two workers that have answered something, so that a test measures its own failure only."""
    with ndshare.ProcessPoolExecutor(2) as pool:
        list(pool.map(misdeeds.same, range(4)))
        yield pool


def _outcome(future: Any, within: float = _SOON_S) -> BaseException:
    """The error of a future that has to come soon."""
    error = future.exception(timeout=within)
    assert error is not None, f"the task returned {future.result()!r}"
    return error


def _goes_on(executor: ndshare.ProcessPoolExecutor) -> None:
    """The pool still runs tasks, small and large."""
    assert list(executor.map(misdeeds.same, range(20), timeout=10)) == list(range(20))
    array = executor.submit(misdeeds.filled, 300_000, 7.0).result(10)
    assert array.shape == (300_000,)
    assert (array == 7.0).all()


# ---------------------------------------------------------------------- errors that travel

# (task, its error, a pattern in the error's text, a pattern in the worker's traceback or None)
_ERRORS: dict[str, tuple[Callable[[], Any], type[BaseException], str, str | None]] = {
    "argument": (
        functools.partial(misdeeds.same, misdeeds.Unpicklable()), pickle.PicklingError, "stays at home", None
    ),
    "argument that does not unpickle": (
        functools.partial(misdeeds.same, misdeeds.FailsWhenRebuilt()), ValueError, "not a number", "unpack"
    ),
    "argument that exits when unpickled": (
        functools.partial(misdeeds.same, misdeeds.ExitWhenRebuilt()), SystemExit, "rebuilt", "unpack"
    ),
    "result": (
        functools.partial(misdeeds.make, misdeeds.Unpicklable), pickle.PicklingError, "stays at home", "__reduce__"
    ),
    "result that does not unpickle": (
        functools.partial(misdeeds.make, misdeeds.FailsWhenRebuilt), ValueError, "not a number", None
    ),
    "result that exits when unpickled": (
        functools.partial(misdeeds.make, misdeeds.ExitWhenRebuilt), SystemExit, "rebuilt", None
    ),
    "exception": (functools.partial(misdeeds.throw_made, ValueError, "no good"), ValueError, "no good", "throw_made"),
    "exception that does not pickle": (
        functools.partial(misdeeds.throw_made, misdeeds.UnpicklableError, "with a lock"),
        ndshare.RemoteError, "UnpicklableError.*with a lock.*could not be sent", "throw_made",
    ),
    "exception that does not unpickle": (
        functools.partial(misdeeds.throw_made, misdeeds.NeverAgainError, 1, 2),
        ndshare.RemoteError, "NeverAgainError: 1 and 2", "throw_made",
    ),
    "exception with a constructor of its own": (
        functools.partial(misdeeds.throw_made, misdeeds.TwoArgumentsError, 1, 2),
        misdeeds.TwoArgumentsError, "1 and 2", "throw_made",
    ),
    "exception without text": (
        functools.partial(misdeeds.throw_made, misdeeds.NoTextError), misdeeds.NoTextError, "", "NoTextError"
    ),
    "SystemExit": (functools.partial(misdeeds.throw_made, SystemExit, 3), SystemExit, "3", "throw_made"),
    "KeyboardInterrupt": (
        functools.partial(misdeeds.throw_made, KeyboardInterrupt, "own"), KeyboardInterrupt, "own", "throw_made"
    ),
    "GeneratorExit": (functools.partial(misdeeds.throw_made, GeneratorExit), GeneratorExit, "", "throw_made"),
    "BaseException": (
        functools.partial(misdeeds.throw_made, misdeeds.OddError, "odd"), misdeeds.OddError, "odd", "throw_made"
    ),
    "recursion": (misdeeds.recurse, RecursionError, "", "recurse"),
    "recursion while pickling": (misdeeds.deep, RecursionError, "", None),
    "no memory": (
        functools.partial(misdeeds.hungry, 200 << 20), MemoryError, "", "hungry"
    ),
}  # fmt: skip


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except ValueError:
        return ""


@pytest.mark.parametrize("case", list(_ERRORS))
def test_task_that_fails_raises_at_the_caller_with_the_workers_traceback(
    executor: ndshare.ProcessPoolExecutor, case: str
) -> None:
    """Each way to fail in Python reaches the caller within 2 s as the task's error, and the pool goes on."""
    task, kind, pattern, trace = _ERRORS[case]
    submitted = _outcome(executor.submit(task))
    with pytest.raises(kind) as caught:
        list(executor.map(misdeeds.call, [task], timeout=_SOON_S))
    for error in (submitted, caught.value):
        assert isinstance(error, kind)
        assert re.search(pattern, _text(error), re.DOTALL), _text(error)
        if trace is not None:
            assert re.search(trace, str(error.__cause__)), repr(error.__cause__)
    _goes_on(executor)


# ---------------------------------------------------------------------- processes that end

_ENDS: dict[str, tuple[Callable[[], Any], int | None, int | None]] = {
    "os._exit(0)": (functools.partial(misdeeds.leave, 0), 0, None),
    "os._exit(7)": (functools.partial(misdeeds.leave, 7), 7, None),
    **{
        name: (functools.partial(misdeeds.end_by, int(number)), None, int(number))
        for name, number in signal.Signals.__members__.items()
        if name in {"SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGTERM", "SIGFPE", "SIGHUP"}
    },
}


@pytest.mark.parametrize("case", list(_ENDS))
def test_worker_that_ends_fails_its_task_and_says_how(
    executor: ndshare.ProcessPoolExecutor, case: str
) -> None:
    """The task of a worker that dies gets a `WorkerDiedError` that names task, process and signal, within 2 s."""
    task, code, number = _ENDS[case]
    future = executor.submit(task)
    error = _outcome(future)
    assert isinstance(error, ndshare.WorkerDiedError)
    assert (error.exit_code, error.signal_number) == (code, number)
    assert error.pid > 0
    assert "misdeeds" in str(error)
    _goes_on(executor)


@pytest.mark.parametrize("face", ["submit", "map"])
def test_one_killed_item_of_a_hundred_costs_one_result(
    executor: ndshare.ProcessPoolExecutor, face: str
) -> None:
    """100 items of which one kills its worker: 99 results and one `WorkerDiedError`."""
    if face == "submit":
        futures = [executor.submit(misdeeds.end_if, i, 37) for i in range(100)]
        outcomes = [f.exception(10) or f.result(10) for f in futures]
    else:
        outcomes = []
        for i in range(100):
            results = executor.map(misdeeds.end_if, [i], [37], timeout=10)
            try:
                outcomes.append(next(results))
            except ndshare.WorkerDiedError as error:
                outcomes.append(error)
    assert isinstance(outcomes.pop(37), ndshare.WorkerDiedError)
    assert outcomes == [i for i in range(100) if i != 37]


def test_map_with_a_killed_chunk_raises_at_that_chunk_only(executor: ndshare.ProcessPoolExecutor) -> None:
    """In a chunked `map` the results before the killed chunk arrive, then the error."""
    results = executor.map(misdeeds.end_if, range(100), [37] * 100, chunksize=10, timeout=20)
    seen = []
    with pytest.raises(ndshare.WorkerDiedError):
        seen.extend(results)  # extend keeps what came before the error
    assert seen == list(range(30))
    _goes_on(executor)


def test_retries_run_the_task_again_and_no_other(tmp_path: Path) -> None:
    """With ``retries`` a task whose worker died is tried again; one that raises is not."""
    with ndshare.ProcessPoolExecutor(2, retries=1) as executor:
        assert executor.submit(misdeeds.once, str(tmp_path / "mark")).result(10) == "second"
        error = _outcome(executor.submit(misdeeds.leave, 3), 10)
        assert isinstance(error, ndshare.WorkerDiedError)
        assert error.attempts == 2
        assert "2 times" in str(error)
        journal = tmp_path / "journal"
        with pytest.raises(ZeroDivisionError):
            executor.submit(_note_and_fail, str(journal)).result(10)
        assert journal.read_text().splitlines() == ["1"]
        _goes_on(executor)


def _note_and_fail(path: str) -> None:
    misdeeds.note(path, 1)
    raise ZeroDivisionError


def test_retried_task_gets_its_arguments_anew(tmp_path: Path) -> None:
    """What a task wrote into its argument before its worker died is not there at the second try."""
    for snapshot in ("start", "submit"):
        with ndshare.ProcessPoolExecutor(1, retries=2, snapshot=snapshot) as executor:  # type: ignore[arg-type]
            values = np.zeros(200_000)
            path = str(tmp_path / snapshot)
            assert executor.submit(_spoil_and_die, values, path).result(10) == 0.0


def _spoil_and_die(values: Any, path: str) -> float:
    before = float(values.sum())
    values += 1
    misdeeds.once(path)
    return before


def test_tasks_run_exactly_once_although_workers_die(
    executor: ndshare.ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Tasks that waited behind a killed one in the same worker run elsewhere, each exactly once."""
    list(executor.map(misdeeds.same, range(300)))  # tasks are known to be short: they travel by the dozen
    journal = str(tmp_path / "journal")
    futures = [
        executor.submit(misdeeds.leave, 1) if i % 50 == 25 else executor.submit(misdeeds.note, journal, i)
        for i in range(400)
    ]
    for i, future in enumerate(futures):
        if i % 50 == 25:
            assert isinstance(_outcome(future, 10), ndshare.WorkerDiedError)
        else:
            assert future.result(10) == i
    lines = [int(line) for line in Path(journal).read_text().splitlines()]
    assert sorted(lines) == [i for i in range(400) if i % 50 != 25]


# ---------------------------------------------------------------------- initializers

_INITIALIZERS: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (functools.partial(misdeeds.throw_made, ValueError, "not today"), "not today"),
    "raises BaseException": (functools.partial(misdeeds.throw_made, misdeeds.OddError, "odd"), "odd"),
    "sys.exit": (functools.partial(misdeeds.throw_made, SystemExit, 4), "SystemExit"),
    "KeyboardInterrupt": (functools.partial(misdeeds.throw_made, KeyboardInterrupt), "KeyboardInterrupt"),
    "does not unpickle": (functools.partial(misdeeds.same, misdeeds.FailsWhenRebuilt()), "not a number"),
    "os._exit": (functools.partial(misdeeds.leave, 5), "exit code 5"),
    "killed": (functools.partial(misdeeds.end_by, _KILL), "SIGKILL"),
}


@pytest.mark.parametrize("case", list(_INITIALIZERS))
def test_initializer_that_fails_fails_the_tasks_and_says_why(
    case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """An initializer that fails in any way fails the tasks that wait, within 2 s, as a `BrokenProcessPool`."""
    initializer, pattern = _INITIALIZERS[case]
    with ndshare.ProcessPoolExecutor(2) as other:  # the zygote is up: its start is not measured here
        assert other.submit(misdeeds.same, 1).result(20) == 1
        with ndshare.ProcessPoolExecutor(2, initializer=initializer) as executor:
            futures = [executor.submit(misdeeds.same, i) for i in range(6)]
            for future in futures:
                error = _outcome(future)
                assert isinstance(error, ndshare.InitializerError)
                assert re.search(pattern, str(error)), str(error)
            assert isinstance(_outcome(executor.submit(misdeeds.same, 1)), ndshare.InitializerError)
        assert list(other.map(misdeeds.same, range(5))) == list(range(5))
    assert "Traceback" not in capfd.readouterr().err


def test_initializer_that_does_not_pickle_fails_the_tasks() -> None:
    """An initializer that cannot be sent is reported by the tasks, not by a hang."""
    with ndshare.ProcessPoolExecutor(
        2, initializer=misdeeds.same, initargs=(misdeeds.Unpicklable(),)
    ) as executor:
        futures = [executor.submit(misdeeds.same, i) for i in range(6)]
        for future in futures:
            assert "stays at home" in str(_outcome(future, 10))


# ---------------------------------------------------------------------- processes around the worker


def _zygote_pid() -> int:
    (ear,) = crew.own_crew().zygotes.values()
    return ear.zygote.process.pid


def test_zygote_killed_fails_what_runs_and_nothing_else(executor: ndshare.ProcessPoolExecutor) -> None:
    """With its parent a worker dies too: running tasks fail clearly, those that wait run in new processes."""
    running = [executor.submit(misdeeds.nap, 60) for _ in range(2)]
    waiting = [executor.submit(misdeeds.same, i) for i in range(50)]
    time.sleep(0.3)
    os.kill(_zygote_pid(), signal.SIGKILL)
    for future in running:
        error = _outcome(future)
        assert isinstance(error, ndshare.WorkerDiedError)
        assert "parent process ended" in str(error)
    assert [future.result(10) for future in waiting] == list(range(50))
    _goes_on(executor)


def test_zygote_killed_while_idle_is_not_noticed(executor: ndshare.ProcessPoolExecutor) -> None:
    """It is started anew. A task that a worker has begun in the moment before its own end fails clearly."""
    for pause in (0.0, 0.0, 0.001, 0.3):
        while not crew.own_crew().zygotes:  # its end was heard after the old workers' last results
            executor.submit(misdeeds.same, 0).result(10)
        os.kill(_zygote_pid(), signal.SIGKILL)
        time.sleep(pause)
        futures = [executor.submit(misdeeds.same, i) for i in range(4)]
        for number, future in enumerate(futures):
            error = future.exception(10)
            if error is None:
                assert future.result() == number
            else:
                assert pause < 0.3
                assert isinstance(error, ndshare.WorkerDiedError)
                assert "parent process ended" in str(error)


def test_zygote_killed_before_the_first_task_is_started_anew() -> None:
    """A zygote that dies while it starts costs nothing but time."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(misdeeds.same, i) for i in range(4)]
        os.kill(_zygote_pid(), signal.SIGKILL)
        assert [future.result(20) for future in futures] == list(range(4))


def test_zygote_that_does_not_react_is_killed_at_shutdown(executor: ndshare.ProcessPoolExecutor) -> None:
    """A stopped zygote does not keep the interpreter from ending."""
    pid = _zygote_pid()
    os.kill(pid, signal.SIGSTOP)
    executor.shutdown()
    began = time.monotonic()
    ndshare.shutdown()
    assert time.monotonic() - began < 10
    assert gone(pid)


@pytest.mark.parametrize("case", [misdeeds.close_everything, misdeeds.close_and_return])
def test_worker_that_closes_all_descriptors_fails_its_task(
    executor: ndshare.ProcessPoolExecutor, case: Callable[[], Any]
) -> None:
    """A task that closes the worker's socket under it loses its worker, not the pool."""
    assert isinstance(_outcome(executor.submit(case)), ndshare.WorkerDiedError)
    _goes_on(executor)


def test_forked_child_of_a_task_that_outlives_its_worker_changes_nothing(
    executor: ndshare.ProcessPoolExecutor,
) -> None:
    """A child forked by a task holds the worker's socket open; the death of the worker is noticed all the same."""
    error = _outcome(executor.submit(misdeeds.fork_and_die, 1.0))
    assert isinstance(error, ndshare.WorkerDiedError)
    _goes_on(executor)


def test_forked_child_that_falls_out_of_its_task_does_not_answer(
    executor: ndshare.ProcessPoolExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    """A task that forks and returns twice has one result: that of the worker."""
    future = executor.submit(misdeeds.fork_and_return, 0.3)
    child = future.result(5)
    assert child > 0
    time.sleep(0.6)
    _goes_on(executor)
    assert capfd.readouterr().err == ""


def test_stopped_worker_that_is_killed_fails_its_task(executor: ndshare.ProcessPoolExecutor) -> None:
    """A worker that stopped itself can be killed like any other."""
    pids = set(executor.map(misdeeds.pid, range(50)))
    future = executor.submit(misdeeds.end_by, int(signal.SIGSTOP))
    deadline = time.monotonic() + 5
    stopped = 0
    while not stopped and time.monotonic() < deadline:
        stopped = next((pid for pid in pids if state(pid) == "T"), 0)
    os.kill(stopped, signal.SIGKILL)
    error = _outcome(future)
    assert isinstance(error, ndshare.WorkerDiedError)
    assert error.pid == stopped
    _goes_on(executor)


def test_cancel_of_queued_futures_releases_their_memory() -> None:
    """Arguments of a cancelled task are gone at once, copied (``snapshot="submit"``) or not."""
    import gc
    import weakref

    for snapshot in ("start", "submit"):
        with ndshare.ProcessPoolExecutor(1, snapshot=snapshot) as executor:  # type: ignore[arg-type]
            head = executor.submit(misdeeds.nap, 60.0)
            time.sleep(0.2)
            arrays = [np.full(1_000_000, float(i)) for i in range(20)]
            futures = [executor.submit(misdeeds.total, array) for array in arrays]
            seen = [weakref.ref(array) for array in arrays]
            before = ndshare.stats()
            del arrays
            cancelled = [future for future in futures if future.cancel()]
            assert len(cancelled) >= 18
            gc.collect()
            assert sum(ref() is not None for ref in seen) <= 20 - len(cancelled)
            after = ndshare.stats()
            if snapshot == "submit":
                busy = after.own_bytes - after.idle_bytes
                assert before.own_bytes - before.idle_bytes >= 150_000_000
                assert busy <= 8_100_000 * (20 - len(cancelled) + 1)
            executor.kill_workers()
            assert isinstance(head.exception(10), ndshare.WorkerDiedError)
