"""A queue that ends with its producers, and one whose objects are said to be done."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import os
import queue
import signal
import threading
import time

import numpy as np
import pytest

import ndshare
from tests.dict.dict_tasks import ended, forked
from tests.queue import queue_tasks

START_METHODS = ("fork", "forkserver", "spawn")


@pytest.fixture(scope="module", autouse=True)
def helpers():
    """Start multiprocessing's helper processes before anybody looks what is left behind."""
    from multiprocessing import forkserver, resource_tracker

    forkserver.ensure_running()
    resource_tracker.ensure_running()


@pytest.fixture
def q():
    """Return a queue that ends with its producers."""
    made = ndshare.Queue(ends_with_producers=True)
    yield made
    made.close()


def take_all(q: ndshare.Queue, timeout: float = 30) -> list[object]:
    """Return what comes until the queue ends."""
    found = []
    while True:
        try:
            found.append(q.get(timeout=timeout))
        except ndshare.ShutDown:
            return found


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize("method", START_METHODS)
def test_get_ends_with_the_last_producer(q, method):
    """However they were started, and although the first is gone before the last begins."""
    context = mp.get_context(method)
    processes = [context.Process(target=queue_tasks.put_later, args=(q, n, 0.1 * n)) for n in range(3)]
    for process in processes:
        process.start()
    assert sorted(take_all(q)) == [0, 0, 1, 1, 2, 2]
    for process in processes:
        process.join()
        process.close()
    with pytest.raises(ndshare.ShutDown):
        q.put(1)


@pytest.mark.parametrize("bounds", [{}, {"maxsize": 3}, {"maxbytes": 100_000}])
def test_end_comes_after_what_was_put(bounds):
    """What waits in a producer that closes the queue or exits, too."""
    q = ndshare.Queue(ends_with_producers=True, **bounds)

    def produce() -> None:
        for number in range(400):
            q.put(np.full(100, number))
        q.close()
        q.join_thread()

    pid = forked(produce)
    assert [int(one[0]) for one in take_all(q)] == list(range(400))
    assert ended(pid) == 0
    q.close()


def test_killed_producer_is_gone(q):
    """And what it had put is there."""

    def produce() -> None:
        q.put(1)
        os.kill(os.getpid(), signal.SIGKILL)

    pids = [forked(produce) for _ in range(3)]
    assert take_all(q) == [1, 1, 1]
    for pid in pids:
        ended(pid)


def test_consumers_end_when_the_parent_closes(q):
    """It has put; they only take, and do not count."""
    results = ndshare.Queue()

    def consume() -> None:
        results.put(len(take_all(q)))

    pids = [forked(consume) for _ in range(3)]
    for number in range(50):
        q.put(number)
    with pytest.raises(queue.Empty):
        results.get(timeout=0.5)
    q.close()
    assert sum(results.get(timeout=30) for _ in pids) == 50
    for pid in pids:
        assert ended(pid) == 0
    results.close()


def test_nothing_ends_before_somebody_could_put(q):
    """Nor while a process that has the queue has not made up its mind, nor while it is on its way."""
    with pytest.raises(queue.Empty):
        q.get(timeout=0.3)
    pid = forked(lambda: time.sleep(1))
    with pytest.raises(queue.Empty):
        q.get(timeout=0.3)
    carrier = ndshare.Queue()
    carrier.put(q)
    ended(pid)
    with pytest.raises(queue.Empty):
        q.get(timeout=0.3)
    pid = forked(lambda: carrier.get().put("through another queue"))
    assert take_all(q) == ["through another queue"]
    assert ended(pid) == 0
    carrier.close()


def test_forked_child_of_a_receiver_may_put(q):
    """There is no moment at which nobody counts."""

    def child() -> None:
        time.sleep(0.3)
        q.put("late")

    ended(forked(lambda: q.put("first")))
    assert q.get(timeout=20) == "first"
    pid = forked(child)
    assert take_all(q) == ["late"]
    assert ended(pid) == 0


def test_task_of_an_executor_counts_while_it_runs(q):
    """It holds the queue from the moment at which it is sent."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        future = executor.submit(queue_tasks.put_later, q, 5, 0.3)
        assert take_all(q) == [5, 5]
        future.result()


def test_get_nowait_and_aget_hear_of_the_end(q):
    """As `get` does."""
    ended(forked(lambda: q.put(1)))
    assert q.get_nowait() == 1
    with pytest.raises(ndshare.ShutDown):
        q.get_nowait()
    other = ndshare.Queue(ends_with_producers=True)
    pid = forked(lambda: queue_tasks.put_later(other, 2, 0.3))

    async def take() -> list[int]:
        found = []
        with pytest.raises(ndshare.ShutDown):
            while True:
                found.append(await other.aget())
        return found

    assert asyncio.run(take()) == [2, 2]
    ended(pid)
    other.close()


def test_end_wakes_all_who_wait(q):
    """Several threads in several processes."""
    ends = ndshare.Queue()

    def consume() -> None:
        threads = [threading.Thread(target=lambda: ends.put(take_all(q))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    pids = [forked(consume) for _ in range(2)]
    producer = forked(lambda: queue_tasks.put_later(q, 1, 0.5))
    q.close()
    assert sorted(map(len, (ends.get(timeout=30) for _ in range(4)))) in ([0, 0, 0, 2], [0, 0, 1, 1])
    for pid in (*pids, producer):
        assert ended(pid) == 0
    ends.close()


def test_ordinary_queue_does_not_end():
    """Producers may come later."""
    q = ndshare.Queue()
    ended(forked(lambda: q.put(1)))
    assert q.get(timeout=20) == 1
    with pytest.raises(queue.Empty):
        q.get(timeout=0.5)
    q.close()


# ------------------------------------------------------------------ done


def test_join_waits_until_everything_is_done():
    """Of all processes; `task_done` is said by whom it concerns."""
    q = ndshare.Queue()
    for number in range(20):
        q.put(number)

    def work() -> None:
        while q.get() is not None:
            time.sleep(0.01)
            q.task_done()
        q.task_done()

    pids = [forked(work) for _ in range(2)]
    q.join()
    assert q.empty()
    for _ in pids:
        q.put(None)
    q.join()
    for pid in pids:
        assert ended(pid) == 0
    q.close()


def test_join_is_that_of_the_standard_library():
    """It returns at once if nothing was put, and once for each object suffices."""
    q = ndshare.Queue()
    q.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    q.put(1)
    with pytest.raises(TimeoutError, match="1 objects"):
        q.join(timeout=0.05)
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    q.get()
    with pytest.raises(TimeoutError):
        q.join(timeout=0.05)
    q.task_done()
    q.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    q.close()
    with pytest.raises(ValueError, match="closed"):
        q.join()
    with pytest.raises(ValueError, match="closed"):
        q.task_done()


@pytest.mark.parametrize("bounds", [{}, {"maxsize": 900}])
def test_what_shutdown_drops_is_done(bounds):
    """In the socket and in what waits behind it; what was taken out before is not."""
    q = ndshare.Queue(**bounds)
    for _ in range(800):
        q.put(np.zeros(100))
    q.get()
    q.shutdown(immediate=True)
    with pytest.raises(TimeoutError):
        q.join(timeout=0.3)
    q.task_done()
    q.join(timeout=20)
    q.close()


def test_join_says_that_messages_were_lost():
    """With a producer that was killed before the socket had room for them."""
    q = ndshare.Queue()

    def produce() -> None:
        for _ in range(1000):
            q.put(np.zeros(100))
        os.kill(os.getpid(), signal.SIGKILL)

    ended(forked(produce))
    while True:
        try:
            q.get(timeout=0.2)
        except queue.Empty:
            break
        q.task_done()
    with pytest.raises(ndshare.errors.TransportError, match="were lost"):
        q.join()
    q.close()
