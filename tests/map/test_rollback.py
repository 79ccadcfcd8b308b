"""Rows per worker and per block count each item once, whoever is killed, and where."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._map.used import which_used
from ndshare.functors import Functor
from tests.map import savepoint_faults

pytestmark = pytest.mark.once

ITEMS = 60


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=["pool", "fork"])
def start(request: pytest.FixtureRequest) -> str:
    """Return how workers are started."""
    method: str = request.param
    return method


def _layouts(context: ndshare.MapContext) -> Iterator[tuple[Any, Any]]:
    """Yield arrays with rows, and what gives the row of an item."""
    for order in ("C", "F"):
        rows = context.alloc(3, int, order=order, fill=5, per_worker=True)  # type: ignore[call-overload]
        yield rows, (lambda w, _i: (w,)) if order == "C" else (lambda w, _i: (slice(None), w))
        blocks = context.alloc((ITEMS, 3), int, order=order, fill=5, per_block=10)  # type: ignore[call-overload]
        yield blocks, lambda _w, i: (i // 10,)


def test_killed_item_is_taken_back_and_its_share_runs_again(start: str, tmp_path: Path) -> None:
    """Half of an item is in the rows when its worker dies: sums are those of a map without a death."""
    context = ndshare.ProcessContext(2, start=start)  # type: ignore[arg-type]
    for number, (rows, row_of) in enumerate(_layouts(context)):
        before = context.reduce(rows)

        def kernel(
            w: int, i: int, _v: int, rows: Any = rows, row_of: Any = row_of, number: int = number
        ) -> None:
            row = rows[row_of(w, i)]
            row[0] += 1
            if i in (17, 42) and not (tmp_path / f"{number} {i}").exists():
                (tmp_path / f"{number} {i}").touch()
                _die()
            row[1] += i

        report = context.map(kernel, range(ITEMS), retries=1, shares=6)
        assert report.done.all()
        assert (context.reduce(rows) - before).tolist() == [ITEMS, sum(range(ITEMS)), 0]
        for death in report.deaths:
            first, end = death.rolled_back
            assert first <= death.index < end
        assert sorted(death.index for death in report.deaths) == [17, 42]
        assert "rows to before items " in repr(report)


def test_without_retries_the_item_that_died_is_not_in_the_rows(start: str) -> None:
    """Rows have what is done, and nothing of what is not; another item of that share has raised."""
    context = ndshare.ProcessContext(2, start=start)  # type: ignore[arg-type]
    counts = context.alloc(ITEMS, int, per_worker=True)
    blocks = context.alloc((ITEMS,), int, per_block=5)

    def kernel(w: int, i: int, _v: int) -> None:
        if i == 21:
            raise ValueError
        counts[w, i] += 1
        blocks[i // 5] += 1
        if i in (24, 26):
            _die()

    report = context.map(kernel, range(ITEMS), on_error="collect", shares=3)
    assert [index for index, _ in report.errors] == [21, 24, 26]
    assert np.array_equal(context.reduce(counts), report.done)
    assert np.array_equal(blocks, report.done.reshape(-1, 5).sum(axis=1))


def test_item_that_takes_too_long_is_taken_back() -> None:
    """A time limit is a death like others; the error says so."""
    context = ndshare.ProcessContext(2)
    counts = context.alloc(ITEMS, int, per_worker=True)

    def kernel(w: int, i: int, _v: int) -> None:
        counts[w, i] += 1
        if i == 33:
            time.sleep(60)

    report = context.map(kernel, range(ITEMS), on_error="collect", timeout=0.3, shares=6)
    ((index, error),) = report.errors
    assert index == 33
    assert "except in rows per worker" in str(error)
    assert np.array_equal(context.reduce(counts), report.done)


@pytest.mark.parametrize("place", savepoint_faults.PLACES)
def test_worker_killed_between_share_and_savepoint(
    start: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place between two stores: three workers are killed there, and sums are exact."""
    monkeypatch.setenv(savepoint_faults.VARIABLE, f"{place}|3|{tmp_path}")
    restore = []
    preload: tuple[str, ...] = ()
    if start == "pool":
        preload = (savepoint_faults.__name__,)
    else:
        restore = savepoint_faults.install()
    try:
        context = ndshare.ProcessContext(
            2,
            start=start,  # type: ignore[arg-type]
            preload=preload,
            env={savepoint_faults.VARIABLE: os.environ[savepoint_faults.VARIABLE]} if preload else None,
        )
        counts = context.alloc(ITEMS, int, per_worker=True, fill=7)
        sums = context.alloc((), per_worker=True)
        blocks = context.alloc((ITEMS, 2), int, per_block=4)

        def kernel(w: int, i: int, _v: int) -> None:
            counts[w, i] += 1
            sums[w] += i
            blocks[i // 4] += 1

        report = context.map(kernel, range(ITEMS), shares=15, on_error="collect", retries=9)
        assert not report.errors
        assert (context.reduce(counts) == 15).all()
        assert context.reduce(sums) == sum(range(ITEMS))
        assert (blocks == 4).all()
        assert len(report.deaths) == len(list(tmp_path.iterdir()))
        assert len(report.deaths) >= (1 if place == "leaving" else 3)
    finally:
        for put_back in restore:
            put_back()
        del context
    ndshare.shutdown()


class _DiesBehind(Functor):
    """Kills its process once a share has been read to its end."""

    def __len__(self) -> int:
        return 9

    def iterate(self, share: slice) -> Iterator[tuple[int, int]]:
        """Yield entries."""
        try:
            for index in range(share.start, share.stop):
                yield index, index
        finally:
            if share.start == 3:
                _die()


def test_what_always_dies_behind_its_last_item_does_not_run_for_ever() -> None:
    """All items of the share are done each time: the last one fails in the end."""
    context = ndshare.ProcessContext(1)
    counts = context.alloc(9, int, per_worker=True)

    def kernel(w: int, i: int, _v: int) -> None:
        counts[w, i] += 1

    report = context.map(kernel, _DiesBehind(), shares=3, on_error="collect")
    assert [index for index, _ in report.errors] == [3, 4, 5]
    assert np.array_equal(context.reduce(counts), report.done)


def test_large_rows_are_kept_on_request_only() -> None:
    """The report says that they were not, and how to have them kept; another array of the kernel decides, too."""
    context = ndshare.ProcessContext(1)
    for large, small in ((None, None), (True, None), (True, False)):
        rows = context.alloc(9_000, per_worker=True, rollback=large)
        counts = context.alloc(20, int, per_worker=True, rollback=small)

        def kernel(w: int, i: int, _v: int, rows: Any = rows, counts: Any = counts) -> None:
            rows[w, i] += 1
            counts[w, i] += 1
            if i == 7:
                _die()

        report = context.map(kernel, range(20), on_error="collect")
        kept = large and small is None
        assert rows[0, 7] == counts[0, 7] == (0 if kept else 1)
        assert (report.deaths[0].rolled_back is not None) is bool(kept)
        assert ("rollback=True" in report.rows) is (not kept)
        assert rows.sum() == counts.sum() == (19 if kept else 20)


def test_rollback_goes_with_rows_only() -> None:
    """Anything else is refused with a sentence."""
    with pytest.raises(ValueError, match="it goes with per_worker=True or per_block=n"):
        ndshare.alloc(3, rollback=True)


def test_rows_that_a_kernel_does_not_use_are_left_alone() -> None:
    """Another map may be adding to them: a death here takes nothing back there."""
    context = ndshare.ProcessContext(1)
    others = context.alloc(3, int, per_worker=True)
    out = context.alloc(20, int)

    def kernel(_w: int, i: int, _v: int) -> None:
        out[i] += 1
        if i == 7:
            _die()

    report = context.map(kernel, range(20), on_error="collect")
    assert report.deaths[0].rolled_back is None
    assert report.rows == ""
    assert (out == 1).all()
    assert not others.any()


class _Holder:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def add(self, w: int, i: int, _v: int) -> None:
        """Be a kernel."""


def test_rows_are_found_in_what_a_kernel_holds() -> None:
    """In closures, objects, lists, views and functions that it calls; large lists are not searched to the end."""
    rows, other = ndshare.alloc(3, per_worker=True), ndshare.alloc(3, per_worker=True)
    view = rows[0]
    nested = {"a": [1, {"b": view}]}
    big = [0] * 1_000_000

    def helper() -> Any:
        return rows

    kernels: list[Any] = [
        _Holder(x=rows).add,
        _Holder(x=nested).add,
        lambda w, i, v: view,
        lambda w, i, v: helper(),
        lambda w, i, v: (nested, big),
    ]
    for kernel in kernels:
        (found,) = which_used(kernel, [other, rows])
        assert found is rows
    assert which_used(lambda w, i, v: big, [other, rows]) == []


def test_nodes_take_back_what_their_workers_added(tmp_path: Path) -> None:
    """The same on a cluster: a worker of a node dies, and the node runs its share again."""
    with ProcessPoolExecutor(1) as engine:
        context = ndshare.ClusterContext(engine, workers_per_node=2)
        for number, (rows, row_of) in enumerate(_layouts(context)):
            before = context.reduce(rows)

            def kernel(
                w: int, i: int, _v: int, rows: Any = rows, row_of: Any = row_of, number: int = number
            ) -> None:
                row = rows[row_of(w, i)]
                row[0] += 1
                if i == 17 and not (tmp_path / f"{number} {i}").exists():
                    (tmp_path / f"{number} {i}").touch()
                    _die()
                row[1] += i

            report = context.map(kernel, range(ITEMS), retries=1)
            assert (context.reduce(rows) - before).tolist() == [ITEMS, sum(range(ITEMS)), 0]
            first, end = report.deaths[0].rolled_back
            assert first <= 17 < end


@pytest.mark.chaos
def test_random_kills_leave_sums_exact(start: str, chaos_seed: int, chaos_rounds: int) -> None:
    """Workers are killed at random moments: rows have each item that is done once."""
    rng = random.Random(chaos_seed)
    context = ndshare.ProcessContext(3, start=start)  # type: ignore[arg-type]
    counts = context.alloc(400, int, per_worker=True)
    blocks = context.alloc((400,), int, per_block=4)
    pids = context.alloc(3, int)
    kills = 0

    def kernel(w: int, i: int, _v: int) -> None:
        pids[w] = os.getpid()
        counts[w, i] += 1
        blocks[i // 4] += 1
        time.sleep(0.0005)

    while kills < 13 * chaos_rounds:
        counts[:] = blocks[:] = pids[:] = 0
        over = threading.Event()

        def killer(over: threading.Event = over) -> None:
            nonlocal kills
            while not over.wait(rng.random() * 0.03):
                victim = int(pids[rng.randrange(3)])
                if victim:
                    pids[pids == victim] = 0
                    try:
                        os.kill(victim, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    kills += 1

        thread = threading.Thread(target=killer)
        thread.start()
        try:
            report = context.map(kernel, range(400), on_error="collect", retries=rng.randrange(2))
        finally:
            over.set()
            thread.join()
        assert np.array_equal(context.reduce(counts), report.done)
        assert np.array_equal(blocks, report.done.reshape(-1, 4).sum(axis=1))
