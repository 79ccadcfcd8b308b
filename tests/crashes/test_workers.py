"""A worker, or the process it is forked from, dies, stops or runs short at every point of a task's way: what that costs.

The table has one row for each point, and says what may become of the tasks: ``none`` (all results are right), ``one``
(one task fails with `WorkerDiedError`, the others are right), ``error`` (one task fails with that very error).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from tests import jobs, kernel
from tests.crashes import faults

pytestmark = pytest.mark.once

_KILLS = ("exit", "SIGKILL", "SIGSEGV", "SIGSTOP")
_RAISES = ("exception", "memory", "descriptors")

#: Point: what a death there may cost, what an error there may cost.
POINTS: dict[str, tuple[str, str]] = {
    "worker start": ("none", "none"),
    "worker received": ("none", "none"),
    "worker claimed": ("one", "one"),
    "worker unpacking": ("one", "error"),
    "worker user": ("one", "error"),
    "worker C": ("one", ""),
    "worker packing": ("one", "error"),
    "worker sending": ("one", "none one"),
    "worker sent": ("none", "none"),
    "worker leaving": ("none", "none"),
    "zygote forking": ("none one", "none one"),
}
CELLS = [
    (point, how, outcome)
    for point, (death, error) in POINTS.items()
    for hows, outcome in ((_KILLS, death), (_RAISES, error))
    for how in hows
    if outcome
    and (point, how) != ("worker received", "descriptors")  # the kernel gives the message or the error
]


def work(i: int, x: Any) -> Any:
    """Return a large and a small result."""
    faults.reach("worker user")
    faults.reach_in_c("worker C")
    return i, x * i


def kernel_for(out: Any) -> Any:
    """Return a kernel that passes the same points."""

    def kernel(_worker_id: int, index: int, value: int) -> None:
        faults.reach("worker user")
        faults.reach_in_c("worker C")
        out[index] = value

    return kernel


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says where and how; afterwards a process that was stopped is killed."""
    file = tmp_path / "who"

    def say(where: str, how: str) -> Path:
        monkeypatch.setenv(faults.VARIABLE, f"{where}|{how}|{file}")
        return file

    yield say
    _end_stopped(file)


def _end_stopped(file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        pid = int(file.read_text())
        if kernel.state(pid) in "Tt":
            os.kill(pid, signal.SIGKILL)


def _settle(futures: list[Any], file: Path, how: str) -> list[BaseException | None]:
    """Wait for all; who was stopped is killed once nothing else happens."""
    until = time.monotonic() + 60
    quiet = time.monotonic()
    count = -1
    while not all(future.done() for future in futures):
        assert time.monotonic() < until, "somebody waits for ever"
        done = sum(future.done() for future in futures)
        if done != count:
            count, quiet = done, time.monotonic()
        elif how == "SIGSTOP" and time.monotonic() - quiet > 0.3 and file.exists():
            _end_stopped(file)
        time.sleep(0.005)
    return [future.exception() for future in futures]


def _judge(errors: list[BaseException], how: str, outcome: str) -> None:
    allowed = outcome.split()
    if not errors:
        assert "none" in allowed, "nothing failed"
        return
    assert len(errors) == 1, errors
    if "error" in allowed:
        kind = {"exception": RuntimeError, "memory": MemoryError, "descriptors": OSError}[how]
        assert isinstance(errors[0], kind), errors
        assert "a fault" in str(errors[0])
    else:
        assert "one" in allowed, errors
        assert isinstance(errors[0], ndshare.WorkerDiedError), errors


@pytest.mark.parametrize(("where", "how", "outcome"), CELLS, ids=lambda cell: cell.replace(" ", "-"))
def test_executor(fault: Any, where: str, how: str, outcome: str) -> None:
    """Twelve tasks with arrays, two workers: one fault costs what the table says, and the executor goes on."""
    file = fault(where, how)
    x = np.arange(100_000.0)
    with ndshare.ProcessPoolExecutor(2, preload=["tests.crashes.faults"]) as executor:
        futures = [executor.submit(work, i, x) for i in range(12)]
        found = _settle(futures, file, how)
        for i, (future, error) in enumerate(zip(futures, found, strict=True)):
            if error is None:
                number, array = future.result()
                assert number == i
                assert (array == x * i).all()
        _judge([error for error in found if error is not None], how, outcome)
        assert executor.submit(jobs.identity, 5).result(60) == 5
    if where != "worker leaving":
        assert file.exists(), "the point was not reached"


_MAP_POINTS = {"worker start": "none", "worker user": "one", "worker C": "one", "worker sending": "none one"}


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
@pytest.mark.parametrize("where", _MAP_POINTS)
@pytest.mark.parametrize("retries", [0, 1])
def test_map(fault: Any, where: str, how: str, retries: int) -> None:
    """Forty items, two workers: at most the item at hand is lost, and not even that if it may be tried again."""
    fault(where, how)
    context = ndshare.ProcessContext(2, preload=["tests.crashes.faults"])
    out = context.alloc(40, fill=-1)
    report = context.map(kernel_for(out), range(40), on_error="collect", retries=retries)
    lost = [index for index, _ in report.errors]
    assert (np.delete(out, lost) == np.delete(np.arange(40), lost)).all()
    _judge([error for _, error in report.errors], how, "none" if retries else _MAP_POINTS[where])
    assert context.map(kernel_for(out), range(40)).errors == []
    assert (out == np.arange(40)).all()
