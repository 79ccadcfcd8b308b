"""Maps and workspaces at their worst moments: who waited for ever, or ran an item twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

import ndshare
from ndshare._map.workers import forked, pooled
from ndshare._system.board import Board
from ndshare.functors import IteratorFunctor

#: Far longer than any of it takes.
_LATE_S = 20.0


class Eager(ndshare.Functor):
    """Its `iterate` reads a share at once, and dies of one item."""

    def __len__(self) -> int:
        return 8

    def iterate(self, share: slice) -> Any:
        """Not a generator."""
        if share.start <= 5 < share.stop:
            os._exit(3)
        return iter([(index, index) for index in range(share.start, share.stop)])


def _within(function: Any) -> list[Any]:
    """Call something in a thread and return what came of it; fails if it takes too long."""
    came: list[Any] = []

    def call() -> None:
        try:
            came.append(function())
        except BaseException as error:
            came.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_LATE_S)
    assert came, "it still waits"
    return came


@pytest.mark.parametrize("start", ["pool", "fork"])
def test_death_before_the_first_item_of_a_share_costs_that_item(start: str) -> None:
    """Else the share would be handed out, and a worker lost, again and again."""
    context = ndshare.ProcessContext(2, start=start)
    (report,) = _within(lambda: context.map(lambda *_: None, Eager(), on_error="collect", shares=8))
    ((index, error),) = report.errors
    assert index == 5
    assert isinstance(error, ndshare.WorkerDiedError)
    assert report.done.sum() == 7


def test_map_that_is_given_up_leaves_others_alone() -> None:
    """Of other threads, in the same context: their kernels are not interrupted."""
    context = ndshare.ProcessContext(4)
    context.map(lambda *_: time.sleep(0.05), range(8))
    begun = context.alloc(2, int)

    def sleep(_worker_id: int, index: int, _value: int) -> None:
        begun[index] = 1
        time.sleep(1.5)

    def fail(done: int, _all: int) -> None:
        if done:
            raise ValueError

    came: list[Any] = []
    other = threading.Thread(target=lambda: came.extend(_within(lambda: context.map(sleep, range(2)))))
    other.start()
    while not begun.all():
        time.sleep(0.01)
    with pytest.raises(ValueError):
        context.map(lambda *_: time.sleep(0.2), range(8), progress=fail)
    other.join()
    assert isinstance(came[0], ndshare.MapReport), came
    assert came[0].done.all()


def test_callback_may_call_a_registered_function() -> None:
    """The I/O thread runs it, at times while it enqueues such a call already."""
    with ndshare.Workspace({"x": ndshare.zeros(1)}, 1) as ws:
        call = ws.register(time.sleep)
        for _ in range(50):
            call(0.001).result()  # calls are short: the worker gets more than one
        ended = threading.Semaphore(0)

        def more(_: object) -> None:
            for _ in range(64):  # now and then it is looked whether something is done
                call(0.001)
                time.sleep(0.0005)
            ended.release()

        for _ in range(6):
            call(0.005).add_done_callback(more)
        for _ in range(6):
            if not ended.acquire(timeout=_LATE_S):
                ws._lock.release()  # so that the test ends
                pytest.fail("a callback waits for its own thread")


def test_death_is_heard_although_a_child_of_the_kernel_lives(tmp_path: Path) -> None:
    """It inherits the socket of the worker."""
    context = ndshare.ProcessContext(1, start="fork")

    def kernel(*_: object) -> None:
        if (pid := os.fork()) == 0:
            time.sleep(3 * _LATE_S)
            os._exit(0)
        (tmp_path / "pid").write_text(str(pid))
        os._exit(3)

    try:
        (report,) = _within(lambda: context.map(kernel, range(1), on_error="collect"))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert isinstance(report.errors[0][1], ndshare.WorkerDiedError)


@pytest.mark.parametrize("start", ["pool", "fork"])
def test_program_that_ignores_the_end_of_children(start: str) -> None:
    """With SIGCHLD ignored the system says no more how a child has ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        context = ndshare.ProcessContext(2, start=start, env={"OTHER": "1"})
        assert context.map(lambda *_: None, range(4)).done.all()
        report = context.map(lambda _w, i, _v: os._exit(3) if i == 2 else None, range(4), on_error="collect")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [index for index, _ in report.errors] == [2]


def test_values_that_ctrl_c_left_are_handed_out_in_the_sizes_that_are_asked_for() -> None:
    """All of them, once each."""

    class Again:
        def __init__(self) -> None:
            self.left = [0, 1, 2, 3, 4, KeyboardInterrupt, 5, 6]

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            if not self.left:
                raise StopIteration
            if (value := self.left.pop(0)) is KeyboardInterrupt:
                raise KeyboardInterrupt
            return value

    functor = IteratorFunctor(Again())
    with pytest.raises(KeyboardInterrupt):
        functor.take(10)
    assert functor.take(2) == [0, 1]
    assert [value for _, value in functor.iterate()] == [2, 3, 4, 5, 6]


def test_share_of_an_earlier_worker_is_not_that_of_the_next_one_in_its_place() -> None:
    """It may die before it has begun one: what others are at would be handed out again."""
    board = Board.of_one(10)
    board.begin(board.enter(7), 2, 6)
    board.leave(0)
    assert board.share_of(board.enter(8)) == (0, 0)


def test_worker_that_is_killed_for_an_item_reports_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the item has failed just then: the signal would hit what it does next."""
    context = ndshare.ProcessContext(1)
    kill = pooled.PoolWorkers.kill

    def late(self: Any, pid: int) -> None:
        time.sleep(1.2)
        kill(self, pid)

    monkeypatch.setattr(pooled.PoolWorkers, "kill", late)

    def kernel(*_: object) -> None:
        time.sleep(1.0)
        raise ValueError

    report = context.map(kernel, range(1), timeout=0.2, on_error="collect")
    assert [type(error) for _, error in report.errors] == [TimeoutError]
    assert len(report.deaths) == 1


class Struck(threading.Condition):
    """Ctrl-C just after it was taken by `PoolWorkers.wait`."""

    made: Any = None

    def __enter__(self) -> bool:
        taken = super().__enter__()
        if sys._getframe(1).f_code is pooled.PoolWorkers.wait.__code__:
            Struck.made = self
            signal.raise_signal(signal.SIGINT)
        return taken


def test_ctrl_c_leaves_no_lock_taken_that_the_io_thread_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells the map there that a worker has ended."""
    context = ndshare.ProcessContext(1)
    monkeypatch.setattr(pooled, "threading", types.SimpleNamespace(Condition=Struck))
    with contextlib.suppress(KeyboardInterrupt):
        context.map(lambda *_: None, range(4))
    assert Struck.made is None or _within(lambda: Struck.made.acquire(timeout=1.0)) == [True]


def test_second_ctrl_c_ends_forked_workers_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes as their end begins."""
    context = ndshare.ProcessContext(2, start="fork")
    closed: list[Any] = []
    close = forked.Forked.close

    def struck(self: Any) -> None:
        closed.append(self)
        if len(closed) == 1:
            signal.raise_signal(signal.SIGINT)
        close(self)

    def strike(done: int, _all: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(forked.Forked, "close", struck)
    with pytest.raises(KeyboardInterrupt):
        context.map(lambda _w, index, _v: time.sleep(_LATE_S * (index > 0)), range(4), progress=strike)
    children, workers = dict(closed[0]._children), closed[0]
    close(workers)
    assert not children


def test_thread_that_cannot_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that it cannot be joined; the others are joined."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def few(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ndshare.ThreadContext(3).map(lambda *_: time.sleep(0.05), range(6))
    assert not started[0].is_alive()
