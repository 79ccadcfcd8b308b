"""joblib on ndshare: what joblib expects of a backend, and what scikit-learn computes on it."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.once

joblib = pytest.importorskip("joblib")

from joblib import Parallel, delayed  # noqa: E402
from joblib.parallel import ParallelBackendBase  # noqa: E402

import ndshare  # noqa: E402
import ndshare.integrations.joblib as integration  # noqa: E402
from ndshare._transport.inputs import Inputs  # noqa: E402
from tests.integrations import joblib_tasks as tasks  # noqa: E402

BIG = 400_000  # elements: 3.2 MB


@pytest.fixture(autouse=True)
def on_ndshare() -> Iterator[None]:
    """Choose the backend, with two workers."""
    integration.register()
    with joblib.parallel_config("ndshare", n_jobs=2):
        yield


# ---- what joblib expects


def test_backend_is_what_joblib_uses() -> None:
    """`parallel_config("ndshare")` chooses it by name, with the arguments joblib gives any backend."""
    parallel = Parallel()
    assert type(parallel._backend).__name__ == "NdshareBackend"
    assert isinstance(parallel._backend, ParallelBackendBase)
    assert parallel._effective_n_jobs() == 2
    assert Parallel(n_jobs=3, backend="ndshare")(delayed(tasks.square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_results_come_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """As many as there are, for any number of workers; progress is printed on request."""
    for n_jobs, verbose in itertools.product([1, 2, 3, -1], [0, 50]):
        found = Parallel(n_jobs=n_jobs, verbose=verbose)(delayed(tasks.square)(i) for i in range(30))
        assert found == [i * i for i in range(30)]
        assert ("Done" in "".join(capsys.readouterr())) == bool(verbose)


def test_number_of_jobs_means_what_it_means_to_joblib() -> None:
    """None is one, -1 all, below that fewer; 0 and text are refused."""
    effective = joblib.effective_n_jobs
    assert effective(3) == 3
    assert effective(-1) == joblib.cpu_count()
    assert effective(-joblib.cpu_count() - 5) == 1
    assert effective(None) == 2  # that of the context
    assert Parallel()._backend.effective_n_jobs(None) == 1
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(abs)(i) for i in range(2))
    with pytest.raises(ValueError, match="could not be converted"):
        Parallel(n_jobs="many")


def test_every_batch_size_and_pre_dispatch_gives_all_results() -> None:
    """Batching changes nothing in the results."""
    for batch_size, pre_dispatch in itertools.product(["auto", 1, 7], ["all", 2, "2*n_jobs", 1]):
        parallel = Parallel(batch_size=batch_size, pre_dispatch=pre_dispatch)
        assert parallel(delayed(tasks.square)(i) for i in range(200)) == [i * i for i in range(200)]


def test_tiny_tasks_are_batched() -> None:
    """The batches grow when tasks take no time, and start small again with the next call."""
    with Parallel() as parallel:
        parallel(delayed(abs)(i) for i in range(5000))
        assert parallel._backend.compute_batch_size() > 1
    assert parallel._backend._effective_batch_size == 1
    assert parallel.n_dispatched_batches < 5000


def test_iterable_is_read_as_tasks_finish() -> None:
    """With `pre_dispatch` not everything is read at once, and an endless consumer is not needed."""
    read: list[int] = []

    def items() -> Iterator[Any]:
        for i in range(100):
            read.append(i)
            yield delayed(tasks.slow_square)(i, 0.001)

    results = Parallel(pre_dispatch=4, batch_size=1, return_as="generator")(items())
    assert next(results) == 0
    assert len(read) < 100
    assert list(results) == [i * i for i in range(1, 100)]


def test_context_manager_keeps_the_workers() -> None:
    """Several calls in one `with` run on the same workers."""
    with Parallel() as parallel:
        first = set(parallel(delayed(os.getpid)() for _ in range(20)))
        second = set(parallel(delayed(os.getpid)() for _ in range(20)))
    assert first | second <= first | (second - first)
    assert first & second
    assert len(first | second) <= 2
    third = set(Parallel()(delayed(os.getpid)() for _ in range(20)))  # warm workers of ndshare
    assert third & (first | second)


def test_error_of_a_task_is_raised_with_its_traceback() -> None:
    """The exception itself, the worker's traceback as its cause; the next call works."""
    parallel = Parallel()
    with pytest.raises(ValueError, match="item 7") as caught:
        parallel(delayed(tasks.fail_at)(i, 7) for i in range(50))
    assert "joblib_tasks.py" in str(caught.value.__cause__)
    assert parallel(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]
    with Parallel() as managed:
        for _ in range(2):
            with pytest.raises(ValueError, match="item 7"):
                managed(delayed(tasks.fail_at)(i, 7) for i in range(50))
            assert managed(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]


def test_error_that_refuses_to_be_changed_is_no_hang() -> None:
    """Joblib changes what it raises: for a frozen dataclass there is a stand-in, from it."""
    with pytest.raises(ndshare.RemoteError, match=r"Refused: 3.*joblib cannot keep it") as caught:
        Parallel(2)(delayed(tasks.refuse)(number) for number in (3, 3))
    assert repr(caught.value.__cause__) == "Refused(code=3)"


def test_error_of_the_iterable_is_raised_as_it_is() -> None:
    """What the generator of the tasks raises ends the call, early or late."""

    def items(n: int) -> Iterator[Any]:
        for i in range(n):
            yield delayed(tasks.square)(i)
        raise OSError("no more")

    for n in (0, 1, 40):
        with pytest.raises(OSError, match="no more"):
            Parallel()(items(n))


def test_error_ends_the_other_tasks_early() -> None:
    """After an error nobody waits for what is still running."""
    start = time.monotonic()
    with pytest.raises(ValueError, match="item 0"):
        Parallel(batch_size=1)(
            [delayed(tasks.fail_at)(0, 0), *(delayed(tasks.slow_square)(i, 30) for i in range(4))]
        )
    assert time.monotonic() - start < 25


def test_dead_worker_is_an_error_and_not_a_hang() -> None:
    """The task of a killed worker raises `WorkerDiedError`; the next call has new workers."""
    with pytest.raises(ndshare.WorkerDiedError):
        Parallel()(delayed(tasks.die_at)(i, 3) for i in range(6))
    assert Parallel()(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]


def test_timeout_is_raised_and_tasks_are_killed() -> None:
    """`timeout=` bounds the wait for a result; the workers do not go on in the background."""
    assert Parallel(timeout=60)(delayed(tasks.slow_square)(i, 0.001) for i in range(4)) == [0, 1, 4, 9]
    start = time.monotonic()
    with pytest.raises(joblib.parallel.TimeoutError):
        Parallel(timeout=0.2)(delayed(tasks.slow_square)(i, 60) for i in range(4))
    with pytest.raises(joblib.parallel.TimeoutError):
        list(
            Parallel(timeout=0.2, return_as="generator")(delayed(tasks.slow_square)(i, 60) for i in range(4))
        )
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_generator_yields_results_as_they_come(return_as: str) -> None:
    """In order, or the fastest first."""
    seconds = [1.0, 0, 0, 0]
    results = Parallel(return_as=return_as, batch_size=1)(
        delayed(tasks.slow_square)(i, pause) for i, pause in enumerate(seconds)
    )
    found = list(results)
    assert sorted(found) == [0, 1, 4, 9]
    assert found[0 if return_as == "generator" else -1] == 0


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_generator_of_a_busy_call_blocks_a_second_one(return_as: str) -> None:
    """Joblib allows one call at a time per `Parallel`; two `Parallel` may run at a time."""
    parallel = Parallel(return_as=return_as)
    other = Parallel(return_as=return_as)
    first = parallel(delayed(tasks.slow_square)(i, 0.01) for i in range(10))
    second = other(delayed(tasks.slow_square)(i, 0.01) for i in range(10))
    with pytest.raises(RuntimeError, match="already running"):
        parallel(delayed(tasks.square)(i) for i in range(10))
    assert sorted(first) == sorted(second) == [i * i for i in range(10)]
    assert sorted(parallel(delayed(tasks.square)(i) for i in range(3))) == [0, 1, 4]


def test_dropped_generator_ends_its_tasks() -> None:
    """A generator that nobody reads to its end is aborted, and the backend can be used again."""
    results = Parallel(return_as="generator", batch_size=1)(
        delayed(tasks.slow_square)(i, 0 if i < 2 else 60) for i in range(20)
    )
    assert next(results) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib's, about what was not read
        del results
        gc.collect()
    start = time.monotonic()
    assert Parallel()(delayed(tasks.square)(i) for i in range(3)) == [0, 1, 4]
    assert time.monotonic() - start < 50


def test_calls_from_several_threads_do_not_mix() -> None:
    """Each thread has its `Parallel`, and its results."""
    found: dict[int, list[int]] = {}

    def run(number: int) -> None:
        with joblib.parallel_config("ndshare", n_jobs=2):
            found[number] = Parallel()(delayed(tasks.square)(number + i) for i in range(50))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [(n + i) ** 2 for i in range(50)] for n in range(4)}


def test_nested_calls_use_threads_and_then_none() -> None:
    """As with joblib's own process backend: threads inside, and no processes of processes."""
    for name, found in Parallel()(delayed(tasks.nested)(4) for _ in range(3)):
        assert name == "ThreadingBackend"
        assert found == [0, 1, 4, 9]
    with joblib.parallel_config("threading", n_jobs=2):
        assert Parallel()(delayed(tasks.nested)(4) for _ in range(2))[0][1] == [0, 1, 4, 9]


def test_nested_call_may_ask_for_ndshare() -> None:
    """A worker can have workers of its own."""
    assert Parallel()(delayed(tasks.nested_on_ndshare)(4) for _ in range(2)) == [[0, 1, 4, 9]] * 2


def test_hints_of_a_library_do_not_change_the_backend() -> None:
    """`prefer` gives way to an explicit choice, `require="sharedmem"` does not."""
    assert type(Parallel(prefer="threads")._backend).__name__ == "NdshareBackend"
    assert type(Parallel(require="sharedmem")._backend).__name__ == "ThreadingBackend"
    with joblib.parallel_config("threading"):
        assert type(Parallel()._backend).__name__ == "ThreadingBackend"
    assert type(Parallel()._backend).__name__ == "NdshareBackend"


def test_threads_inside_workers_are_limited() -> None:
    """`inner_max_num_threads` is what BLAS and OpenMP get; by default processors divided by jobs."""
    with joblib.parallel_config("ndshare", n_jobs=2, inner_max_num_threads=3):
        assert {n for pools in Parallel()(delayed(tasks.threads)() for _ in range(4)) for n in pools} == {3}
    expected = max(1, joblib.cpu_count() // 2)
    with joblib.parallel_config("ndshare", n_jobs=2):
        found = {n for pools in Parallel()(delayed(tasks.threads)() for _ in range(4)) for n in pools}
    assert found == {expected}


def test_options_of_the_executor_are_passed_on() -> None:
    """An initializer runs in each worker; unknown options are refused by name."""
    with joblib.parallel_config("ndshare", n_jobs=2, initializer=tasks.remember, initargs=(7,)):
        assert set(Parallel()(delayed(tasks.recall)() for _ in range(8))) == {7}
    assert set(Parallel()(delayed(tasks.recall)() for _ in range(8))) == {0}
    with pytest.raises(TypeError, match="no option 'wrokers'; allowed are env"):
        joblib.parallel_config("ndshare", wrokers=3)
    with pytest.raises(TypeError, match="no option 'timeouts'"):
        Parallel(n_jobs=2, timeouts=3)([])


def test_anything_can_be_called() -> None:
    """Lambdas, closures and bound methods of local classes."""
    offset = 5

    class Adder:
        def add(self, x: int) -> int:
            return x + offset

    assert Parallel()(delayed(lambda x: x + offset)(i) for i in range(3)) == [5, 6, 7]
    assert Parallel()(delayed(Adder().add)(i) for i in range(3)) == [5, 6, 7]
    assert Parallel()([]) == []


# ---- arrays


def test_inputs_are_private_and_writable_whatever_their_size() -> None:
    """What one task writes no other sees, nor the caller; the array is copied twice at most."""
    for n in (10, BIG):
        x = np.full(n, -1.0)
        with Parallel(batch_size=1) as parallel:
            seen = parallel(delayed(tasks.use_privately)(x, i) for i in range(20))
            copied = parallel._backend._executor._pool.delivery.bytes_copied
        assert {before for before, *_ in seen} == {-1.0}
        assert {tuple(flags) for _, *flags in seen} == {(True, True, False)}
        assert x[0] == -1
        assert copied <= 20 * 8 * 10 if n == 10 else copied <= x.nbytes


def test_inputs_are_read_anew_by_each_call() -> None:
    """A change between two calls of a `Parallel` that is kept is seen."""
    x = np.zeros(BIG)
    with Parallel(batch_size=1) as parallel:
        for value in (1.0, 2.0):
            x[0] = value
            seen = parallel(delayed(tasks.use_privately)(x, i) for i in range(6))
            assert {before for before, *_ in seen} == {value}


def test_shared_inputs_are_the_same_memory() -> None:
    """A shared array goes by reference: the caller sees what was written."""
    x = ndshare.zeros(BIG)
    Parallel()(delayed(tasks.add_to)(x, i) for i in range(20))
    assert x[:20].tolist() == list(range(20))


def test_no_temporary_files_and_no_read_only_surprise() -> None:
    """Large arguments and results are in no file."""
    x = np.ones(BIG)
    before = tasks.temporary_files()
    assert all(f[1] for f in Parallel(max_nbytes=1000)(delayed(tasks.use_privately)(x, i) for i in range(6)))
    assert tasks.temporary_files() == before
    for value, result in enumerate(Parallel()(delayed(tasks.filled)(BIG, i) for i in range(6))):
        assert (result == value).all()
        assert result.flags.writeable
        result += 1


def test_inputs_of_dataframes_are_shared() -> None:
    """The columns inside of a DataFrame are found again, too."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.arange(BIG * 2.0).reshape(-1, 4))
    with Parallel(batch_size=1) as parallel:
        found = parallel(delayed(_sum)(frame) for _ in range(10))
        copied = parallel._backend._executor._pool.delivery.bytes_copied
    assert found == [frame.to_numpy().sum()] * 10
    assert copied <= frame.to_numpy().nbytes * 1.1


def _sum(frame: Any) -> float:
    total: float = frame.to_numpy().sum()
    return total


def test_inputs_sees_memory_not_objects() -> None:
    """Views made anew are found, other layouts of the same memory are others, small ones are copied."""
    inputs = Inputs()
    x = np.arange(BIG * 2.0)
    placed = inputs.place(x)
    assert placed is not None
    assert placed.private
    again = inputs.place(x[:])
    assert again is not None
    assert again.block.uid == placed.block.uid
    assert inputs.place(x[::2]) is None
    assert inputs.place(x[::2]) is not None
    assert inputs.place(x.view("i8")) is None
    assert inputs.place(x[:100]) is None
    assert inputs.place(x[:100]) is None


def test_inputs_forgets_what_its_owner_forgets() -> None:
    """The copy ends with the array; an array at the same address is another one."""
    inputs = Inputs()
    before = ndshare.stats().shared_bytes
    for value in range(12):
        x = np.full(BIG, float(value))
        placed = inputs.place(x)
        assert placed is not None
        assert (placed.block.array(x.dtype, x.shape, None, placed.offset) == value).all()
        assert ndshare.stats().shared_bytes > before
        del x, placed
        assert not inputs._seen
        assert ndshare.stats().shared_bytes == before
    x = np.ones(BIG)
    inputs.place(x)
    gc.disable()  # no cycle: the memory is back at once
    try:
        del inputs
        assert ndshare.stats().shared_bytes == before
    finally:
        gc.enable()


def test_inputs_keeps_few_copies_of_what_is_sent_once() -> None:
    """Many arrays that stay alive, each for one task, are not all held twice."""
    inputs = Inputs()
    before = ndshare.stats().shared_bytes
    many = [np.full(BIG, float(value)) for value in range(20)]
    for x in many:
        assert inputs.place(x) is not None
    assert ndshare.stats().shared_bytes - before <= 5.5 * many[0].nbytes
    for _ in range(2):  # of those that come again all are kept
        for x in many:
            for _ in range(2):
                inputs.place(x)
    assert ndshare.stats().shared_bytes - before >= 20 * many[0].nbytes


# ---- scikit-learn


def _data() -> tuple[Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return x, y


@pytest.mark.leaves("child process", "open descriptor", "thread")  # loky's resource tracker
def test_scikit_learn_computes_the_same_as_on_loky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`GridSearchCV`, `RandomForestClassifier`, `cross_val_score`, `permutation_importance`: bit by bit."""
    from joblib.externals.loky import get_reusable_executor
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.inspection import permutation_importance
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    x, y = _data()
    grid = {"max_depth": [1, 3], "min_samples_leaf": [1, 5]}
    times = ("mean_fit_time", "std_fit_time", "mean_score_time", "std_score_time")

    def compute() -> dict[str, Any]:
        search = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3).fit(x, y)
        forest = RandomForestClassifier(20, random_state=0).fit(x, y)
        importance = permutation_importance(Ridge().fit(x, y), x, y, n_repeats=3, random_state=0)
        return {
            **{name: values for name, values in search.cv_results_.items() if name not in times},
            "best": sorted(search.best_params_.items()),
            "prediction": search.predict(x),
            "probabilities": forest.predict_proba(x),
            "forest": forest.feature_importances_,
            "scores": cross_val_score(RandomForestClassifier(5, random_state=1), x, y, cv=4),
            "importance": importance.importances,
        }

    ours = compute()
    # loky removes its folder of memory-mapped files when the process ends.
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(tmp_path))
    with warnings.catch_warnings(), joblib.parallel_config("loky", n_jobs=2):
        warnings.simplefilter("ignore", DeprecationWarning)  # loky's, about forks
        theirs = compute()
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(np.asarray(values), np.asarray(theirs[name]), err_msg=name)


def test_estimator_that_writes_into_its_input_works() -> None:
    """Under memory-mapped inputs this raises "assignment destination is read-only"."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import cross_val_score

    class Rude(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, x: Any, y: Any) -> Any:
            x[:] = 0
            self.classes_ = np.unique(y)
            return self

        def predict(self, x: Any) -> Any:
            x[:] = 1
            return np.full(len(x), self.classes_[0])

    rng = np.random.default_rng(0)
    x, y = rng.random((5000, 60)), rng.integers(0, 2, 5000)
    before = x.copy()
    assert len(cross_val_score(Rude(), x, y, cv=4)) == 4
    np.testing.assert_array_equal(x, before)


# ---- without joblib


def test_without_joblib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module imports; `register` names the package and the extra."""
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(ImportError, match=r"pip install 'ndshare\[joblib\]'"):
        integration.register()
