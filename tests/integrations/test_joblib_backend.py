"""joblib's expectations of a backend, one by one: contexts, dispatch, batches, errors, generators, nesting.

They are those of joblib's own tests of its backends (`joblib/test/test_parallel.py`, `test_config.py`).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.once

joblib = pytest.importorskip("joblib")

from joblib import Parallel, delayed  # noqa: E402

import ndshare  # noqa: E402
import ndshare.integrations.joblib as integration  # noqa: E402
from ndshare.integrations._joblib_backend import NdshareBackend  # noqa: E402
from tests.integrations import joblib_tasks as tasks  # noqa: E402

GENERATORS = ("generator", "generator_unordered")
CONTEXTS = (joblib.parallel_config, joblib.parallel_backend)
BIG = 400_000  # elements: shared by the tasks of a call
QUICK_S = 15.0  # much less than what the tasks that are to be dropped would take

changing = "before"


@pytest.fixture(autouse=True)
def on_ndshare() -> Iterator[None]:
    """Choose the backend, with two workers."""
    integration.register()
    with joblib.parallel_config("ndshare", n_jobs=2):
        yield


def _name(parallel: Any = None) -> str:
    return type((parallel or Parallel())._backend).__name__


# ---- who is chosen


@pytest.mark.parametrize("context", CONTEXTS)
def test_context_chooses_and_restores(context: Any) -> None:
    """By name, as an instance, nested, and in one thread only; afterwards it is as before."""
    with joblib.parallel_config("threading", n_jobs=3):
        for chosen in ("ndshare", NdshareBackend()):
            with context(chosen, n_jobs=2):
                backend, n_jobs = joblib.parallel.get_active_backend()
                assert (type(backend), n_jobs) == (NdshareBackend, 2)
                assert Parallel()(delayed(tasks.square)(i) for i in range(4)) == [0, 1, 4, 9]
                with joblib.parallel_config(n_jobs=1):
                    assert (_name(), Parallel().n_jobs) == ("NdshareBackend", 1)
                seen: list[str] = []
                thread = threading.Thread(target=lambda: seen.append(_name()))
                thread.start()
                thread.join()
                assert seen == ["LokyBackend"]
            assert (_name(), Parallel().n_jobs) == ("ThreadingBackend", 3)
        with context("ndshare", n_jobs=2), context("ndshare", n_jobs=None):
            assert Parallel().n_jobs == Parallel(n_jobs=None).n_jobs == 1


def test_default_backend_can_be_ndshare(monkeypatch: pytest.MonkeyPatch) -> None:
    """`register(make_default=True)` is for programs that choose nothing."""
    monkeypatch.setattr(joblib.parallel, "DEFAULT_BACKEND", joblib.parallel.DEFAULT_BACKEND)
    seen: list[tuple[str, Any]] = []

    def look() -> None:
        seen.append((_name(), Parallel(n_jobs=2)(delayed(tasks.square)(i) for i in range(3))))

    integration.register(make_default=True)
    thread = threading.Thread(target=look)  # a thread has no context
    thread.start()
    thread.join()
    assert seen == [("NdshareBackend", [0, 1, 4])]


def test_number_of_jobs_is_made_an_integer() -> None:
    """As joblib does for its own backends."""
    for n_jobs in ("2", 2.3, 2):
        parallel = Parallel(n_jobs=n_jobs)
        assert parallel._effective_n_jobs() == 2
        assert parallel(delayed(tasks.square)(i) for i in range(10)) == [i * i for i in range(10)]


def test_refused_arguments_are_those_joblib_refuses() -> None:
    """Sizes, hints and numbers that make no sense."""
    for options in ({"batch_size": 0}, {"batch_size": -1}, {"batch_size": 1.42}, {"prefer": "x"},
                    {"require": "x"}, {"prefer": "processes", "require": "sharedmem"},
                    {"backend": "ndshare", "require": "sharedmem"}, {"n_jobs": "2.3"}):  # fmt: skip
        with pytest.raises(ValueError, match=r"\w"):
            Parallel(**options)
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0.5)._initialize_backend()


def test_hints_and_numbers_of_a_call_are_respected() -> None:
    """`prefer` is a hint, `require` is not; `n_jobs` of the call counts more than that of the context."""
    for prefer in ("threads", "processes", None):
        for n_jobs in (1, 2, 3):
            parallel = Parallel(n_jobs=n_jobs, prefer=prefer)
            assert (_name(parallel), parallel.n_jobs) == ("NdshareBackend", n_jobs)
            assert parallel(delayed(tasks.square)(i) for i in range(5)) == [0, 1, 4, 9, 16]
    assert Parallel(require="sharedmem").n_jobs == 1
    kept = Parallel(n_jobs=3, require="sharedmem")
    assert (_name(kept), kept.n_jobs) == ("ThreadingBackend", 3)
    written = [0] * 5
    kept(delayed(written.__setitem__)(i, i) for i in range(5))
    assert written == list(range(5))


def test_name_of_the_main_thread_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers rename it; warnings are errors here."""
    monkeypatch.setattr(threading.current_thread(), "name", "another")
    assert Parallel()(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]


# ---- dispatch and batches


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_job_works_like_a_loop(batch_size: int) -> None:
    """Items are read batch by batch, and each batch is done before the next is read."""
    log: list[tuple[str, int]] = []

    def produce() -> Iterator[int]:
        for i in range(6):
            log.append(("read", i))
            yield i

    Parallel(n_jobs=1, batch_size=batch_size)(delayed(log.append)(("done", i)) for i in produce())
    batches = [list(range(6))[start : start + batch_size] for start in range(0, 6, batch_size)]
    assert log == [(what, i) for batch in batches for what in ("read", "done") for i in batch]


def test_pre_dispatch_bounds_what_is_read_ahead() -> None:
    """Three items at first; joblib then reads two at a time, one per job, when a task is over."""
    log = ndshare.Queue()

    def produce() -> Iterator[int]:
        for i in range(12):
            log.put("read")
            yield i

    Parallel(batch_size=1, pre_dispatch=3)(delayed(tasks.note)(log, i) for i in produce())
    entries = [log.get(timeout=10) for _ in range(24)]
    log.close()
    assert entries[:3] == ["read"] * 3
    assert entries[3] in (0, 1)
    ahead = np.cumsum([1 if entry == "read" else -1 for entry in entries])
    assert ahead.max() <= 4


def test_items_are_read_by_one_thread_at_a_time() -> None:
    """The generator, which threads may not share, is read by the caller and by the thread of callbacks."""
    for count, n_jobs, pre_dispatch, batch_size in (
        (2, 2, "all", "auto"),
        (2, 2, "n_jobs", "auto"),
        (10, 2, "n_jobs", "auto"),
        (517, 2, "n_jobs", "auto"),
        (200, 4, "n_jobs", "auto"),
        (25, 4, "2 * n_jobs", 1),
        (250, 4, "all", 1),
        (250, 4, "2 * n_jobs", 7),
        (200, 4, "2 * n_jobs", "auto"),
    ):
        parallel = Parallel(n_jobs=n_jobs, pre_dispatch=pre_dispatch, batch_size=batch_size)
        assert parallel(delayed(tasks.square)(i) for i in range(count)) == [i * i for i in range(count)]


def test_batches_follow_the_time_tasks_take() -> None:
    """Every batch is reported with its time; batches of tiny tasks grow, those of long ones do not."""

    class Watched(NdshareBackend):
        def batch_completed(self, batch_size: int, duration: float) -> None:
            reported.append((batch_size, duration))
            super().batch_completed(batch_size, duration)

    reported: list[tuple[int, float]] = []
    with joblib.parallel_config(Watched(), n_jobs=2):
        with Parallel() as parallel:
            parallel(delayed(tasks.square)(i) for i in range(3000))
            assert sum(size for size, _ in reported) == 3000
            assert max(size for size, _ in reported) > 10
            assert parallel._backend.compute_batch_size() > 1
        reported.clear()
        with Parallel() as parallel:
            parallel(delayed(tasks.slow_square)(i, 0.25) for i in range(6))
            assert [size for size, _ in reported] == [1] * 6
            assert min(seconds for _, seconds in reported) >= 0.25
            assert parallel._backend.compute_batch_size() == 1
    backend = parallel._backend
    assert backend._effective_batch_size == backend._DEFAULT_EFFECTIVE_BATCH_SIZE
    assert backend._smoothed_batch_duration == backend._DEFAULT_SMOOTHED_BATCH_DURATION


@pytest.mark.parametrize("context", CONTEXTS)
def test_retrieval_context_is_entered_once_per_call(context: Any) -> None:
    """And not for the calls that tasks make."""

    class Watched(NdshareBackend):
        entered = 0

        @contextlib.contextmanager
        def retrieval_context(self) -> Iterator[None]:
            Watched.entered += 1
            yield

    with context(Watched(), n_jobs=2):
        Parallel()(delayed(tasks.nested)(3) for _ in range(5))
        assert Watched.entered == 1
        assert list(Parallel(return_as="generator")(delayed(abs)(-i) for i in range(3))) == [0, 1, 2]
        assert Watched.entered == 2


def test_empty_iterables_give_empty_lists() -> None:
    """Also when the batches were expected to be large."""
    for pre_dispatch, batch_size in itertools.product(["all", 4, "2*n_jobs"], ["auto", 1, 50]):
        parallel = Parallel(pre_dispatch=pre_dispatch, batch_size=batch_size)
        assert parallel(iter(())) == []
        assert parallel(delayed(tasks.square)(i) for i in range(4)) == [0, 1, 4, 9]
    assert list(Parallel(return_as="generator")([])) == []


# ---- errors


@pytest.mark.parametrize("kind", list(tasks.ERRORS))
def test_error_is_the_same_one_and_workers_are_replaced(kind: str) -> None:
    """Managed or not: the exception of the task, then a working `Parallel` with other workers."""
    expected = tasks.ERRORS[kind]
    with pytest.raises(expected):
        Parallel()(delayed(tasks.raise_at)(i, 1, kind) for i in range(6))
    with Parallel() as parallel:
        before = set(parallel(delayed(os.getpid)() for _ in range(10)))
        for _ in range(2):
            with pytest.raises(expected):
                parallel(delayed(tasks.raise_at)(i, 1, kind) for i in range(6))
        after = set(parallel(delayed(os.getpid)() for _ in range(10)))
        assert not before & after


def test_nested_error_tells_the_whole_way() -> None:
    """The traceback of an error two calls deep names every function it went through."""
    with pytest.raises(ValueError, match="item 3") as caught:
        Parallel()(delayed(tasks.outer_failing)(i) for i in range(4))
    text = "".join(traceback.format_exception(caught.value))
    for function in ("outer_failing", "inner_failing", "fail_at"):
        assert function in text


def test_argument_that_cannot_be_pickled_is_an_error_of_the_call() -> None:
    """Its own error, at once, and the workers go on."""
    with Parallel() as parallel:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not this one"):
                parallel(delayed(id)(tasks.Unpicklable()) for _ in range(10))
            assert parallel(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]


def test_error_of_the_iterable_in_a_managed_call() -> None:
    """Before, during and after what is read ahead; the same `Parallel` goes on."""

    def items(raise_at: int) -> Iterator[Any]:
        for i in range(20):
            if i == raise_at:
                raise ValueError("no more")
            yield delayed(tasks.square)(i)

    with Parallel() as parallel:
        for raise_at in (0, 5, 19):
            with pytest.raises(ValueError, match="no more"):
                parallel(items(raise_at))
            assert parallel(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_abort_does_not_wait(n_jobs: int) -> None:
    """One task that fails at once, a hundred that sleep."""
    start = time.monotonic()
    with pytest.raises(TypeError):
        Parallel(n_jobs=n_jobs)(delayed(time.sleep)(seconds) for seconds in ["a", *[20] * 100])
    assert time.monotonic() - start < QUICK_S


@pytest.mark.parametrize("return_as", ["list", "generator_unordered"])
def test_timeout_is_for_each_result_not_for_the_call(return_as: str) -> None:
    """Many short tasks take longer than `timeout` together, and that is no error."""
    parallel = Parallel(timeout=1.5, return_as=return_as, batch_size=1)
    found = parallel(delayed(tasks.slow_square)(i, 0.1) for i in range(32))
    assert sorted(found) == [i * i for i in range(32)]


def test_batch_that_comes_after_the_end_starts_no_workers() -> None:
    """A callback may be about to send one while the call is aborted."""
    with Parallel() as parallel:
        backend = parallel._backend
        with pytest.raises(ValueError, match="item 0"):
            parallel(delayed(tasks.fail_at)(i, 0) for i in range(3))
        assert backend.submit(os.getpid).cancelled()
        assert parallel(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]
    assert backend.submit(os.getpid).cancelled()
    assert backend._executor is None


# ---- generators


def test_generator_left_at_exit_says_nothing_of_its_own(run_script) -> None:
    """What its callbacks still send is dropped; joblib itself warns of what was not taken out."""
    script = """
import time, joblib
import ndshare.integrations.joblib as backend
backend.register()
with joblib.parallel_config("ndshare", n_jobs=2):
    results = joblib.Parallel(return_as="generator")(joblib.delayed(time.sleep)(0.01) for _ in range(30))
next(results)
"""
    assert "Traceback" not in run_script(script).stderr


@pytest.mark.parametrize(("return_as", "n_jobs"), list(itertools.product(GENERATORS, [1, 2, -1])))
def test_generator_dropped_early_does_not_block(return_as: str, n_jobs: int) -> None:
    """Large results under way, and nobody who wants them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib's, about what was not read
        with Parallel(n_jobs=n_jobs, return_as=return_as) as parallel:
            results = parallel(delayed(tasks.filled)(500_000, i) for i in range(10))
            next(results), next(results)
            del results
        gc.collect()


@pytest.mark.parametrize("return_as", GENERATORS)
def test_second_call_while_one_runs_is_refused_at_once(return_as: str) -> None:
    """In a `with` block too, whose end does not wait for the first one."""
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Parallel(return_as=return_as) as parallel:
            first = parallel(delayed(time.sleep)(20) for _ in range(10))
            with pytest.raises(RuntimeError, match="already running"):
                parallel(delayed(tasks.square)(i) for i in range(100))
        assert time.monotonic() - start < QUICK_S
        del first
        gc.collect()


@pytest.mark.parametrize(("one", "other"), list(itertools.product(GENERATORS, repeat=2)))
def test_two_generators_of_two_calls_are_independent(one: str, other: str) -> None:
    """Started one after the other and read in turns."""
    first = Parallel(return_as=one)(delayed(tasks.square)(i) for i in range(10))
    second = Parallel(return_as=other)(delayed(tasks.square)(i) for i in range(10, 20))
    found = list(zip(first, second, strict=True))
    assert sorted(a for a, _ in found) == [i * i for i in range(10)]
    assert sorted(b for _, b in found) == [i * i for i in range(10, 20)]
    if one == other == "generator":
        assert found == [(i * i, (i + 10) ** 2) for i in range(10)]


@pytest.mark.parametrize(("one", "other"), list(itertools.product(GENERATORS, repeat=2)))
def test_generator_replaced_by_another_is_aborted(one: str, other: str) -> None:
    """Under loky the second call fails when the first generator is collected; here it does not."""
    start = time.monotonic()
    parallel = Parallel(return_as=one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = parallel(delayed(time.sleep)(20) for _ in range(10))
        results = Parallel(return_as=other)(delayed(tasks.square)(i) for i in range(10))
        assert sorted(results) == [i * i for i in range(10)]
        gc.collect()
    assert parallel._aborting
    assert time.monotonic() - start < QUICK_S


def test_unordered_results_do_not_wait_for_a_slow_one() -> None:
    """Nine quick ones come while one sleeps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = Parallel(return_as="generator_unordered", batch_size=1)(
            delayed(tasks.slow_square)(i, 20 if i == 1 else 0) for i in range(10)
        )
        assert sorted(next(results) for _ in range(9)) == [i * i for i in range(10) if i != 1]
        del results
        gc.collect()


# ---- nesting


@pytest.mark.parametrize("context", CONTEXTS)
def test_levels_of_nesting_are_limited(context: Any) -> None:
    """Processes, then threads, then none."""
    with context("ndshare", n_jobs=2):
        assert tasks.levels(3) == [
            ("NdshareBackend", 0),
            ("ThreadingBackend", 1),
            ("SequentialBackend", 2),
            ("SequentialBackend", 2),
        ]


def test_level_of_an_inner_backend_is_one() -> None:
    """Whichever of both is which."""
    for outer, inner in itertools.product(["ndshare", "threading"], repeat=2):
        assert tasks.level_of(inner) == 0
        assert Parallel(backend=outer)(delayed(tasks.level_of)(inner) for _ in range(4)) == [1] * 4


def test_loops_in_loops_compute() -> None:
    """Every backend inside of every other, with two jobs each."""
    for outer, inner in itertools.product(["ndshare", "threading", "sequential"], repeat=2):
        found = Parallel(n_jobs=2, backend=outer)(delayed(tasks.nested_with)(inner, i) for i in range(3))
        assert found == [[i * i, (i + 1) ** 2] for i in range(3)]


def test_one_job_leaves_the_backend_to_nested_calls() -> None:
    """`n_jobs=1` at the top changes neither backend nor number for what is inside."""
    assert Parallel(n_jobs=1)(delayed(tasks.active)() for _ in range(3)) == [("NdshareBackend", 2)] * 3


def test_nested_call_has_one_job_by_default() -> None:
    """Threads, one of them, all in the process of the task."""
    for name, n_jobs, pids in Parallel()(delayed(tasks.nested_pids)() for _ in range(4)):
        assert (name, n_jobs) == ("ThreadingBackend", 1)
        assert len(set(pids)) == 1


def test_endless_recursion_is_an_error() -> None:
    """And neither a bomb of processes nor one of threads."""
    with pytest.raises(RecursionError):
        tasks.recurse()


# ---- what the workers see


def test_byte_order_is_kept() -> None:
    """There and back, in the message and in shared memory."""
    for order, n in itertools.product("<>=", [6, BIG]):
        x = np.arange(n).view(f"{order}i4")
        for seen, back in Parallel()(delayed(tasks.byte_order)(x) for _ in range(3)):
            assert seen == back.dtype.byteorder == x.dtype.byteorder
            np.testing.assert_array_equal(back, x)


def test_changed_global_is_seen_by_the_next_call() -> None:
    """What a local function uses travels with each call."""
    global changing

    def read() -> str:
        return changing

    assert set(Parallel()(delayed(read)() for _ in range(4))) == {"before"}
    changing = "after"
    try:
        assert set(Parallel()(delayed(read)() for _ in range(4))) == {"after"}
    finally:
        changing = "before"


@pytest.mark.parametrize("context", CONTEXTS)
def test_threads_of_libraries_follow_the_context(context: Any) -> None:
    """`inner_max_num_threads` by both contexts, with more workers than asked for at first."""
    for limit, n_jobs in ((1, 2), (2, 2), (4, 3)):
        with context("ndshare", n_jobs=n_jobs, inner_max_num_threads=limit):
            found = Parallel()(delayed(tasks.threads)() for _ in range(4))
        assert {n for pools in found for n in pools} == {limit}


def test_variables_of_the_environment_are_those_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those set after the workers were started."""
    Parallel()(delayed(os.getpid)() for _ in range(4))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("A_VARIABLE", "of mine")
    for name, value in (("OMP_NUM_THREADS", "4"), ("A_VARIABLE", "of mine")):
        assert Parallel()(delayed(os.environ.get)(name) for _ in range(4)) == [value] * 4


def test_initializer_of_a_call_runs_in_each_worker() -> None:
    """Given to `Parallel` itself; another value means other workers."""
    for value in (3, 4):
        parallel = Parallel(n_jobs=2, initializer=tasks.remember, initargs=(value,))
        assert set(parallel(delayed(tasks.recall)() for _ in range(20))) == {value}


def test_algebra_before_and_inside_does_not_freeze() -> None:
    """Libraries with threads of their own, used in the caller first."""
    a = np.random.default_rng(0).random((200, 200))
    for _ in range(2):
        expected = a @ a.T
        for found in Parallel()(delayed(tasks.product)(a) for _ in range(4)):
            np.testing.assert_allclose(found, expected)


def test_functions_of_a_script_need_no_guard(run_script: Any) -> None:
    """Defined in ``__main__``, local or a lambda; called, or passed in one way or the other."""
    run_script("""
from functools import partial
import joblib
from joblib import Parallel, delayed
import ndshare.integrations.joblib
ndshare.integrations.joblib.register()

class Number:
    def __init__(self, value): self.value = value
class Sub(Number):
    def twice(self): return 2 * self.value

def plain(x): return x ** 2
def make():
    def local(x): return x ** 2
    return local
anonymous = lambda x: x ** 2
def apply(x, call=None, ignored=None): return call(x)
def of_object(number, ignored=None): return number.value ** 2

with joblib.parallel_config("ndshare", n_jobs=2):
    expected = [0, 1, 4, 9, 16]
    for call in (plain, make(), anonymous):
        assert Parallel()(delayed(call)(i) for i in range(5)) == expected
        assert Parallel()(delayed(apply)(i, call) for i in range(5)) == expected
        assert Parallel()(delayed(apply)(i, call=call) for i in range(5)) == expected
    bound = partial(of_object, ignored=[{"a": Number(1)}])
    assert Parallel()(delayed(bound)(Number(i)) for i in range(5)) == expected
    assert Parallel()(delayed(Sub(i).twice)() for i in range(3)) == [0, 2, 4]
    assert all(type(n) is Sub for n in Parallel()(delayed(Sub)(i) for i in range(3)))
""")
