"""Many items of one function: results as they come, chunks of measured size, progress."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import operator
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import ProcessPoolExecutor
from ndshare._pool.items import ChunkSize
from tests import jobs


@pytest.fixture
def executor() -> Iterator[ProcessPoolExecutor]:
    """Return an executor of two workers."""
    with ProcessPoolExecutor(2) as executor:
        yield executor


def _fail_at(wrong: int, n: int) -> int:
    if n == wrong:
        raise ValueError(f"item {n}")
    return n


def _fail_at_seven(n: int) -> int:
    return _fail_at(7, n)


def _fail_or_nap(n: int) -> int:
    if n > 50:
        time.sleep(0.01)
    return _fail_at(7, n)


def _die_at_seven(n: int) -> int:
    if n == 7:
        jobs.kill_self()
    return n


def _die_once(directory: Path, n: int) -> int:
    (directory / f"{n}_{os.getpid()}").touch()
    if n == 7 and not (directory / "died").exists():
        (directory / "died").touch()
        jobs.kill_self()
    return n


def _lambda_or_lock(n: int) -> Any:
    return threading.Lock() if n == 3 else n


def _first_waits(directory: Path, n: int) -> int:
    if n == 0:
        jobs.wait_for((directory / "go").exists)
    return n


def _mark(directory: Path, n: int) -> int:
    (directory / f"ran_{n}").touch()
    if n:
        jobs.wait_for((directory / "go").exists)
    return n


def _everything(results: Iterator[Any]) -> list[Any]:
    """Take all there is, what was raised as well."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except Exception as error:
            found.append(error)


# ---------------------------------------------------------------------- imap_unordered


@pytest.mark.parametrize("chunksize", [1, 3, 100, "auto"])
@pytest.mark.parametrize("buffersize", [None, 1, 5, 1000])
def test_imap_unordered_gives_each_result_once(
    executor: ProcessPoolExecutor, chunksize: Any, buffersize: int | None
) -> None:
    """Whatever the chunks and the buffer; the shortest iterable decides."""
    results = executor.imap_unordered(
        pow, range(60), itertools.repeat(2), chunksize=chunksize, buffersize=buffersize
    )
    assert sorted(results) == [n * n for n in range(60)]
    assert list(executor.imap_unordered(abs, [], chunksize=chunksize, buffersize=buffersize)) == []
    assert list(executor.imap_unordered(abs)) == []


def test_imap_unordered_gives_what_is_ready_first(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """A slow item holds up nobody else's result."""
    results = executor.imap_unordered(_first_waits, itertools.repeat(tmp_path), range(6))
    assert sorted(next(results) for _ in range(5)) == [1, 2, 3, 4, 5]
    (tmp_path / "go").touch()
    assert list(results) == [0]


@pytest.mark.parametrize(("chunksize", "buffersize"), [(1, 1), (1, 4), (3, 7), (10, 4), ("auto", 6)])
def test_imap_unordered_reads_no_further_than_its_buffer(
    executor: ProcessPoolExecutor, chunksize: Any, buffersize: int
) -> None:
    """Items read whose results were not given are never more than `buffersize`."""
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for n in itertools.count():
            read += 1
            yield n

    results = executor.imap_unordered(jobs.add_one, items(), chunksize=chunksize, buffersize=buffersize)
    assert read <= buffersize
    for given in range(1, 40):
        next(results)
        assert read - given <= buffersize
    results.close()
    assert next(results, None) is None


def test_imap_unordered_of_an_endless_input_reads_a_few_items_a_worker(executor: ProcessPoolExecutor) -> None:
    """By default four tasks for each worker."""
    items = itertools.count()
    results = executor.imap_unordered(jobs.add_one, items, chunksize=2)
    assert next(items) == 4 * 2 * 2
    results.close()


def test_an_error_comes_in_its_turn_and_nothing_computed_is_lost(
    executor: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Results of the same chunk before it, and of chunks that had begun; what had not begun is cancelled."""
    found = _everything(executor.imap_unordered(_fail_or_nap, range(1000), chunksize=5, buffersize=1000))
    errors = [one for one in found if isinstance(one, Exception)]
    assert [str(error) for error in errors] == ["item 7"]
    assert "_fail_at" in str(errors[0].__cause__)
    values = [one for one in found if not isinstance(one, Exception)]
    assert {5, 6} <= set(values)
    assert len(set(values)) == len(values) < 990
    assert executor.submit(jobs.add_one, 1).result(60) == 2


def test_a_result_that_cannot_be_sent_is_its_items_error(executor: ProcessPoolExecutor) -> None:
    """Results of the chunk before it arrive."""
    found = _everything(executor.imap_unordered(_lambda_or_lock, range(6), chunksize=6))
    assert found[:3] == [0, 1, 2]
    assert isinstance(found[3], TypeError)
    assert len(found) == 4


def test_what_the_input_raises_comes_after_all_results(executor: ProcessPoolExecutor) -> None:
    """What it gave before that is computed."""

    def items() -> Iterator[int]:
        yield from range(8)
        raise KeyError("input")

    found = _everything(executor.imap_unordered(jobs.add_one, items(), chunksize=3))
    assert sorted(found[:-1]) == list(range(1, 9))
    assert isinstance(found[-1], KeyError)
    with pytest.raises(ZeroDivisionError):
        executor.imap_unordered(jobs.add_one, (1 // n for n in [0]))


def test_a_worker_that_dies_fails_its_chunk_alone(executor: ProcessPoolExecutor) -> None:
    """`WorkerDiedError` names the function; the next call works."""
    found = _everything(executor.imap_unordered(_die_at_seven, range(12), buffersize=12))
    (error,) = [one for one in found if isinstance(one, Exception)]
    assert isinstance(error, ndshare.WorkerDiedError)
    assert "_die_at_seven" in str(error)
    assert sorted(executor.imap_unordered(jobs.add_one, range(100))) == list(range(1, 101))


@pytest.mark.parametrize("call", ["map", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [4, "auto"])
def test_a_chunk_whose_worker_died_is_tried_again_if_asked(tmp_path: Path, call: str, chunksize: Any) -> None:
    """With `retries` every result is there, once."""
    with ProcessPoolExecutor(2, retries=1) as executor:
        results = getattr(executor, call)(
            _die_once, itertools.repeat(tmp_path), range(12), chunksize=chunksize
        )
        assert sorted(results) == list(range(12))


def test_closing_or_dropping_cancels_what_has_not_begun(tmp_path: Path) -> None:
    """It never runs; what runs is finished."""
    for drop in (False, True):
        directory = tmp_path / str(drop)
        directory.mkdir()
        with ProcessPoolExecutor(1) as executor:
            results = executor.imap_unordered(_mark, itertools.repeat(directory), range(50), buffersize=50)
            assert next(results) == 0
            if drop:
                del results
                gc.collect()
            else:
                results.close()
            (directory / "go").touch()
        assert len(list(directory.glob("ran_*"))) < 5


def test_imap_unordered_keeps_neither_results_nor_items(executor: ProcessPoolExecutor) -> None:
    """What was given is held by the user alone, items are let go when they are done."""
    items = [jobs.Counter(n) for n in range(5)]
    gone = [weakref.ref(item) for item in items]
    results = executor.imap_unordered(jobs.identity, items, chunksize=2)
    del items
    for result in results:
        seen = weakref.ref(result)
        del result
        assert seen() is None
    assert [reference() for reference in gone] == [None] * 5


def test_imap_unordered_in_time_or_not(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """What is ready in time is given, then `TimeoutError`."""
    assert executor.submit(jobs.add_one, 1).result() == 2
    results = executor.imap_unordered(_first_waits, itertools.repeat(tmp_path), range(3), timeout=1.5)
    assert sorted([next(results), next(results)]) == [1, 2]
    with pytest.raises(TimeoutError, match="_first_waits"):
        next(results)
    (tmp_path / "go").touch()
    assert list(executor.imap_unordered(jobs.add_one, [1], timeout=60)) == [2]


def test_imap_unordered_after_shutdown(executor: ProcessPoolExecutor) -> None:
    """A new call is refused; an old one gives what was submitted, then says so."""
    results = executor.imap_unordered(jobs.add_one, itertools.count(), buffersize=4)
    executor.shutdown()
    found = list(itertools.islice(results, 4))
    assert sorted(found) == [1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.imap_unordered(abs, [1])


def test_imap_unordered_of_shared_arrays(executor: ProcessPoolExecutor) -> None:
    """Shared arrays arrive as the same memory, `np.errstate` goes along."""
    table = ndshare.share(np.zeros((6, 4)))
    list(executor.imap_unordered(_fill, table, range(6), chunksize="auto"))
    assert np.array_equal(table, np.arange(6)[:, None] * np.ones(4))
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        list(executor.imap_unordered(np.divide, [np.ones(2)], [np.zeros(2)]))


def _fill(row: np.ndarray, n: int) -> None:
    row[...] = n


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"chunksize": 0}, ValueError, r"chunksize must be at least 1, got 0"),
        ({"chunksize": "fast"}, ValueError, r"chunksize must be an integer or 'auto', got 'fast'"),
        ({"chunksize": None}, TypeError, r"chunksize must be an integer, got None"),
        ({"buffersize": 0}, ValueError, r"buffersize must be None or > 0, got 0"),
        ({"timeout": "1"}, TypeError, r"timeout must be a number of seconds, got '1'"),
        ({"progress": 5}, TypeError, r"progress must be callable, got 5"),
    ],
)
@pytest.mark.parametrize("call", ["map", "imap_unordered"])
def test_bad_arguments_are_refused_at_the_call(
    executor: ProcessPoolExecutor, call: str, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """With what was got and what is allowed."""
    with pytest.raises(error, match=words):
        getattr(executor, call)(abs, [1], **arguments)


# ---------------------------------------------------------------------- chunks of measured size


@pytest.mark.parametrize("buffersize", [None, 3])
def test_map_in_chunks_of_measured_size_gives_the_same(
    executor: ProcessPoolExecutor, buffersize: int | None
) -> None:
    """In order, tiny or long."""
    results = executor.map(jobs.add_one, range(5000), chunksize="auto", buffersize=buffersize)
    assert list(results) == list(range(1, 5001))
    assert list(executor.map(jobs.nap, [0.02, 0.0, 0.01, 0.0], "abcd", chunksize="auto")) == list("abcd")
    assert list(executor.map(abs, [], chunksize="auto", buffersize=buffersize)) == []


def test_tiny_items_travel_by_the_hundred_and_long_ones_alone(executor: ProcessPoolExecutor) -> None:
    """The number of messages follows what an item takes."""
    delivery = executor._pool.delivery
    before = delivery.bytes_sent
    chunks: list[int] = []
    size = ChunkSize(executor._pool)
    for _ in range(20):
        chunks.append(size.now())
        size.note(chunks[-1], 1e-6 * chunks[-1])
    assert chunks[:4] == [1, 2, 4, 8]
    assert chunks[-1] > 5000
    for _ in range(20):
        size.note(size.now(), 0.1 * size.now())
    assert size.now() == 1
    assert delivery.bytes_sent == before


def test_chunks_of_large_arrays_stay_small(executor: ProcessPoolExecutor) -> None:
    """Items that take no time but memory are not gathered by the gigabyte."""
    rows = [np.full(60_000, n, float) for n in range(80)]  # 38 MB
    list(executor.map(operator.itemgetter(0), rows[:2]))
    most = 0
    note = ChunkSize.note

    def noted(self: ChunkSize, count: int, seconds: float) -> None:
        nonlocal most
        most = max(most, count)
        note(self, count, 1e-9)

    ChunkSize.note = noted  # type: ignore[method-assign]
    try:
        assert list(executor.map(operator.itemgetter(0), rows, chunksize="auto")) == list(range(80))
    finally:
        ChunkSize.note = note  # type: ignore[method-assign]
    assert 2 <= most <= 40


def test_an_error_in_a_measured_chunk_comes_in_its_place(executor: ProcessPoolExecutor) -> None:
    """After all results before it, as with chunks of one."""
    results = executor.map(_fail_at_seven, range(2000), chunksize="auto")
    assert list(itertools.islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="item 7"):
        next(results)
    assert next(results, None) is None


def test_a_measured_map_is_finished_before_its_executor_ends() -> None:
    """All items count as submitted, though most are not cut into chunks yet; nobody has to take results."""
    with ProcessPoolExecutor(2) as executor:
        results = executor.map(jobs.nap, itertools.repeat(0.001, 300), range(300), chunksize="auto")
    assert list(results) == list(range(300))


def test_a_measured_map_that_is_cancelled_says_so(tmp_path: Path) -> None:
    """What has not begun never runs."""
    executor = ProcessPoolExecutor(1)
    results = executor.map(_mark, itertools.repeat(tmp_path), range(500), chunksize="auto")
    assert next(results) == 0
    jobs.wait_for(lambda: len(list(tmp_path.iterdir())) > 1)
    executor.shutdown(wait=False, cancel_futures=True)
    (tmp_path / "go").touch()
    with pytest.raises(concurrent.futures.CancelledError):
        list(results)
    executor.shutdown()
    assert len(list(tmp_path.glob("ran_*"))) < 10


def test_a_measured_map_whose_workers_are_killed_fails_at_once(tmp_path: Path) -> None:
    """No item waits for ever."""
    executor = ProcessPoolExecutor(2)
    results = executor.map(_mark, itertools.repeat(tmp_path), range(1, 500), chunksize="auto")
    jobs.wait_for(lambda: len(list(tmp_path.iterdir())) > 1)
    executor.kill_workers()
    with pytest.raises(ndshare.WorkerDiedError):
        list(results)
    executor.shutdown()


def test_a_measured_map_reads_arguments_at_once_with_snapshot_submit() -> None:
    """What changes after the call is not seen."""
    with ProcessPoolExecutor(2, snapshot="submit") as executor:
        rows = [np.full(1000, n) for n in range(50)]
        results = executor.map(np.max, rows, chunksize="auto")
        for row in rows:
            row[...] = -1
        assert list(results) == list(range(50))


# ---------------------------------------------------------------------- progress


@pytest.mark.parametrize("call", ["map", "imap_unordered"])
@pytest.mark.parametrize("arguments", [{}, {"chunksize": 7}, {"chunksize": "auto"}, {"buffersize": 5}])
def test_progress_counts_items(executor: ProcessPoolExecutor, call: str, arguments: dict[str, Any]) -> None:
    """From none to all, never backwards."""
    told: list[tuple[int, int]] = []
    results = getattr(executor, call)(
        jobs.add_one, range(40), progress=lambda *pair: told.append(pair), **arguments
    )
    assert sorted(results) == list(range(1, 41))
    assert told[0] == (0, 40)
    assert told[-1] == (40, 40)
    assert told == sorted(told)


def test_progress_of_an_input_without_length_ends(executor: ProcessPoolExecutor) -> None:
    """All are one more than is finished, until nothing is left."""
    told: list[tuple[int, int]] = []
    items = iter(range(10))
    list(executor.imap_unordered(abs, items, progress=lambda *pair: told.append(pair)))
    assert all(finished < total for finished, total in told[:-1])
    assert told[-1] == (10, 10)


def test_the_bar_moves_while_the_first_item_takes_long(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Progress is of what is finished, not of what was taken."""
    told: list[int] = []

    def progress(finished: int, _total: int) -> None:
        told.append(finished)
        if finished == 5:
            (tmp_path / "go").touch()

    results = executor.map(_first_waits, itertools.repeat(tmp_path), range(6), progress=progress)
    assert list(results) == list(range(6))
    assert told[-2:] == [5, 6]


@pytest.mark.parametrize("call", ["map", "imap_unordered"])
def test_the_bar_is_that_of_maps(
    executor: ProcessPoolExecutor, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """True draws with tqdm; after an error the bar is closed where it is."""
    pytest.importorskip("tqdm")
    list(getattr(executor, call)(jobs.add_one, range(30), progress=True, chunksize="auto"))
    assert "30/30" in capsys.readouterr().err
    with pytest.raises(ValueError, match="item 7"):
        list(getattr(executor, call)(_fail_at_seven, range(30), progress=True))
    assert capsys.readouterr().err.endswith("\n")


def test_progress_of_an_executor_with_a_submit_of_its_own() -> None:
    """The calls go through it all the same."""
    told: list[tuple[int, int]] = []
    submitted = 0

    class Counting(ProcessPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            nonlocal submitted
            submitted += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(2) as executor:
        results = executor.map(abs, range(5), chunksize="auto", progress=lambda *pair: told.append(pair))
        assert list(results) == list(range(5))
    assert submitted == 5
    assert told[-1] == (5, 5)


def test_two_threads_with_an_iterator_each(executor: ProcessPoolExecutor) -> None:
    """Calls of several threads do not disturb each other."""
    sums: list[int] = []

    def run(chunksize: Any) -> None:
        sums.append(sum(executor.imap_unordered(jobs.add_one, range(500), chunksize=chunksize)))

    threads = [threading.Thread(target=run, args=(chunksize,)) for chunksize in (1, 7, "auto")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum(range(501))] * 3


def test_a_slow_reader_is_given_everything(executor: ProcessPoolExecutor) -> None:
    """Results wait for it."""
    total = 0
    for result in executor.imap_unordered(jobs.add_one, range(30), chunksize="auto"):
        time.sleep(0.002)
        total += result
    assert total == sum(range(31))
