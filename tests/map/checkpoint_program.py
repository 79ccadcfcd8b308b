"""A map with a checkpoint that is killed: `python -m tests.map.checkpoint_program FOLDER CONTEXT KIND KILLS`.

Each run of it goes on where the one before was killed, all processes of it at once. A folder counts what ran.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import ndshare

ITEMS = 120


def main(folder: Path, kind: str, rows_kind: str) -> None:
    """Run the map, or what is left of it."""
    engine = None
    if kind == "cluster":
        # Forked: what else holds semaphores by name (forkserver) cannot take them back when all is killed.
        engine = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
        context: ndshare.MapContext = ndshare.ClusterContext(
            engine, workers_per_node=2 if rows_kind == "per_block" else 1
        )
    elif kind == "serial":
        context = ndshare.SerialContext()
    elif kind == "threads":
        context = ndshare.ThreadContext(2)
    else:
        context = ndshare.ProcessContext(2, start=kind)  # type: ignore[arg-type]
    out = context.alloc(ITEMS, int, path=folder / "out.npy", mode="a")
    rows: Any = None
    if rows_kind == "per_worker":
        rows = context.alloc(ITEMS, int, per_worker=True, fill=3)
    elif rows_kind == "per_block":
        rows = context.alloc((ITEMS, 2), int, per_block=4, fill=3)
    log = str(folder / "log")
    pause = float(os.environ.get("PAUSE", "0.002"))

    def kernel(w: int, i: int, v: int) -> None:
        time.sleep(pause)
        out[i] += v + 1
        if rows is not None:
            if rows_kind == "per_worker":
                rows[w, i] += 1
            else:
                rows[i // 4] += 1
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, b"%d\n" % i)
        os.close(fd)

    values = np.arange(ITEMS)
    report = context.map(kernel, values, checkpoint=folder / "map", shares=30 if rows_kind else None)
    assert report.done.all()
    assert not (folder / "map").exists()
    if rows_kind == "per_worker":
        assert (rows.sum(axis=0) == 1 + 3 * len(rows)).all(), rows
    elif rows_kind == "per_block":
        assert (rows == 4 + 3).all(), rows
    elif kind != "cluster":
        wrong = np.flatnonzero(out != values + 1)
        # What was running when it was killed may have been written, and not yet been marked.
        assert len(wrong) <= 2 * int(os.environ.get("KILLS", "0")), out
    print("resumed", report.resumed)
    if engine is not None:
        context.close()  # type: ignore[attr-defined]
        engine.shutdown()


if __name__ == "__main__":
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
