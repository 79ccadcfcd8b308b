"""A map with a checkpoint does what is left, whenever all of its processes are killed."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import functors
from ndshare._map import checkpoint
from tests.map import checkpoint_program

ITEMS = 24


def _lines(log: Path) -> list[int]:
    return list(map(int, log.read_text().split())) if log.exists() else []


@pytest.mark.once
@pytest.mark.parametrize(
    ("kind", "rows"),
    [("pool", ""), ("pool", "per_worker"), ("fork", "per_block"), ("cluster", "per_worker")],
)
def test_all_processes_are_killed_twice(kind: str, rows: str, tmp_path: Path) -> None:
    """The same call goes on each time: what was done is not done again, rows and files are exact."""
    rng = random.Random(kind + rows)
    command = [sys.executable, "-m", checkpoint_program.__name__, str(tmp_path), kind, rows]
    environment = {**os.environ, "PAUSE": "0.005", "KILLS": "2"}
    for _ in range(2):
        most = len(_lines(tmp_path / "log")) + rng.randrange(5, 30)
        with subprocess.Popen(command, env=environment, start_new_session=False) as program:
            while program.poll() is None and len(_lines(tmp_path / "log")) < most:
                time.sleep(0.005)
            os.killpg(program.pid, signal.SIGKILL)
        assert program.returncode == -signal.SIGKILL
        assert (tmp_path / "map").exists()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=100)
    if kind != "cluster":  # there it may be that no share has been merged
        assert "resumed 0" not in done.stdout
    ran = collections.Counter(_lines(tmp_path / "log"))
    assert sorted(ran) == list(range(checkpoint_program.ITEMS))
    # One share of each worker at most, or one item where nothing was added to rows, per kill.
    if kind != "cluster":
        assert sum(ran.values()) - len(ran) <= 2 * 2 * (8 if rows else 1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "out.npy"]


class _Moments:
    """A map whose kernel takes a picture of the checkpoint at each item."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path = folder / "map"
        self.kind = kind
        self.context = ndshare.SerialContext()
        self.out = self.context.alloc(ITEMS, int, path=folder / "out", mode="a")
        self.pictures: list[bytes] = []
        self.ran: list[int] = []

    def run(self, *, pictures: bool = False, **options: Any) -> tuple[Any, ndshare.MapReport]:
        """Run the map, or what is left of it, with rows made anew as a new program makes them."""
        rows: Any = None
        if self.kind == "per_worker":
            rows = self.context.alloc(2, int, per_worker=True, fill=5)
        elif self.kind == "per_block":
            rows = self.context.alloc((ITEMS, 2), int, per_block=4, fill=5)
        out, ran, path, taken = self.out, self.ran, self.path, self.pictures

        def kernel(_w: int, i: int, v: int) -> None:
            if rows is not None:
                rows[i // 4 if len(rows) > 1 else 0] += [1, v]
            out[i] = v
            ran.append(i)
            if pictures:
                taken.append(path.read_bytes())
            if rows is not None:
                rows[i // 4 if len(rows) > 1 else 0] += [1, 0]

        report = self.context.map(kernel, np.arange(ITEMS) * 10, checkpoint=path, shares=6, **options)
        return rows, report

    def check(self, rows: Any) -> None:
        """See that rows have each item once."""
        assert np.array_equal(self.out, np.arange(ITEMS) * 10)
        if rows is not None:
            assert (rows - 5).sum(axis=0).tolist() == [2 * ITEMS, 10 * sum(range(ITEMS))]


@pytest.mark.parametrize("kind", ["", "per_worker", "per_block"])
@pytest.mark.parametrize("what", ["processes", "system"])
def test_killed_at_any_item(kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of each moment: of the board if processes were killed, of a copy of it if the system has ended."""
    monkeypatch.setattr(checkpoint, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(checkpoint, "_PART", 0.0)
    moments = _Moments(tmp_path, kind)
    rows, report = moments.run(pictures=True)
    moments.check(rows)
    assert report.resumed == 0
    assert not moments.path.exists()
    if what == "system":
        start = checkpoint._system_start()
        monkeypatch.setattr(checkpoint, "_system_start", lambda: start[::-1])
    for number, picture in enumerate(moments.pictures[::3]):
        moments.path.write_bytes(picture)
        moments.out[:] = np.where(np.arange(ITEMS) < 3 * number, moments.out, -1)
        moments.ran.clear()
        rows, report = moments.run()
        moments.check(rows)
        # Shares have four items; those of an open one run again if they had added to rows.
        known = 3 * number // 4 * 4 if kind or what == "system" else 3 * number
        assert report.resumed == known
        assert moments.ran == list(range(known, ITEMS))


def test_failed_item_is_tried_again(tmp_path: Path) -> None:
    """A map that has raised has not come to its end: the next call does what is left, that item included."""
    out = ndshare.alloc(20, int, path=tmp_path / "out")
    broken = [True]

    def kernel(_w: int, i: int, _v: int) -> None:
        if i == 7 and broken[0]:
            raise ValueError(i)
        out[i] += 1

    context = ndshare.SerialContext()
    with pytest.raises(ValueError, match="7"):
        context.map(kernel, range(20), checkpoint=tmp_path / "map")
    assert out.tolist() == [1] * 7 + [0] * 13
    broken[0] = False
    report = context.map(kernel, range(20), checkpoint=tmp_path / "map")
    assert (out == 1).all()
    assert report.resumed == 7
    assert "7 had been done before" in repr(report)
    broken[0] = True
    report = context.map(kernel, range(20), checkpoint=tmp_path / "map", on_error="collect")
    assert [index for index, _ in report.errors] == [7]  # it has come to its end
    assert not (tmp_path / "map").exists()


def test_dead_worker_in_a_map_with_a_checkpoint(tmp_path: Path) -> None:
    """Its share is taken back on the board that is a file."""
    context = ndshare.ProcessContext(2)
    rows = context.alloc(30, int, per_worker=True)
    folder = str(tmp_path)

    def kernel(w: int, i: int, _v: int) -> None:
        rows[w, i] += 1
        if i == 17 and not os.path.exists(folder + "/died"):
            os.close(os.open(folder + "/died", os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)

    report = context.map(kernel, range(30), checkpoint=tmp_path / "map", retries=1)
    assert len(report.deaths) == 1
    assert (context.reduce(rows) == 1).all()


def _left(tmp_path: Path) -> tuple[Path, Callable[..., Any], np.ndarray[Any, Any]]:
    """Return a checkpoint that a map has left, its kernel and output."""
    out = ndshare.alloc(20, int, path=tmp_path / "out")

    def kernel(_w: int, i: int, v: int) -> None:
        if v < 0:
            raise ValueError(v)
        out[i] = v

    path = tmp_path / "map"
    with pytest.raises(ValueError, match="-1"):
        ndshare.SerialContext().map(kernel, [5, 6, 7, -1] * 5, checkpoint=path)
    return path, kernel, out


def test_checkpoint_of_another_map_is_refused(tmp_path: Path) -> None:
    """Another length, kernel, kind of collection, seed or file of results: each with a sentence, and it stays."""
    path, kernel, out = _left(tmp_path)
    before = path.read_bytes()
    context = ndshare.SerialContext()

    def other(_w: int, _i: int, _v: int) -> None:
        out[0] = 0

    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (kernel, [1] * 21, {}, "the number of items was 20, and is 21"),
        (other, [1] * 20, {}, "the kernel was"),
        (kernel, [1] * 20, {"seed": 3}, "the seed was None, and is 3"),
    ]
    for called, items, options, text in cases:
        with pytest.raises(ValueError, match=f"is of another map: {text}"):
            context.map(called, items, checkpoint=path, **options)
    (tmp_path / "out").unlink()
    assert path.read_bytes() == before
    path.write_bytes(before[:5000])
    with pytest.raises(ValueError, match="it was cut off"):
        context.map(kernel, [1] * 20, checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no checkpoint"):
        context.map(kernel, [1] * 20, checkpoint=path)
    assert path.read_bytes() == b"something else"


def test_results_that_were_replaced_are_refused(tmp_path: Path) -> None:
    """The checkpoint says what is done; a new file of results does not have it."""
    path, _, old = _left(tmp_path)
    out = ndshare.alloc(20, int, path=tmp_path / "out", mode="w")

    def kernel(_w: int, i: int, v: int) -> None:
        out[i] = v

    kernel.__qualname__ = "_left.<locals>.kernel"
    with pytest.raises(ValueError, match=r"the files of alloc\(path=\) was"):
        ndshare.SerialContext().map(kernel, [1] * 20, checkpoint=path)
    assert old[0] == 5


def test_what_a_checkpoint_could_not_bring_back_is_refused(tmp_path: Path) -> None:
    """Results in memory only, rows that are not kept, both kinds of rows, collections of unknown length."""
    context = ndshare.SerialContext()
    path = tmp_path / "map"
    plain, given = context.alloc(9), context.alloc(9, fill=2)
    given.flags.writeable = False
    unkept = context.alloc(9, per_worker=True, rollback=False)
    rows, blocks = context.alloc(9, per_worker=True), context.alloc(9, per_block=3)
    for used, text in (
        (plain, "would be gone. Give results a file"),
        (unkept, "rollback=False"),
        ((rows, blocks), "uses both"),
    ):
        with pytest.raises(ValueError, match=text):
            context.map(lambda _w, _i, _v, used=used: None, range(9), checkpoint=path)
    with pytest.raises(ValueError, match="how many items there are"):
        context.map(lambda _w, _i, _v: None, iter(range(9)), checkpoint=path)

    def outer(_w: int, _i: int, _v: int) -> None:
        context.map(lambda _w, _i, _v: None, range(9), checkpoint=path)

    with pytest.raises(ValueError, match="inside a kernel"):
        context.map(outer, range(1))
    assert not path.exists()
    assert context.map(lambda _w, _i, _v: given.sum(), range(9), checkpoint=path).done.all()
    assert context.map(lambda _w, _i, _v: None, [], checkpoint=path).items == 0


def test_checkpoint_in_use_is_refused(tmp_path: Path) -> None:
    """By a map of this process; by another process that is alive and has the file open."""
    context = ndshare.SerialContext()
    path = tmp_path / "map"

    def kernel(_w: int, _i: int, _v: int) -> None:
        with pytest.raises(ValueError, match="another map of this process works with"):
            checkpoint.Checkpoint(path, kernel, functors.find(range(3)), 3, 1, checkpoint.Rows())
        facts = json.loads(path.read_bytes()[:4032].rstrip(b"\0"))
        assert facts["pid"] == os.getpid()

    assert context.map(kernel, range(3), checkpoint=path).done.all()


def test_fewer_workers_go_on_where_there_are_no_rows(tmp_path: Path) -> None:
    """The number of workers may be another; with rows per worker it has to be the same."""
    out = ndshare.alloc(20, int, path=tmp_path / "out")
    rows = ndshare.ProcessContext(3).alloc(20, int, per_worker=True)
    path = tmp_path / "map"

    def kernel(_w: int, i: int, v: int) -> None:
        if v < 0:
            raise ValueError(v)
        out[i] += v

    def adding(w: int, i: int, v: int) -> None:
        kernel(w, i, v)
        rows[w, i] += 1

    for called, workers in ((kernel, 2), (adding, 3)):
        out[:] = 0
        with pytest.raises(ValueError, match="-1"):
            ndshare.ProcessContext(3).map(called, [1] * 10 + [-1] * 10, checkpoint=path)
        if workers == 3:
            with pytest.raises(ValueError, match="has rows of 3 workers"):
                ndshare.ProcessContext(2).map(called, [1] * 20, checkpoint=path)
        report = ndshare.ProcessContext(workers).map(called, [1] * 20, checkpoint=path)
        assert report.done.all()
        assert (out == 1).all()
    assert (rows.sum(axis=0) == 1).all()
