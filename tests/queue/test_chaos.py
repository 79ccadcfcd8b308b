"""A queue whose participants are killed at random, and every array layout through one."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ndshare
from ndshare._memory import segments
from tests import array_tasks
from tests.array_tasks import fingerprint, layout
from tests.pool.test_any_array import _check_ordinary, _here, _recipes
from tests.queue import queue_tasks

pytestmark = pytest.mark.once

_PARTIES = 8
_EACH = 100_000  # messages per producer, in the whole test
_PATIENCE_S = 1200  # faulthandler ends a test that hangs before
_KILLS = 100  # per seed, of which there are two


@pytest.fixture(scope="module")
def q():
    """Return a queue for all examples."""
    made = ndshare.Queue()
    yield made
    made.close()


@_here
@given(recipe=_recipes())
def test_any_ordinary_array_arrives_equal_writable_and_another(q, recipe):
    """An ordinary array of any dtype and layout comes out of a queue equal, writable and private."""
    dtype, shape, seed, steps = recipe
    a = array_tasks.apply(array_tasks.fill(dtype, shape, seed), steps)
    before = fingerprint(a)
    q.put([a])
    _check_ordinary(q.get(timeout=10)[0], a, before)


@_here
@given(recipe=_recipes())
def test_any_shared_array_arrives_as_the_same_memory(q, recipe):
    """A shared array keeps memory, strides and flags."""
    dtype, shape, seed, steps = recipe
    a = array_tasks.apply(array_tasks.shared_fill(dtype, shape, seed), steps)
    q.put(a)
    got = q.get(timeout=10)
    assert fingerprint(got) == fingerprint(a)
    assert layout(got) == layout(a)
    assert got.flags.writeable == a.flags.writeable
    assert ndshare.is_shared(got)
    assert np.shares_memory(got, a) or not a.size


def test_any_array_goes_to_a_child_and_back(q):
    """Another process sees what was put, shared or not, and what it puts comes back the same way."""
    back = ndshare.Queue()
    child = mp.get_context("fork").Process(target=queue_tasks.echo, args=(q, back))
    child.start()

    @_here
    @given(recipe=_recipes(), shared=st.booleans())
    def send(recipe, shared):
        a, print_, strides = array_tasks.make(*recipe, shared)
        q.put(a)
        got, sight = back.get(timeout=30)
        dense = tuple(strides) if shared else layout(np.asarray(a).copy(order="K"))
        assert sight.print == print_
        assert sight.layout in (dense, tuple(strides))
        assert sight.shared == ndshare.is_shared(got) == shared
        if shared:
            assert sight.writeable == a.flags.writeable
            assert fingerprint(got) == print_
            assert layout(got) == layout(a)
            assert not a.size or np.shares_memory(got, a, max_work=1)
        else:  # the child has written all over its own
            assert sight.writeable or not a.flags.writeable or 0 in a.strides
            assert fingerprint(a) == print_
            assert not np.shares_memory(got, a, max_work=1)

    try:
        send()
    finally:
        q.put(None)
        child.join()
        assert child.exitcode == 0
        child.close()
        back.close()


@_here
@given(recipe=_recipes())
def test_any_array_waits_in_the_sender_unharmed(recipe):
    """What finds no room in the socket is copied aside; a change after put does not show."""
    dtype, shape, seed, steps = recipe
    a = array_tasks.apply(array_tasks.fill(dtype, shape, seed), steps)
    before = fingerprint(a)
    q = ndshare.Queue()
    filling = 0
    filler = b"x" * 40_000
    while not q._line.backlog.messages:
        q.put(filler)
        filling += 1
    q.put(a)
    if a.flags.writeable and a.size:
        array_tasks.scribble(a)
    for _ in range(filling):
        assert q.get(timeout=10) == filler
    assert fingerprint(q.get(timeout=10)) == before
    q.close()


def _pass_through(producers, consumers, each, maxsize):
    """Send numbered messages through a queue of processes; return how often each arrived."""
    q = ndshare.Queue(maxsize)
    seen = ndshare.zeros((producers, each), np.uint8)
    wrong = ndshare.zeros(1, np.int64)
    fork = mp.get_context("fork")
    makers = [fork.Process(target=_produce, args=(q, who, each)) for who in range(producers)]
    takers = [
        fork.Process(target=queue_tasks.consume_for_ever, args=(q, seen, wrong)) for _ in range(consumers)
    ]
    for process in makers + takers:
        process.start()
    for process in makers:
        process.join(_PATIENCE_S)
    q.shutdown()
    for process in makers + takers:
        process.join(_PATIENCE_S)
        assert process.exitcode == 0
        process.close()
    q.close()
    assert wrong[0] == 0
    return np.array(seen)


def _produce(q, who, n):
    for number in range(n):
        q.put((who, number, np.full((10, 10, 10, 6000)[number % 4], number % 251, np.uint8)))


@pytest.mark.chaos
@pytest.mark.parametrize("maxsize", [0, 20])
def test_eight_producers_and_eight_consumers_lose_and_double_nothing(chaos_rounds, maxsize):
    """Each message arrives exactly once, in order per producer at each consumer.

    100,000 per producer from 20 rounds on.
    """
    seen = _pass_through(_PARTIES, _PARTIES, min(_EACH // 20 * chaos_rounds, _EACH), maxsize)
    assert (seen == 1).all(), np.argwhere(seen != 1)[:10]
    segments.trim()


def test_eight_producers_keep_their_order_at_one_consumer():
    """What one process puts comes in its order, through the backlog too."""
    q = ndshare.Queue()
    fork = mp.get_context("fork")
    processes = [fork.Process(target=queue_tasks.put_numbers, args=(q, who, 1000)) for who in range(_PARTIES)]
    for process in processes:
        process.start()
    got = [q.get(timeout=30) for _ in range(1000 * _PARTIES)]
    for process in processes:
        process.join()
        process.close()
    for who in range(_PARTIES):
        assert [number for w, number in got if w == who] == list(range(1000))
    q.close()


def _check_missing(seen, accepted, killed_consumers, *, bounded):
    """Check that what is missing was in the hands of killed consumers, one message each.

    Of an unbounded queue a killed producer takes along what waited for room: the last that it put.
    """
    seen = seen.astype(bool)
    ends = np.where(seen.any(1), seen.shape[1] - seen[:, ::-1].argmax(1), 0)
    assert (ends <= accepted + 1).all()  # it may be killed between `put` and the note
    if bounded:
        ends = np.maximum(ends, accepted)
    missing = sum(int((~row[:end]).sum()) for row, end in zip(seen, ends, strict=True))
    assert missing <= killed_consumers


@pytest.mark.chaos
@pytest.mark.parametrize("maxsize", [0, 12])
def test_random_kills_lose_only_what_the_dead_had(chaos_rng, chaos_rounds, maxsize):
    """No hang, no duplicate, no damaged array; the bound is exact and the memory free afterwards.

    Two bounds and two seeds: 200 kills in a normal run.
    """
    rng = chaos_rng
    fork = mp.get_context("fork")
    q = ndshare.Queue(maxsize)
    kills = _KILLS // 2 * chaos_rounds
    lives = _PARTIES // 2 + kills
    arrays = {
        "seen": ndshare.zeros((lives, 200_000), np.uint8),
        "accepted": ndshare.zeros(lives, np.int64),
        "wrong": ndshare.zeros(1, np.int64),
    }
    life = 0

    def produce():
        nonlocal life
        process = fork.Process(target=queue_tasks.produce_for_ever, args=(q, life, arrays["accepted"]))
        process.start()
        life += 1
        return process

    def consume():
        process = fork.Process(target=queue_tasks.consume_for_ever, args=(q, arrays["seen"], arrays["wrong"]))
        process.start()
        return process

    producers = [produce() for _ in range(_PARTIES // 2)]
    consumers = [consume() for _ in range(_PARTIES // 2)]
    killed_consumers = 0
    try:
        for _ in range(kills):
            time.sleep(rng.random() * 0.02)
            crowd, again = rng.choice([(producers, produce), (consumers, consume)])
            which = rng.randrange(len(crowd))
            os.kill(crowd[which].pid, signal.SIGKILL)
            crowd[which].join()
            crowd[which].close()
            crowd[which] = again()
            killed_consumers += crowd is consumers
        before = int(arrays["seen"].sum())
        deadline = time.monotonic() + 30
        while int(arrays["seen"].sum()) < before + 500:  # they all go on
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for process in producers:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        q.shutdown()
        for process in consumers:
            process.join(60)
            assert process.exitcode == 0
        assert arrays["wrong"][0] == 0
        assert arrays["seen"].max() == 1
        _check_missing(arrays["seen"], arrays["accepted"], killed_consumers, bounded=maxsize > 0)
        assert q.qsize() == 0
    finally:
        for process in producers + consumers:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        q.close()
    arrays.clear()
    segments.trim()
    assert segments.stats().own_bytes == 0
    assert segments.stats().held_bytes == 0
