"""What nodes keep fits the memory that their engine lets them have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ndshare._node import CallTask, TaskResult
from ndshare._transport import reply

pytest.importorskip("distributed")

pytestmark = pytest.mark.once


_LIMITED = """
import os, time
import numpy as np, ndshare
from distributed import Client, LocalCluster

def mean(a):
    return a.mean()

def resident(dask_worker):
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def kept(dask_worker):
    return dask_worker.metrics["ndshare"](dask_worker)

def check(what):
    assert max(client.run(resident).values()) < 0.6 * LIMIT, (what, client.run(resident))
    for facts in client.run(kept).values():
        assert facts["limit"] == LIMIT // 4
        assert facts["kept"] <= LIMIT // 4 + frames.nbytes, (what, facts)

LIMIT = 240_000_000
if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None
    ) as cluster, Client(cluster) as client:
        with ndshare.ClusterContext(client) as context:
            out = context.alloc(8)
            for run in range(8):
                frames = np.full((8, 312_500), float(run))
                context.map(lambda w, i, v: out.__setitem__(i, frames[i].mean()), range(8))
                assert (out == run).all()
            check("map")
            context.release()
            assert not any(facts["kept"] for facts in client.run(kept).values())
            table = ndshare.share(np.ones((8, 500_000)))  # its copies do not fit a quarter
            def kernel(worker_id, index, value):
                out[index] = table[index].sum()
                table[index, 3] = 7
            for _ in range(2):
                context.map(kernel, range(8))
                assert (table[:, 3] == 7).all()
            assert (out == 500_006).all()
            check("shared")
        assert not any(facts["kept"] for facts in client.run(kept).values())
        with ndshare.ClusterExecutor(client) as executor:
            for run in range(8):
                frames = np.full((8, 312_500), float(run))
                assert executor.submit(mean, frames).result() == run
            check("executor")
        for run in range(3):
            frames = np.full((8, 312_500), float(run))
            with ndshare.Workspace({"frames": frames}, engine=client) as ws:
                part = ws.register(lambda index: frames[index].mean())
                for index in range(8):
                    part(index)
                assert ws.evaluate() == [run] * 8
        check("workspace")
        assert not any(facts["kept"] for facts in client.run(kept).values())
    print("ok")
"""


def test_workers_with_a_memory_limit_are_not_paused(run_script: Any) -> None:
    """What nodes keep is a quarter of it, does not count as theirs, and goes when a context ends."""
    done = run_script(_LIMITED)
    assert done.stdout == "ok\n"
    assert "Pausing worker" not in done.stderr


def test_engine_is_told_how_large_tasks_and_results_are() -> None:
    """Dask spills and places by that."""
    sizeof = pytest.importorskip("dask.sizeof").sizeof
    array = np.ones(1_000_000)
    task = CallTask("", "f", [], {}, {b"x": array.view(np.uint8)})
    assert array.nbytes <= sizeof(task) < array.nbytes + 10_000
    assert array.nbytes <= sizeof(TaskResult("", "", outcome=reply(array))) < array.nbytes + 10_000
