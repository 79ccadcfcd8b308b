"""A worker that is woken last begins on the caller's processor, and may run anywhere afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import ndshare
from ndshare import _placing, pool

_everywhere = os.sched_getaffinity(0)


@pytest.fixture
def sleeper() -> Iterator[int]:
    """Yield the number of a process that sleeps."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as process:
        yield process.pid
        process.communicate()


@pytest.mark.skipif(len(_everywhere) < 2, reason="there is one processor")
def test_affinity_is_as_before(sleeper: int) -> None:
    """Inside it is one processor, of those allowed; whatever happens it is what it was afterwards."""
    with pytest.raises(ZeroDivisionError), _placing.here(sleeper):
        inside = os.sched_getaffinity(sleeper)
        raise ZeroDivisionError
    assert len(inside) == 1
    assert inside < _everywhere
    assert os.sched_getaffinity(sleeper) == _everywhere


def test_who_is_pinned_or_gone_is_left_alone(sleeper: int) -> None:
    """One that may run on one processor only, one that has ended, one that does not run yet."""
    os.sched_setaffinity(sleeper, {max(_everywhere)})
    with _placing.here(sleeper):
        assert os.sched_getaffinity(sleeper) == {max(_everywhere)}
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
        with _placing.here(gone.pid):
            pass
    with _placing.here(0):
        assert os.sched_getaffinity(0) == _everywhere


@pytest.mark.skipif(len(_everywhere) < 2, reason="there is one processor")
def test_workers_of_a_map_may_run_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause the last one is placed, and has its processors back when the map is over."""
    count = len(_everywhere)
    placed = []
    here = _placing.here
    monkeypatch.setattr(pool._placing, "here", lambda pid: placed.append(pid) or here(pid))
    context = ndshare.ProcessContext(count)
    out = context.alloc(count)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        time.sleep(0.05)
        out[index] = len(os.sched_getaffinity(0))

    context.map(kernel, range(count))
    time.sleep(0.02)
    context.map(kernel, range(count))
    assert placed
    assert out.tolist() == [count] * count
    assert all(os.sched_getaffinity(worker.pid) == _everywhere for worker in context.pool().workers)
