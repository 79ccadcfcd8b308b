"""A worker that is woken last begins on the caller's processor, and no code in it ever knows."""

from __future__ import annotations

import os
import threading
import time

import pytest

import ndshare
from ndshare._processes import Worker

_EVERYWHERE = os.sched_getaffinity(0)

pytestmark = pytest.mark.skipif(len(_EVERYWHERE) < 2, reason="there is one processor")


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the processes that are placed."""
    found: list[int] = []
    bring_here = Worker.bring_here
    monkeypatch.setattr(Worker, "bring_here", lambda worker: found.append(worker.pid) or bring_here(worker))
    return found


def test_kernels_see_all_processors(placed: list[int]) -> None:
    """So do threads that they start; and the workers when the map is over."""
    count = len(_EVERYWHERE)
    context = ndshare.ProcessContext(count)
    out = context.alloc((count, 2))

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        def look() -> None:
            time.sleep(0.005)
            out[index, 1] = len(os.sched_getaffinity(0))

        out[index, 0] = len(os.sched_getaffinity(0))
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    for _ in range(40):
        out[:] = 0
        context.map(kernel, range(count))
        assert (out == count).all()
        assert all(os.sched_getaffinity(worker.pid) == _EVERYWHERE for worker in context.pool().workers)
        time.sleep(0.004)
    assert placed


def test_what_a_worker_chose_stays(placed: list[int]) -> None:
    """What a kernel sets while it runs is not undone before the map is over."""
    count = len(_EVERYWHERE)
    context = ndshare.ProcessContext(count)
    out = context.alloc(count)

    def pin(_worker_id: int, index: int, _value: int) -> None:
        os.sched_setaffinity(0, {max(_EVERYWHERE)})
        time.sleep(0.02)
        out[index] = len(os.sched_getaffinity(0))

    for _ in range(10):
        out[:] = 0
        context.map(pin, range(count))
        assert (out == 1).all()
        time.sleep(0.004)
    assert placed
    deadline = time.monotonic() + 10
    while any(os.sched_getaffinity(worker.pid) != _EVERYWHERE for worker in context.pool().workers):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_worker_that_still_starts_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it imports may start threads, which would have the narrow affinity for good."""
    narrowed: list[int] = []
    narrow = os.sched_setaffinity
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, mask: narrowed.append(pid) or narrow(pid, mask))
    context = ndshare.ProcessContext(len(_EVERYWHERE))

    def kernel(_worker_id: int, _index: int, _value: int) -> None:
        time.sleep(0.02)

    context.map(kernel, range(2 * len(_EVERYWHERE)))
    assert not narrowed
    for _ in range(50):
        time.sleep(0.01)
        context.map(kernel, range(2 * len(_EVERYWHERE)))
        if narrowed:
            break
    assert narrowed
