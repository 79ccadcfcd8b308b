"""A cluster context passes the conformance suite on Dask."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare.testing import ContextConformance
from tests.cluster.dask_cluster import dask_cluster

distributed = pytest.importorskip("distributed")

# Nodes keep their workers warm from test to test, and so does the client its threads.
pytestmark = [
    pytest.mark.once,
    pytest.mark.leaves("child process", "open descriptor", "thread", "/dev/shm entry"),
]

_engines: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def dask_clusters() -> Iterator[None]:
    """Local clusters of two and four processes."""
    with contextlib.ExitStack() as stack:
        for count in (2, 4):
            address = stack.enter_context(dask_cluster(count))
            _engines[f"dask {count}"] = stack.enter_context(distributed.Client(address))
        yield
    # The thread in which callbacks run outlives the clients; with it maps cannot fork in later tests.
    futures = distributed.client.Future
    if futures._cb_executor is not None:
        futures._cb_executor.shutdown()
        futures._cb_executor = None


class TestDaskOfTwo(ContextConformance):
    """On a local Dask cluster."""

    def make_context(self) -> ndshare.MapContext:
        """Two processes."""
        return ndshare.ClusterContext(_engines["dask 2"])


def test_priority_is_the_scheduler_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask is told of it."""
    client, seen = _engines["dask 2"], []
    submit = client.submit

    def look(*args: Any, **options: Any) -> Any:
        seen.append(options.get("priority"))
        return submit(*args, **options)

    monkeypatch.setattr(client, "submit", look)
    with ndshare.ClusterExecutor(client) as executor:
        assert executor.submit(ndshare.options(abs, priority=7), -3).result() == 3
        assert executor.submit(abs, -4).result() == 4
    assert seen == [7, None]


class TestDaskOfFour(ContextConformance):
    """On a local Dask cluster, through its own executor interface."""

    def make_context(self) -> ndshare.MapContext:
        """Four processes."""
        return ndshare.ClusterContext(_engines["dask 4"])


# ---------------------------------------------------------------------- failures


def _kill_one(context: ndshare.ClusterContext, client: Any) -> None:
    sums = context.alloc(7, int, per_worker=True)
    out = context.alloc((400, 100), int, fill=1)
    offsets = np.arange(20_000)
    pids = list(client.run(os.getpid).values())

    def kernel(worker_id: int, index: int, value: int) -> None:
        time.sleep(0.002)
        sums[worker_id, value % 7] += value
        out[index] += offsets[value]

    def progress(done: int, _total: int) -> None:
        if done > 100 and pids:
            os.kill(pids.pop(), signal.SIGKILL)
            pids.clear()

    report = context.map(kernel, range(400), shares=40, progress=progress)
    assert not pids
    assert report.done.all()
    assert context.reduce(sums).tolist() == [sum(range(k, 400, 7)) for k in range(7)]
    assert np.array_equal(out, np.arange(1, 401)[:, None].repeat(100, 1))


def test_a_killed_dask_worker_changes_nothing() -> None:
    """Its shares run again elsewhere; accumulators are not counted twice."""
    client = _engines["dask 2"]
    _kill_one(ndshare.ClusterContext(client), client)
    client.wait_for_workers(2)


def _kill_later(client: Any, seconds: float) -> threading.Timer:
    pid = next(iter(client.run(os.getpid).values()))
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    timer.start()
    return timer


def test_a_killed_dask_worker_costs_a_workspace_nothing() -> None:
    """Its calls run again elsewhere, and count once; so do those of the executor's map."""
    client = _engines["dask 2"]
    values = {"counts": np.zeros(60, int), "table": np.arange(300_000.0)}
    with ndshare.Workspace(values, engine=client) as ws:

        @ws.register
        def count(index: int) -> float:
            import time

            time.sleep(0.02)
            counts[index] += 1  # type: ignore[name-defined]  # noqa: F821
            return float(table[index])  # type: ignore[name-defined]  # noqa: F821

        for number in (1, 2):
            timer = _kill_later(client, 0.3)
            for index in range(60):
                count(index)
            assert ws.evaluate() == list(range(60))
            timer.join()
            assert ws["counts"].tolist() == [number] * 60
            client.wait_for_workers(2)
        with pytest.raises(ndshare.WorkerDiedError):
            ws.register(lambda: os.kill(os.getpid(), signal.SIGKILL))().result()

    out = ndshare.zeros(100)

    def add(index: int) -> int:
        time.sleep(0.01)
        out[index] += index
        return index

    timer = _kill_later(client, 0.3)
    with ndshare.ClusterExecutor(client) as executor:
        assert list(executor.map(add, range(100), chunksize=4)) == list(range(100))
    timer.join()
    assert out.tolist() == list(range(100))
    client.wait_for_workers(2)


def test_workspace_on_dask_ends_its_workers_at_once() -> None:
    """On leaving, and by Ctrl-C also those that are in the middle of a call."""
    with ndshare.Workspace({"D": np.arange(3.0)}, engine=_engines["dask 2"].scheduler.address) as ws:
        assert ws.num_workers == 2
        for _ in range(10):
            ws.register(lambda: (float(D[1]), os.getpid()))()  # type: ignore[name-defined]  # noqa: F821
        results = ws.evaluate()
        assert {value for value, _ in results} == {1.0}
        pids = {pid for _, pid in results}
        handles = [ws.register(time.sleep)(20) for _ in range(10)]
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ws.evaluate()
        timer.join()
        assert all(handle.done() for handle in handles)
        _wait_until_gone(pids)
        ws.register(lambda: os.getpid())()
        pids = set(ws.evaluate())
    _wait_until_gone(pids)


def _wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_dask_as_the_default_context() -> None:
    """By the address of the scheduler."""
    address = _engines["dask 2"].scheduler.address
    before = ndshare.get_default_context()
    try:
        ndshare.set_default_context("dask", address)
        out = ndshare.alloc(10)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            out[index] = value

        report = ndshare.map(kernel, range(10))
        assert report.context == "ClusterContext"
        assert {worker.node for worker in report.workers} == {socket.gethostname()}
        assert out.tolist() == list(range(10))
    finally:
        ndshare.get_default_context().close()  # type: ignore[attr-defined]
        ndshare.set_default_context(before)


def test_ctrl_c_cancels_what_runs_on_the_nodes() -> None:
    """Also kernels in the middle of an item."""
    context = ndshare.ClusterContext(_engines["dask 2"])
    started = context.alloc(1)

    def kernel(_worker_id: int, _index: int, _value: int) -> None:
        time.sleep(20)

    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        context.map(kernel, range(10))
    timer.join()
    began = time.monotonic()
    assert context.map(lambda *_: None, range(10)).done.all()
    assert time.monotonic() - began < 15
    assert not started.any()


def test_demo_on_two_machines() -> None:
    """As a user starts it: every bit is that of the serial run."""
    done = subprocess.run(
        [sys.executable, "-m", "ndshare", "demo", "cluster", "--quick"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each equal to the serial one in every bit" in done.stdout


def _bench(figures: Path, *cases: str) -> dict[str, Any]:
    """Run a small bench; returns its cases by name."""
    words = ["--quick", "--rounds", "1", "--cases", *cases, "--json", str(figures)]
    done = subprocess.run(
        [sys.executable, "-m", "ndshare", "bench", "cluster", *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {case["name"]: case for case in json.loads(figures.read_text())["cases"]}


def test_bench_keeps_its_goals_for_bytes(tmp_path: Path) -> None:
    """What changed is sent, hardly anything else, and past the scheduler: the goals that do not depend on time."""
    cases = _bench(tmp_path / "cluster.json", "outputs", "bytes")
    by_bytes = [case for case in cases.values() if case["unit"] != "s"]
    assert len(by_bytes) == 4
    assert all(goal["reached"] <= goal["limit"] for case in by_bytes for goal in case["goals"]), cases
    through = {name: found["median"] for name, found in cases["traffic"]["results"].items()}
    assert through["Dask by hand"] > 2 * 40 * 2**20  # in and out again
    assert 1000 < through["ndshare"] < through["Dask, gather(direct=True)"] < 2**20


def test_simulation_foretells_what_maps_take_here(tmp_path: Path) -> None:
    """Within a factor of 3 for kernels alone; for all, of 10: others may be busy on this machine."""
    cases = _bench(tmp_path / "cluster.json", "costs")
    for name, factor in (("kernels", 3), ("writing", 10), ("shares", 10)):
        ratio = cases[f"simulated-{name}"]["results"]["simulated"]["ratio"]
        assert 1 / factor < ratio < factor, cases
    assert all(
        case["results"]["ndshare"]["median"] > 0 for name, case in cases.items() if name.startswith("cost-")
    )
