"""Many arrays at once, and arrays on long ways: through several executors, threads and levels."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import ndshare
from tests.array_tasks import echo
from tests.pool import flood_tasks as tasks
from tests.pool.semantics_tasks import is_pattern, pattern

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::ndshare.RepeatedCopyWarning")]

_MIXED = (0, 8, 1000, 4096, 4104, 20_000, 65_536, 70_000, 262_144, 300_000)


@pytest.fixture
def executor():
    """Return an executor with one worker."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        yield executor


def test_flood_of_results_of_mixed_sizes(executor):
    """A thousand arrays in one result are all right, also after more of them have come and gone."""
    sizes = [_MIXED[i % len(_MIXED)] for i in range(1000)]
    first = executor.submit(tasks.many, sizes, 0).result()
    for round_ in range(2):
        assert executor.submit(tasks.many, sizes, 5000 + round_).result()[9].size == sizes[9] // 8
    assert all(is_pattern(a, seed) for seed, a in enumerate(first))
    for a in first:
        a += 1
    back = executor.submit(echo, first).result()
    assert all(is_pattern(a, seed + 1) for seed, a in enumerate(back))


def test_flood_of_large_results_in_a_dict(executor):
    """Two hundred results of a segment each arrive, in one message and by one task."""
    got = executor.submit(tasks.many, [300_000] * 200, 0).result()
    executor.submit(tasks.many, [300_000] * 200, 900).result()
    assert all(is_pattern(a, seed) for seed, a in enumerate(got))


@pytest.mark.parametrize("count", [252, 253, 254, 300, 600])
def test_more_segments_than_a_message_carries(executor, count):
    """Messages with more descriptors than the kernel takes at once arrive whole, in both directions."""
    sealed = executor.submit(tasks.sealed, count).result()
    assert [int(a[0]) for a in sealed] == list(range(count))
    assert not any(a.flags.writeable for a in sealed)
    assert executor.submit(tasks.first_items, sealed).result() == list(range(count))
    own = tasks.sealed(count)
    back = executor.submit(echo, own).result()
    assert all(np.shares_memory(a, b) for a, b in zip(own, back, strict=True))
    # Next to others, in one burst.
    futures = [executor.submit(tasks.first_items, own[i::7] * 2) for i in range(20)]
    mapped = executor.map(tasks.first_items, [own, sealed, own], chunksize=2)
    assert [f.result() for f in futures] == [list(range(i, count, 7)) * 2 for i in range(20)]
    assert list(mapped) == [list(range(count))] * 3


def test_shared_arrays_two_levels_down_and_back():
    """A shared array passes through nested executors and is the same memory on every level."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        for nbytes in (1000, 70_000, 3_000_000):
            a = ndshare.share(pattern(nbytes, 0))
            plain = pattern(nbytes, 0)
            same, copy, made = executor.submit(tasks.go_down, 2, a, plain).result()
            assert np.shares_memory(a, same)
            assert is_pattern(a, 3)  # one more on each level
            assert is_pattern(plain, 0)
            assert is_pattern(copy, 3)
            assert ndshare.is_shared(made)
            assert is_pattern(made, 7)
            made += 1
            assert executor.submit(np.sum, made).result() == made.sum()
            executor.submit(tasks.go_down, 1, made, plain).result()
            assert is_pattern(made, 10)


def test_arrays_between_two_executors():
    """Results of one executor are arguments of the other, for many rounds, shared and not."""
    with (
        ndshare.ProcessPoolExecutor(1) as one,
        ndshare.ProcessPoolExecutor(2, initializer=tasks.nothing) as two,
    ):
        for nbytes in (1000, 70_000, 300_000, 3_000_000):
            made = one.submit(tasks.share_pattern, nbytes, 0).result()
            plain = one.submit(pattern, nbytes, 0).result()
            kept = []
            for step in range(6):
                executor = (one, two)[step % 2]
                executor.submit(tasks.add_one, made).result()
                kept.append(plain)
                plain = executor.submit(tasks.added_one, plain).result()
            assert is_pattern(made, 6)
            assert is_pattern(plain, 6)
            assert all(is_pattern(a, i) for i, a in enumerate(kept))
            seen = [one.submit(echo, made).result(), two.submit(echo, made).result()]
            assert all(np.shares_memory(a, made) for a in seen)
            del made, kept
            assert is_pattern(seen[1], 6)


def test_future_of_one_executor_feeds_the_other_by_callbacks():
    """Arrays handed on inside callbacks arrive."""
    with ndshare.ProcessPoolExecutor(1) as one, ndshare.ProcessPoolExecutor(1) as two:
        done = threading.Event()
        results = []

        def hand_on(future):
            two.submit(tasks.added_one, future.result()).add_done_callback(finish)

        def finish(future):
            results.append(future.result())
            if len(results) == 20:
                done.set()

        for i in range(20):
            one.submit(pattern, 3000 * i, i).add_done_callback(hand_on)
        assert done.wait(60)
        results.sort(key=lambda a: a.size)
        assert all(is_pattern(a, i + 1) for i, a in enumerate(results))


@pytest.mark.parametrize("shared", [False, True])
def test_threads_submit_the_same_array_at_once(shared):
    """The same array, sent by eight threads at a time, arrives whole everywhere."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        for nbytes in (1000, 70_000, 1_500_000):
            a = pattern(nbytes, 1)
            a = ndshare.share(a) if shared else a
            errors = []

            def work(a=a, errors=errors):
                try:
                    for _ in range(10):
                        b = executor.submit(echo, a).result()
                        assert is_pattern(b, 1)
                        assert np.shares_memory(a, b) == shared
                        if not shared:
                            b[:] = 0
                except BaseException as error:
                    errors.append(error)

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not errors
            assert is_pattern(a, 1)


def test_memory_is_recycled_under_views_by_nobody(chaos_rng, chaos_rounds):
    """A long random life of results, shared arrays, their views and their ends leaves every content whole."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        alive: list[tuple[np.ndarray, int, int]] = []
        for step in range(300 * chaos_rounds):
            nbytes = chaos_rng.choice([8, 900, 5000, 40_000, 70_000, 262_144, 300_000, 1_100_000])
            kind = chaos_rng.randrange(6)
            if kind == 0:
                a = executor.submit(pattern, nbytes, step).result()
            elif kind == 1:
                a = executor.submit(echo, pattern(nbytes, step)).result()
            elif kind == 2:
                a = ndshare.share(pattern(nbytes, step))
            elif kind == 3:
                a = executor.submit(tasks.share_pattern, nbytes, step).result()
            elif kind == 4:
                a = ndshare.share(pattern(nbytes, step), mode=chaos_rng.choice(["r", "rw"]))
                a = executor.submit(echo, a).result()
            else:
                a = executor.submit(tasks.array_and_view, nbytes, step).result()[0]
            start = chaos_rng.randrange(a.size)
            stop = chaos_rng.randrange(start, a.size + 1)
            alive.append((a[start:stop] if chaos_rng.random() < 0.5 else a[start:], step, start))
            del a
            while len(alive) > 60 or (alive and chaos_rng.random() < 0.4):
                alive.pop(chaos_rng.randrange(len(alive)))
            if chaos_rng.random() < 0.03:
                ndshare.trim()
            if chaos_rng.random() < 0.02:
                ndshare.shutdown()
                executor = ndshare.ProcessPoolExecutor(2)
            if step % 20 == 0:
                assert all(is_pattern(a, seed, start) for a, seed, start in alive), step
        assert all(is_pattern(a, seed, start) for a, seed, start in alive)
        executor.shutdown()
