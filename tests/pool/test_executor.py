"""`ProcessPoolExecutor.submit` and its futures: what users of `concurrent.futures` rely on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import operator
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import ProcessPoolExecutor
from tests import jobs

_HANG_S = 60  # nothing here takes so long; a guard, not a measurement


@pytest.fixture
def executor() -> Iterator[ProcessPoolExecutor]:
    """Return an executor of two workers."""
    with ProcessPoolExecutor(2) as executor:
        yield executor


# ---------------------------------------------------------------------- submit


def test_submit_with_arguments_calls_with_them(executor: ProcessPoolExecutor) -> None:
    """Positional and keyword arguments arrive as given, whatever the keywords are called."""
    future = executor.submit(jobs.capture, 1, self=2, fn=3, key="x")
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(_HANG_S) == ((1,), {"self": 2, "fn": 3, "key": "x"})


def test_submit_without_function_is_refused(executor: ProcessPoolExecutor) -> None:
    """The function is positional only."""
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(fn=jobs.identity, x=1)  # type: ignore[call-arg]


def test_submit_runs_in_another_process(executor: ProcessPoolExecutor) -> None:
    """Tasks do not run in the caller."""
    assert executor.submit(os.getpid).result(_HANG_S) != os.getpid()


@pytest.mark.parametrize(
    "function",
    [
        jobs.add_one,
        functools.partial(operator.add, 1),
        functools.partial(functools.partial(jobs.divide, 5), 1).func,
        jobs.Counter(1).add,
        lambda x: x + 1,
        np.float64(1).__add__,
        [1].__len__,
        len,
        str.upper,
        np.sqrt,
        jobs.Counter(3),
    ],
    ids=lambda function: getattr(function, "__qualname__", type(function).__name__),
)
def test_submit_with_any_kind_of_callable_gives_the_same_as_a_call(
    executor: ProcessPoolExecutor, function: Callable[..., Any]
) -> None:
    """Functions, partials, methods, builtins, ufuncs, lambdas and callable objects all work."""
    for arguments in ((4,), ("abc",), (), (7, 2)):
        try:
            expected = function(*arguments)
        except Exception as error:
            with pytest.raises(type(error)):
                executor.submit(function, *arguments).result(_HANG_S)
        else:
            assert executor.submit(function, *arguments).result(_HANG_S) == expected


def test_submit_of_a_closure_carries_its_cells(executor: ProcessPoolExecutor) -> None:
    """A nested function brings the variables it closes over, itself included."""
    factor = 3

    def factorial(n: int) -> int:
        return factor if n == 0 else n * factorial(n - 1)

    assert executor.submit(factorial, 4).result(_HANG_S) == 72


def test_submit_of_more_than_the_workers_can_run_finishes_all(executor: ProcessPoolExecutor) -> None:
    """Many more tasks than workers, all at once."""
    futures = [executor.submit(jobs.add_one, n) for n in range(3000)]
    assert [future.result(_HANG_S) for future in futures] == list(range(1, 3001))


def test_submit_from_many_threads_finishes_all(executor: ProcessPoolExecutor) -> None:
    """`submit` and `result` may be called from any thread."""
    results: dict[int, list[int]] = {}

    def use(base: int) -> None:
        results[base] = [executor.submit(jobs.add_one, base + n).result(_HANG_S) for n in range(100)]

    threads = [threading.Thread(target=use, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1000 * n: list(range(1000 * n + 1, 1000 * n + 101)) for n in range(8)}


def test_submit_starts_no_worker_before_it_is_needed() -> None:
    """An executor that is not used costs no process; one task at a time needs one worker."""
    with ProcessPoolExecutor(8) as executor:
        assert not executor._pool.workers
        pids = {executor.submit(jobs.pid).result(_HANG_S) for _ in range(10)}
        assert len(pids) == 1


def test_submit_of_slow_tasks_uses_every_worker(executor: ProcessPoolExecutor) -> None:
    """Two tasks that wait for each other both run: neither is queued behind the other."""
    futures = [executor.submit(jobs.nap_pid, 0.3) for _ in range(2)]
    assert len({future.result(_HANG_S) for future in futures}) == 2


def test_submit_of_a_slow_task_after_many_fast_ones_holds_up_nobody(
    executor: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """What is queued behind a slow head is run by the other worker."""
    for _ in range(50):
        executor.submit(jobs.add_one, 1).result(_HANG_S)
    slow = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    fast = [executor.submit(jobs.add_one, n) for n in range(500)]
    assert [future.result(_HANG_S) for future in fast] == list(range(1, 501))
    assert not slow.done()
    (tmp_path / "go").touch()
    assert slow.result(_HANG_S) == "went on"


# ---------------------------------------------------------------------- futures


def test_future_of_a_running_task_says_so(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """`running`, `done` and `cancel` tell the truth while a task runs."""
    future = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    jobs.wait_for((tmp_path / "started").exists)
    assert future.running()
    assert not future.done()
    assert not future.cancel()
    (tmp_path / "go").touch()
    assert future.result(_HANG_S) == "went on"
    assert future.done()
    assert not future.running()
    assert not future.cancelled()


def test_future_result_times_out_and_comes_later(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """A timeout raises `TimeoutError` and costs nothing: the result is there later."""
    future = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    (tmp_path / "go").touch()
    assert future.exception(_HANG_S) is None
    assert future.result() == "went on"


def test_future_cancelled_in_the_queue_never_runs(tmp_path: Path) -> None:
    """A queued future can be cancelled once and for all; its neighbours run."""
    with ProcessPoolExecutor(1) as executor:
        first = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
        jobs.wait_for((tmp_path / "started").exists)
        second = executor.submit((tmp_path / "second").touch)
        third = executor.submit(jobs.add_one, 1)
        called: list[Any] = []
        second.add_done_callback(called.append)
        assert second.cancel()
        assert second.cancel()
        assert second.cancelled()
        assert called == [second]
        (tmp_path / "go").touch()
        assert third.result(_HANG_S) == 2
        assert first.result(_HANG_S) == "went on"
        with pytest.raises(concurrent.futures.CancelledError):
            second.result(_HANG_S)
        assert second in wait([second], timeout=_HANG_S).done
    assert not (tmp_path / "second").exists()


def test_future_cancelled_lets_its_arguments_go_at_once(tmp_path: Path) -> None:
    """Cancelling drops the references to the arguments."""
    with ProcessPoolExecutor(1) as executor:
        executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
        jobs.wait_for((tmp_path / "started").exists)
        argument = jobs.Counter()
        gone = weakref.ref(argument)
        future = executor.submit(jobs.identity, argument)
        del argument
        assert gone() is not None
        assert future.cancel()
        assert gone() is None
        (tmp_path / "go").touch()


def test_future_callbacks_are_called_in_order_with_the_future(executor: ProcessPoolExecutor) -> None:
    """Callbacks run once each, in the order they were added; late ones at once."""
    called: list[tuple[str, Any]] = []
    finished = threading.Event()
    future = executor.submit(jobs.nap, 0.05, 7)
    future.add_done_callback(lambda f: called.append(("first", f.result())))
    future.add_done_callback(lambda f: called.append(("second", f.result())))
    future.add_done_callback(lambda _: finished.set())
    assert finished.wait(_HANG_S)
    future.add_done_callback(lambda f: called.append(("late", f.result())))
    assert called == [("first", 7), ("second", 7), ("late", 7)]


def test_callback_that_knows_its_future_keeps_nothing(executor: ProcessPoolExecutor) -> None:
    """A future is let go with its result, without the garbage collector, once the callbacks have run."""

    class Callback:
        future: Any = None

        def __call__(self, _: Any) -> None:
            called.set()

    called = threading.Event()
    callback = Callback()
    gc.disable()
    try:
        callback.future = executor.submit(jobs.nap, 0.05, 1)
        callback.future.add_done_callback(callback)
        assert called.wait(10)
        reference = weakref.ref(callback.future)
        del callback
        deadline = time.monotonic() + 5
        while reference() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert reference() is None
    finally:
        gc.enable()


def test_future_callback_that_raises_hinders_nobody(
    executor: ProcessPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a callback is logged; the other callbacks, the result and the pool are fine."""
    called = threading.Event()
    future = executor.submit(jobs.nap, 0.05, 7)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: called.set())
    assert future.result(_HANG_S) == 7
    assert called.wait(_HANG_S)
    assert "ZeroDivisionError" in caplog.text
    assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2


def test_future_callback_may_submit_and_wait(executor: ProcessPoolExecutor) -> None:
    """A callback can use the executor, even wait for its result, whichever thread it runs in."""
    answers: list[int] = []
    finished = threading.Event()

    def more(future: concurrent.futures.Future[int]) -> None:
        answers.append(future.result())
        answers.append(executor.submit(jobs.add_one, future.result()).result(_HANG_S))
        finished.set()

    executor.submit(jobs.nap, 0.05, 1).add_done_callback(more)
    assert finished.wait(_HANG_S)  # by the I/O thread
    finished.clear()
    future = executor.submit(jobs.nap, 0.05, 10)
    future.add_done_callback(more)
    assert future.result(_HANG_S) == 10  # by this thread
    assert finished.wait(_HANG_S)
    assert answers == [1, 2, 10, 11]


def test_future_callback_may_shut_the_executor_down() -> None:
    """`shutdown(wait=False)` in a callback does not wait for itself."""
    executor = ProcessPoolExecutor(1)
    finished = threading.Event()

    def end(_: object) -> None:
        executor.shutdown(wait=False)
        finished.set()

    executor.submit(jobs.nap, 0.05, 1).add_done_callback(end)
    assert finished.wait(_HANG_S)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.add_one, 1)


def test_future_result_may_be_asked_by_several_threads(executor: ProcessPoolExecutor) -> None:
    """Everybody who waits for one future gets its result."""
    future = executor.submit(jobs.nap, 0.2, 5)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(future.result(_HANG_S))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_HANG_S)
    assert results == [5] * 6


def test_future_of_one_executor_waited_for_while_another_works() -> None:
    """Executors of one process do not get into each other's way."""
    with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(1) as two:
        slow = one.submit(jobs.nap, 0.2, "slow")
        fast = [two.submit(jobs.add_one, n) for n in range(20)]
        assert [future.result(_HANG_S) for future in fast] == list(range(1, 21))
        assert slow.result(_HANG_S) == "slow"


def test_future_given_as_an_argument_is_refused_as_that_tasks_error(executor: ProcessPoolExecutor) -> None:
    """A future cannot be pickled: the task that is given one fails, others do not."""
    first = executor.submit(jobs.add_one, 1)
    second = executor.submit(jobs.identity, first)
    assert first.result(_HANG_S) == 2
    with pytest.raises(TypeError):
        second.result(_HANG_S)


# ---------------------------------------------------------------------- as_completed, wait, asyncio


def test_as_completed_yields_every_future_once(executor: ProcessPoolExecutor) -> None:
    """Finished ones come first, the same one given twice comes once."""
    early = executor.submit(jobs.add_one, 0)
    early.result(_HANG_S)
    late = executor.submit(jobs.nap, 0.2)
    assert list(as_completed([late, early, late], timeout=_HANG_S)) == [early, late]


def test_as_completed_times_out_on_the_unfinished(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """What is finished is yielded, then `TimeoutError` counts the rest."""
    done = executor.submit(jobs.add_one, 0)
    done.result(_HANG_S)
    open_ = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    found = []
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        found.extend(as_completed([done, open_], timeout=0.1))
    (tmp_path / "go").touch()
    assert open_.result(_HANG_S) == "went on"


def test_as_completed_keeps_no_future_that_it_yielded(executor: ProcessPoolExecutor) -> None:
    """A yielded future that the user drops is gone, result and all."""
    futures = [executor.submit(jobs.identity, jobs.Counter(n)) for n in range(4)]
    results = []
    gone = []
    while futures:
        for future in as_completed(futures, timeout=_HANG_S):
            futures.remove(future)
            results.append(future.result().value)
            gone.append(weakref.ref(future))
            del future
            assert gone[-1]() is None
            break
    assert sorted(results) == [0, 1, 2, 3]


def test_wait_returns_when_the_first_is_finished(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """FIRST_COMPLETED returns with the slow one still open."""
    slow = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    fast = executor.submit(jobs.nap, 0.05)
    done, open_ = wait([slow, fast], timeout=_HANG_S, return_when=FIRST_COMPLETED)
    assert (done, open_) == ({fast}, {slow})
    (tmp_path / "go").touch()
    done, open_ = wait([slow, fast, fast], timeout=_HANG_S, return_when=ALL_COMPLETED)
    assert (done, open_) == ({slow, fast}, set())


def test_wait_returns_at_the_first_exception(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """FIRST_EXCEPTION ignores results and stops at an error."""
    slow = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    fine = executor.submit(jobs.add_one, 1)
    bad = executor.submit(jobs.fail, ValueError, "bad")
    done, open_ = wait([slow, fine, bad], timeout=_HANG_S, return_when=FIRST_EXCEPTION)
    assert bad in done
    assert slow in open_
    (tmp_path / "go").touch()


def test_wait_times_out_with_what_is_finished(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """`wait` with a timeout returns both sets."""
    slow = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
    fast = executor.submit(jobs.add_one, 1)
    fast.result(_HANG_S)
    done, open_ = wait([slow, fast], timeout=0.1)
    assert (done, open_) == ({fast}, {slow})
    (tmp_path / "go").touch()


def test_asyncio_waits_for_futures(executor: ProcessPoolExecutor) -> None:
    """`wrap_future` and `run_in_executor` work, results and errors."""

    async def use() -> list[Any]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            asyncio.wrap_future(executor.submit(jobs.nap, 0.05, 1)),
            loop.run_in_executor(executor, jobs.add_one, 1),
            loop.run_in_executor(executor, jobs.fail, KeyError, "k"),
            return_exceptions=True,
        )

    one, two, error = asyncio.run(use())
    assert (one, two) == (1, 2)
    assert isinstance(error, KeyError)


def test_asyncio_cancels_a_queued_task(tmp_path: Path) -> None:
    """Cancelling the asyncio side cancels the queued task."""

    async def use(executor: ProcessPoolExecutor) -> None:
        executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
        jobs.wait_for((tmp_path / "started").exists)
        future = executor.submit((tmp_path / "ran").touch)
        wrapped = asyncio.wrap_future(future)
        await asyncio.sleep(0)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        await asyncio.sleep(0)
        assert future.cancelled()
        (tmp_path / "go").touch()

    with ProcessPoolExecutor(1) as executor:
        asyncio.run(use(executor))
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ZeroDivisionError, ("by zero",)),
        (KeyError, ("missing",)),
        (FileNotFoundError, (2, "no such file")),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "bad byte")),
        (SystemExit, (3,)),
        (KeyboardInterrupt, ()),
        (GeneratorExit, ()),
        (BaseException, ("base",)),
        (StopIteration, (4,)),
        (jobs.FalsyError, ()),
        (jobs.EmptyError, ()),
    ],
)
def test_exception_of_a_task_reaches_the_caller(
    executor: ProcessPoolExecutor, kind: type[BaseException], arguments: tuple[Any, ...]
) -> None:
    """Any exception is the task's outcome, with its type and arguments; the pool goes on."""
    future = executor.submit(jobs.fail, kind, *arguments)
    error = future.exception(_HANG_S)
    assert type(error) is kind
    assert error.args == arguments
    with pytest.raises(kind):
        future.result()
    assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2


def test_exception_of_a_task_carries_the_workers_traceback(executor: ProcessPoolExecutor) -> None:
    """The cause of the exception shows where in the worker it was raised."""
    error = executor.submit(jobs.fail, ValueError, "told you").exception(_HANG_S)
    assert error is not None
    text = str(error.__cause__)
    assert "raise kind(*args)" in text
    assert "ValueError: told you" in text
    assert "jobs.py" in text


def test_exception_of_a_task_keeps_no_arguments(executor: ProcessPoolExecutor) -> None:
    """A failed task lets its arguments go, in the caller and in the worker."""
    argument = jobs.Counter()
    gone = weakref.ref(argument)
    future = executor.submit(jobs.fail, ValueError, argument)
    assert isinstance(future.exception(_HANG_S), ValueError)
    del argument
    gc.collect()
    assert gone() is None


def test_exception_whose_constructor_takes_other_arguments_arrives(executor: ProcessPoolExecutor) -> None:
    """The classic mistake: its pickle could not be loaded."""
    with pytest.raises(jobs.TwoArgumentsError, match=r"1 and 2") as caught:
        executor.submit(jobs.raise_two_arguments).result(_HANG_S)
    assert "raise TwoArgumentsError(1, 2)" in str(caught.value.__cause__)
    assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2


def test_recursion_without_end_is_that_tasks_error(executor: ProcessPoolExecutor) -> None:
    """A RecursionError comes back, and the worker lives."""
    pid = executor.submit(jobs.pid).result(_HANG_S)
    with pytest.raises(RecursionError):
        executor.submit(jobs.depth, 0).result(_HANG_S)
    assert executor.submit(jobs.pid).result(_HANG_S) == pid


# What happens while something is taken apart or rebuilt: the deadlock cases of the standard library.

_LETHAL = [(os._exit, 1), (jobs.kill_self, signal.SIGKILL), (jobs.kill_self, signal.SIGSEGV)]
_HARMLESS = [(jobs.fail, ValueError), (jobs.fail, SystemExit, 1), (jobs.fail, MemoryError)]


@pytest.mark.parametrize("deed", _LETHAL, ids=lambda d: f"{d[0].__name__}{int(d[1])}")
@pytest.mark.parametrize("moment", ["unpickling the task", "running", "pickling the result"])
def test_worker_death_fails_its_task_and_no_other(
    executor: ProcessPoolExecutor, moment: str, deed: tuple[Any, ...]
) -> None:
    """Wherever the worker dies, the task fails with `WorkerDiedError`, and the others finish."""
    before = [executor.submit(jobs.nap, 0.001, n) for n in range(10)]
    if moment == "unpickling the task":
        victim = executor.submit(jobs.identity, jobs.WhenUnpickled(*deed))
    elif moment == "running":
        victim = executor.submit(*deed)
    else:
        victim = executor.submit(jobs.pickled_late, *deed)
    after = [executor.submit(jobs.add_one, n) for n in range(50)]
    error = victim.exception(_HANG_S)
    assert isinstance(error, ndshare.WorkerDiedError)
    assert isinstance(error, BrokenProcessPool)
    if deed[0] is os._exit:
        assert error.exit_code == 1
    else:
        assert error.signal_number == deed[1]
        assert signal.Signals(deed[1]).name in str(error)
    assert [future.result(_HANG_S) for future in before] == list(range(10))
    assert [future.result(_HANG_S) for future in after] == list(range(1, 51))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)


@pytest.mark.parametrize("deed", _HARMLESS, ids=lambda d: d[1].__name__)
@pytest.mark.parametrize(
    "moment",
    ["pickling the task", "unpickling the task", "pickling the result", "unpickling the result"],
)
def test_failure_to_pickle_is_that_tasks_error(
    executor: ProcessPoolExecutor, moment: str, deed: tuple[Any, ...]
) -> None:
    """What cannot be (un)pickled reaches the caller as that task's error, also at the caller's end."""
    before = [executor.submit(jobs.nap, 0.001, n) for n in range(5)]
    if moment == "pickling the task":
        victim = executor.submit(jobs.identity, jobs.WhenPickled(*deed))
    elif moment == "unpickling the task":
        victim = executor.submit(jobs.identity, jobs.WhenUnpickled(*deed))
    elif moment == "pickling the result":
        victim = executor.submit(jobs.pickled_late, *deed)
    else:
        victim = executor.submit(jobs.unpickled_late, *deed)
    after = [executor.submit(jobs.add_one, n) for n in range(20)]
    error = victim.exception(_HANG_S)
    # What exits while it is rebuilt would break an executor of the standard library.
    exits = deed[1] is SystemExit and moment.startswith("unpickling")
    assert type(error) is (ndshare.ExitError if exits else deed[1])
    assert isinstance(error, deed[1])
    assert isinstance(error, BrokenProcessPool) is exits
    assert [future.result(_HANG_S) for future in before] == list(range(5))
    assert [future.result(_HANG_S) for future in after] == list(range(1, 21))


@pytest.mark.parametrize("thing", ["lock", "generator", "frame"])
def test_unpicklable_argument_and_result_are_named(executor: ProcessPoolExecutor, thing: str) -> None:
    """Things that cannot travel fail their task with a TypeError or the like, in both directions."""

    def make() -> Any:
        if thing == "lock":
            return threading.Lock()
        if thing == "generator":
            return (n for n in range(3))
        return sys._getframe()

    with pytest.raises((TypeError, pickle.PicklingError)):
        executor.submit(jobs.identity, make()).result(_HANG_S)
    with pytest.raises((TypeError, pickle.PicklingError)):
        executor.submit(make).result(_HANG_S)
    assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2


def test_large_arguments_to_a_worker_that_dies_do_not_block(executor: ProcessPoolExecutor) -> None:
    """A worker that dies with much unread data in its socket leaves nobody waiting."""
    victims = [executor.submit(jobs.exit_now, n) for n in range(4)]
    futures = [executor.submit(np.sum, np.ones(1_000_000)) for _ in range(8)]
    for victim in victims:
        assert isinstance(victim.exception(_HANG_S), ndshare.WorkerDiedError)
    assert [float(future.result(_HANG_S)) for future in futures] == [1e6] * 8


# ---------------------------------------------------------------------- initializer, max_tasks_per_child


def test_initializer_runs_once_in_each_worker() -> None:
    """Every worker runs the initializer before its first task, and only once."""
    with ProcessPoolExecutor(2, initializer=jobs.initialize, initargs=("mark",)) as executor:
        futures = [executor.submit(jobs.nap_pid, 0.05) for _ in range(8)]
        assert len({future.result(_HANG_S) for future in futures}) == 2
        assert list(executor.map(jobs.what_was_initialized, range(20))) == [["mark"]] * 20


def test_initializer_is_positional_as_in_the_standard_library() -> None:
    """The order of the parameters is that of `concurrent.futures`."""
    with ProcessPoolExecutor(1, None, jobs.initialize, (1,)) as executor:
        assert executor.submit(jobs.what_was_initialized).result(_HANG_S) == [1]


def test_initializer_of_one_executor_does_not_show_in_another() -> None:
    """A worker with an initializer belongs to its executor."""
    with ProcessPoolExecutor(1, initializer=jobs.initialize, initargs=("mine",)) as executor:
        executor.submit(jobs.pid).result(_HANG_S)
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(jobs.what_was_initialized).result(_HANG_S) == []


def test_initializer_that_fails_breaks_what_waits_for_it() -> None:
    """Every task that waits fails as with the standard library, and the reason is told."""
    with ProcessPoolExecutor(2, initializer=jobs.failing_initializer, initargs=("no model",)) as executor:
        futures = [executor.submit(jobs.add_one, n) for n in range(4)]
        for future in futures:
            error = future.exception(_HANG_S)
            assert isinstance(error, BrokenProcessPool)
            assert isinstance(error, ndshare.InitializerError)
            assert "no model" in str(error)
            assert "failing_initializer" in str(error)


def test_initializer_that_kills_its_worker_breaks_what_waits_for_it() -> None:
    """A worker that never gets through its initializer is not replaced for ever."""
    with ProcessPoolExecutor(1, initializer=jobs.exit_now, initargs=(3,)) as executor:
        futures = [executor.submit(jobs.add_one, n) for n in range(4)]
        for future in futures:
            assert isinstance(future.exception(_HANG_S), BrokenProcessPool)


def test_initializer_that_cannot_be_pickled_is_told() -> None:
    """The error of an unpicklable initargs reaches the tasks that wait for it, and nobody hangs."""
    with ProcessPoolExecutor(1, initializer=jobs.initialize, initargs=(threading.Lock(),)) as executor:
        futures = [executor.submit(jobs.add_one, n) for n in range(3)]
        for future in futures:
            assert future.exception(_HANG_S) is not None


def test_max_tasks_per_child_replaces_workers() -> None:
    """A worker runs so many tasks and no more; every task is run."""
    with ProcessPoolExecutor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(jobs.pid).result(_HANG_S) for _ in range(9)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]
        pids = list(executor.map(jobs.pid, range(30)))
        assert max(pids.count(pid) for pid in pids) <= 3


def test_max_tasks_per_child_of_one_runs_all_that_is_queued() -> None:
    """Workers are replaced while tasks are queued, and shutdown waits for all of them."""
    with ProcessPoolExecutor(
        2, max_tasks_per_child=1, initializer=jobs.initialize, initargs=(1,)
    ) as executor:
        futures = [executor.submit(jobs.pid) for _ in range(12)]
    assert len({future.result(0) for future in futures}) == 12


# ---------------------------------------------------------------------- references


def test_arguments_are_let_go_when_the_task_is_done(executor: ProcessPoolExecutor) -> None:
    """No reference to an argument stays in the caller after the future is done."""
    argument = jobs.Counter()
    gone = weakref.ref(argument)
    future = executor.submit(argument.add, 1)
    del argument
    assert future.result(_HANG_S) == 1
    assert gone() is None


def test_result_is_held_by_its_future_alone(executor: ProcessPoolExecutor) -> None:
    """Dropping the future drops the result."""
    future = executor.submit(jobs.identity, jobs.Counter(5))
    gone = weakref.ref(future.result(_HANG_S))
    assert gone() is not None
    del future
    assert gone() is None


def test_worker_keeps_neither_arguments_nor_results(executor: ProcessPoolExecutor) -> None:
    """Objects of a finished task are gone in the worker before the next task begins."""
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(_watch, jobs.Counter()).result(_HANG_S) == 0
        assert executor.submit(_alive).result(_HANG_S) == 0


def _watch(thing: Any) -> int:
    jobs.seen.append(weakref.ref(thing))
    return 0


def _alive() -> int:
    return sum(reference() is not None for reference in jobs.seen)


def test_executor_survives_the_threads_that_used_it(executor: ProcessPoolExecutor) -> None:
    """Workers do not die with the thread that happened to start them."""
    pids: list[int] = []
    thread = threading.Thread(target=lambda: pids.append(executor.submit(jobs.pid).result(_HANG_S)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert executor.submit(jobs.pid).result(_HANG_S) == pids[0]


# ---------------------------------------------------------------------- arguments of the constructor


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_workers": 0}, ValueError, r"max_workers must be greater than 0, got 0"),
        ({"max_workers": -1}, ValueError, r"max_workers .* got -1"),
        ({"max_workers": 1.5}, TypeError, r"max_workers must be an integer, got 1\.5"),
        ({"max_workers": "2"}, TypeError, r"max_workers .* got '2'"),
        ({"max_workers": True}, TypeError, r"max_workers .* got True"),
        ({"initializer": 1}, TypeError, r"initializer must be callable, got 1"),
        ({"initializer": print, "initargs": 5}, TypeError, r"initargs .* got 5"),
        ({"max_tasks_per_child": 0}, ValueError, r"max_tasks_per_child must be at least 1, got 0"),
        ({"max_tasks_per_child": 1.0}, TypeError, r"max_tasks_per_child .* got 1\.0"),
        ({"snapshot": "late"}, ValueError, r"snapshot must be 'start' or 'submit', got 'late'"),
        ({"snapshot": ["start"]}, ValueError, r"snapshot must be 'start' or 'submit'"),
        ({"threads_per_worker": 0}, ValueError, r"threads_per_worker must be at least 1, got 0"),
        ({"threads_per_worker": "all"}, TypeError, r"threads_per_worker .* got 'all'"),
        ({"retries": -1}, ValueError, r"retries must be at least 0, got -1"),
        ({"retries": 0.5}, TypeError, r"retries .* got 0\.5"),
        ({"preload": "numpy"}, TypeError, r"write \['numpy'\]"),
        ({"preload": [1]}, TypeError, r"preload .* got 1"),
        ({"preload": 5}, TypeError, r"preload .* got 5"),
        ({"env": 5}, TypeError, r"env must be .* got 5"),
        ({"env": "A=1"}, TypeError, r"env must be .* got 'A=1'"),
        ({"env": []}, ValueError, r"env .* empty"),
        ({"env": ["A=1"]}, TypeError, r"env must give a mapping .* got 'A=1'"),
        ({"env": {"A": None}}, TypeError, r"env variable 'A' .* got None"),
        ({"env": {1: "x"}}, TypeError, r"env must be strings, got 1"),
        ({"env": {"A=B": "x"}}, ValueError, r"env .*'A=B'"),
        ({"env": {"A": "x\0y"}}, ValueError, r"env variable 'A' .*NUL"),
    ],
    ids=repr,
)
def test_constructor_with_bad_arguments_says_what_is_wrong(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Bad input is refused by the call that made it: what was got, what is allowed."""
    with pytest.raises(error, match=words):
        ProcessPoolExecutor(**arguments)


def test_submit_of_something_not_callable_is_refused_at_once(executor: ProcessPoolExecutor) -> None:
    """`submit` and `map` say at the call what they were given."""
    with pytest.raises(TypeError, match=r"callable.* got 5"):
        executor.submit(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"callable.* got None"):
        executor.map(None, [1])  # type: ignore[arg-type]


def test_mp_context_is_accepted_with_a_warning() -> None:
    """A program written for the standard library runs, and is told."""
    import multiprocessing

    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with pytest.warns(UserWarning, match="mp_context") as caught:
            executor = ProcessPoolExecutor(1, mp_context=context)
        assert caught[0].filename == __file__
        with executor:
            assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2


def test_executor_is_an_executor() -> None:
    """Code that asks for the abstract class is satisfied."""
    assert issubclass(ProcessPoolExecutor, concurrent.futures.Executor)
    assert sys.modules["ndshare"].ProcessPoolExecutor is ProcessPoolExecutor
