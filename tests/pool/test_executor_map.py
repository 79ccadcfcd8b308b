"""`ProcessPoolExecutor.map`: order, laziness, timeouts, errors, and what is sent how often."""

from __future__ import annotations

import itertools
import operator
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import ProcessPoolExecutor
from tests import jobs


@pytest.fixture
def executor() -> Iterator[ProcessPoolExecutor]:
    """Return an executor of two workers."""
    with ProcessPoolExecutor(2) as executor:
        yield executor


def _pair(a: int, b: int) -> tuple[int, int]:
    return a, b


def _sleep_or_fail(n: int) -> int:
    time.sleep(0.001 * (n % 7))
    if n == 30:
        raise ValueError("thirty")
    return n


def _row(n: int) -> np.ndarray:
    return np.full(1000, n)


def test_map_gives_results_in_order(executor: ProcessPoolExecutor) -> None:
    """Results come in the order of the items, whatever takes how long; the shortest iterable decides."""
    expected = [(a, b) for a, b in zip(range(50), range(100, 200), strict=False)]
    assert list(executor.map(_pair, range(50), itertools.count(100))) == expected
    assert list(executor.map(jobs.nap, [0.02, 0.0, 0.01, 0.0], "abcd")) == list("abcd")


@pytest.mark.parametrize("chunksize", [1, 2, 7, 40, 1000])
def test_map_with_any_chunksize_gives_the_same(executor: ProcessPoolExecutor, chunksize: int) -> None:
    """`chunksize` changes the messages and not the results."""
    assert list(executor.map(pow, range(40), itertools.repeat(2), chunksize=chunksize)) == [
        n * n for n in range(40)
    ]


def test_map_of_nothing_is_empty(executor: ProcessPoolExecutor) -> None:
    """No items, no iterables, with and without a buffer."""
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs)) == []
    assert list(executor.map(abs, [], buffersize=1, chunksize=3)) == []
    assert list(executor.map(abs, buffersize=2)) == []


def test_map_reads_its_iterables_at_once_without_a_buffer(executor: ProcessPoolExecutor) -> None:
    """All items are taken when `map` is called, as by the standard library."""
    items = iter(range(20))
    results = executor.map(jobs.add_one, items)
    assert next(items, None) is None
    assert list(results) == list(range(1, 21))


def test_map_accepts_a_lambda_and_a_bound_method(executor: ProcessPoolExecutor) -> None:
    """Any callable that `submit` takes."""
    factor = 3
    assert list(executor.map(lambda x: x * factor, range(10))) == [3 * n for n in range(10)]
    assert list(executor.map(jobs.Counter(5).add, range(10), chunksize=4)) == list(range(5, 15))


def test_map_error_comes_in_its_place_and_cancels_the_rest(
    executor: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Results before the error are given, then the error; the iterator is at its end."""
    results = executor.map(_sleep_or_fail, range(40))
    assert [next(results) for _ in range(30)] == list(range(30))
    with pytest.raises(ValueError, match="thirty"):
        next(results)
    assert next(results, None) is None
    assert executor.submit(jobs.add_one, 1).result(60) == 2


def test_map_error_with_chunks_is_that_error(executor: ProcessPoolExecutor) -> None:
    """In a chunk, too, with the worker's traceback."""
    with pytest.raises(ValueError, match="thirty") as caught:
        list(executor.map(_sleep_or_fail, range(40), chunksize=9))
    assert "_sleep_or_fail" in str(caught.value.__cause__)


def test_map_of_a_worker_that_dies_raises_for_its_items_alone(executor: ProcessPoolExecutor) -> None:
    """`WorkerDiedError` in the place of the item; the next `map` works."""
    results = executor.map(_die_at_five, range(10))
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ndshare.WorkerDiedError, match="_die_at_five"):
        next(results)
    assert list(executor.map(jobs.add_one, range(100))) == list(range(1, 101))


def _die_at_five(n: int) -> int:
    if n == 5:
        jobs.kill_self()
    return n


def test_map_timeout_counts_from_the_call(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """What is finished in time is given, then `TimeoutError`."""
    # On a busy machine workers take their time to start.
    assert executor.submit(jobs.add_one, 1).result() == 2
    results = executor.map(_first_or_wait, range(3), itertools.repeat(tmp_path), timeout=1.0)
    assert next(results) == 0
    with pytest.raises(TimeoutError):
        next(results)
    (tmp_path / "go").touch()
    time.sleep(0)
    results = executor.map(jobs.add_one, range(3), timeout=60)
    assert list(results) == [1, 2, 3]


def _first_or_wait(n: int, directory: Path) -> int:
    if n:
        jobs.wait_for((directory / "go").exists)
    return n


def test_map_timeout_of_zero_raises_unless_everything_is_there(executor: ProcessPoolExecutor) -> None:
    """A deadline that has passed is one."""
    with pytest.raises(TimeoutError):
        list(executor.map(jobs.nap, [0.5], timeout=0))


def test_map_iterator_that_is_dropped_cancels_what_has_not_begun(tmp_path: Path) -> None:
    """Closing the iterator cancels the tasks that wait; they never run."""
    with ProcessPoolExecutor(1) as executor:
        results = executor.map(_mark, itertools.repeat(tmp_path), range(6))
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
        (tmp_path / "go").touch()
    assert len(list(tmp_path.glob("ran_*"))) < 6


def _mark(directory: Path, n: int) -> int:
    if n:
        jobs.wait_for((directory / "go").exists)
    (directory / f"ran_{n}").touch()
    return n


def test_map_results_are_not_kept(executor: ProcessPoolExecutor) -> None:
    """What was yielded is held by the user alone."""
    for chunksize in (1, 4):
        for result in executor.map(jobs.Counter, range(8), chunksize=chunksize):
            gone = weakref.ref(result)
            del result
            assert gone() is None


def test_map_items_are_let_go_when_they_are_done(executor: ProcessPoolExecutor) -> None:
    """No reference to an item stays in the caller once its result is there."""
    items = [jobs.Counter(n) for n in range(5)]
    gone = [weakref.ref(item) for item in items]
    results = executor.map(operator.methodcaller("add", 1), items)
    del items
    assert list(results) == [1, 2, 3, 4, 5]
    assert [reference() for reference in gone] == [None] * 5


# ---------------------------------------------------------------------- buffersize


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"chunksize": 0}, ValueError, r"chunksize must be at least 1, got 0"),
        ({"chunksize": -3}, ValueError, r"chunksize must be at least 1, got -3"),
        ({"chunksize": 1.5}, TypeError, r"chunksize must be an integer, got 1\.5"),
        ({"buffersize": 0}, ValueError, r"buffersize must be None or > 0, got 0"),
        ({"buffersize": -1}, ValueError, r"buffersize must be None or > 0, got -1"),
        ({"buffersize": 2.0}, TypeError, r"buffersize must be an integer or None, got 2\.0"),
        ({"timeout": "1"}, TypeError, r"timeout must be a number of seconds, got '1'"),
    ],
)
def test_map_with_bad_arguments_says_what_is_wrong(
    executor: ProcessPoolExecutor, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """At the call, not at the first result."""
    with pytest.raises(error, match=words):
        executor.map(abs, [1], **arguments)


def test_map_of_something_that_cannot_be_iterated_is_refused(executor: ProcessPoolExecutor) -> None:
    """At the call as well."""
    with pytest.raises(TypeError, match="int"):
        executor.map(abs, 5)  # type: ignore[arg-type]


def test_map_with_a_buffer_reads_an_endless_iterable(executor: ProcessPoolExecutor) -> None:
    """An infinite iterator works, and is read as far as the buffer goes and no further."""
    items = itertools.count()
    results = executor.map(jobs.add_one, items, buffersize=3)
    assert next(items) == 3
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    assert next(items) == 7
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("chunksize", "buffersize"), [(1, 1), (1, 5), (3, 1), (3, 2), (10, 100)])
def test_map_with_a_buffer_gives_the_same(
    executor: ProcessPoolExecutor, chunksize: int, buffersize: int
) -> None:
    """A buffer, which counts tasks of `chunksize` items, changes when items are read and nothing else."""
    items = iter(range(50))
    results = executor.map(jobs.add_one, items, chunksize=chunksize, buffersize=buffersize)
    assert operator.length_hint(items) == 50 - min(50, chunksize * buffersize)
    assert list(results) == list(range(1, 51))


def test_map_with_a_full_buffer_ends_with_its_executor() -> None:
    """Shutdown finishes what was submitted, reads no further, and says so to whoever asks for more."""
    items = itertools.count()
    with ProcessPoolExecutor(1) as executor:
        results = executor.map(jobs.add_one, items, buffersize=4)
    assert next(items) == 4
    with pytest.raises(RuntimeError, match="after shutdown"):
        list(itertools.islice(results, 10))


def test_map_after_shutdown_is_refused(executor: ProcessPoolExecutor) -> None:
    """As `submit` is."""
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(abs, [1])


# ---------------------------------------------------------------------- what is sent


def test_map_sends_the_function_once_per_worker(executor: ProcessPoolExecutor) -> None:
    """A function that holds 1 MB is not sent with every item."""
    table = bytes(np.random.default_rng(1).integers(0, 255, 1_000_000, dtype=np.uint8))
    before = executor._pool.delivery.bytes_sent
    assert list(executor.map(table.__getitem__, range(300))) == list(table[:300])
    assert executor._pool.delivery.bytes_sent - before < 2 * (1_000_000 + 300 * 200)


def test_map_of_arrays_gives_arrays(executor: ProcessPoolExecutor) -> None:
    """Items and results may be arrays, shared or not."""
    rows = list(executor.map(_row, range(20)))
    assert np.array_equal(rows, np.arange(20)[:, None] * np.ones(1000, int))
    table = ndshare.share(np.arange(12.0).reshape(3, 4))
    assert list(executor.map(np.sum, table)) == [6.0, 22.0, 38.0]
    assert list(executor.map(_add_in_place, table)) == [None] * 3
    assert table.sum() == 66 + 12


def _add_in_place(row: np.ndarray) -> None:
    row += 1


def test_map_in_parallel_from_an_inner_generator(executor: ProcessPoolExecutor) -> None:
    """Several maps of one executor may be open at once, one feeding the other."""
    inner = executor.map(jobs.add_one, range(30), buffersize=4)
    outer = executor.map(jobs.add_one, inner, buffersize=2)
    assert list(outer) == list(range(2, 32))


def test_map_of_the_same_array_hints_once(executor: ProcessPoolExecutor) -> None:
    """An ordinary array that goes with every item is worth the hint, given where `map` was called."""
    data = np.zeros(200_000)
    with pytest.warns(ndshare.RepeatedCopyWarning, match="200000") as caught:
        list(executor.map(np.dot, itertools.repeat(data, 5), itertools.repeat(data)))
    assert [(w.filename, w.category) for w in caught] == [(__file__, ndshare.RepeatedCopyWarning)]
