"""Two hosts on one machine: network namespaces with addresses and a /dev/shm of their own.

Started as ``unshare --net --mount python two_hosts.py`` by test_cluster_hosts.py; prints what it finds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

import ndshare
from cluster_suite import run_suite
from ndshare._engines import DaskEngine

_FIRST, _SECOND = "10.99.0.1", "10.99.0.2"
_WORKERS = 2


def _sh(*words: str) -> None:
    subprocess.run(words, check=True)


def _copies(nbytes: int) -> int:
    """How many files of at least this size the nodes have mapped, all processes together."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as file:
            for line in file:
                if "memfd:ndshare-node" in line:
                    span, _, _, _, inode, *_ = line.split()
                    low, high = (int(part, 16) for part in span.split("-"))
                    if high - low >= nbytes:
                        found.add(inode)
    return len(found)


def _check_inputs(context: ndshare.ClusterContext) -> None:
    table = np.random.default_rng(1).normal(size=4_000_000)
    out = context.alloc(64)
    sent: list[int] = []
    submit = context._engine.submit

    def counting(task: Any, *rest: Any) -> Any:
        sent.append(sum(content.nbytes for content in task.contents.values() if content.nbytes > 1e6))
        return submit(task, *rest)

    context._engine.submit = counting  # type: ignore[method-assign]

    def kernel(_worker_id: int, index: int, value: int) -> None:
        time.sleep(0.01)
        out[index] = table[value]

    context.map(kernel, range(64), shares=32)
    assert np.array_equal(out, table[:64])
    print("copies", _copies(table.nbytes), "sent", sum(sent) // table.nbytes, flush=True)
    sent.clear()
    context.map(kernel, range(64), shares=32)
    print("sent again", sum(sent), flush=True)
    context._engine.submit = submit  # type: ignore[method-assign]


def _check_workspace(client: Any) -> None:
    """Values are on each host once, for all of its processes and their workers."""
    values = np.random.default_rng(2).normal(size=5_000_000)
    sent: list[int] = []
    submit = DaskEngine.submit

    def counting(engine: DaskEngine, task: Any, *rest: Any) -> Any:
        sent.append(sum(content.nbytes for content in task.contents.values() if content.nbytes > 1e6))
        return submit(engine, task, *rest)

    DaskEngine.submit = counting  # type: ignore[method-assign]
    with ndshare.Workspace({"table": values, "counts": np.zeros(64)}, engine=client) as ws:

        @ws.register
        def look(index: int) -> float:
            time.sleep(0.02)
            counts[index] += 1  # type: ignore[name-defined]  # noqa: F821
            return float(table[index])  # type: ignore[name-defined]  # noqa: F821

        for number in (1, 2):
            for index in range(64):
                look(index)
            assert ws.evaluate() == values[:64].tolist()
            assert ws["counts"].tolist() == [number] * 64
        print("workspace: copies", _copies(values.nbytes), "sent", sum(sent) // values.nbytes, flush=True)
    DaskEngine.submit = submit  # type: ignore[method-assign]


def _check_cut(context: ndshare.ClusterContext) -> None:
    sums = context.alloc(5, int, per_worker=True)
    out = context.alloc((300, 1000), int)
    nodes = context.alloc(300, int)

    def kernel(worker_id: int, index: int, value: int) -> None:
        time.sleep(0.02)
        sums[worker_id, value % 5] += value
        out[index] = value
        nodes[index] = os.stat("/dev/shm").st_dev

    def cut() -> None:
        time.sleep(1)
        _sh("ip", "link", "set", "first", "down")
        time.sleep(5)
        _sh("ip", "link", "set", "first", "up")

    thread = threading.Thread(target=cut)
    thread.start()
    report = context.map(kernel, range(300), shares=60)
    thread.join()
    assert report.done.all()
    assert context.reduce(sums).tolist() == [sum(range(k, 300, 5)) for k in range(5)]
    assert np.array_equal(out, np.arange(300)[:, None].repeat(1000, 1))
    print("after the cut", len(np.unique(nodes)), "hosts", flush=True)


def main() -> None:
    """Make the hosts, run everything, end them."""
    import distributed

    dask = [sys.executable, "-W", "ignore", "-m", "distributed.cli.dask_"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    _sh("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
    _sh("ip", "link", "set", "lo", "up")
    host = subprocess.Popen(
        [
            "unshare",
            "--net",
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /dev/shm && echo x && exec sleep 1000",
        ],
        stdout=subprocess.PIPE,
    )
    running = [host]
    try:
        assert host.stdout is not None
        host.stdout.readline()
        inside = ["nsenter", "-t", str(host.pid), "-n", "-m"]
        _sh("ip", "link", "add", "first", "type", "veth", "peer", "name", "second", "netns", str(host.pid))
        _sh("ip", "addr", "add", f"{_FIRST}/24", "dev", "first")
        _sh("ip", "link", "set", "first", "up")
        _sh(*inside, "ip", "addr", "add", f"{_SECOND}/24", "dev", "second")
        _sh(*inside, "ip", "link", "set", "second", "up")
        _sh(*inside, "ip", "link", "set", "lo", "up")
        address = f"tcp://{_FIRST}:8786"
        scheduler = [*dask[:-1], dask[-1] + "scheduler", "--host", _FIRST, "--port", "8786", "--no-dashboard"]
        running.append(subprocess.Popen(scheduler, **quiet))
        for prefix, own in (([], _FIRST), (inside, _SECOND)):
            worker = [*prefix, *dask[:-1], dask[-1] + "worker", address, "--host", own]
            worker += ["--nworkers", str(_WORKERS), "--nthreads", "1", "--no-dashboard"]
            running.append(subprocess.Popen(worker, cwd="/tmp", **quiet))
        with distributed.Client(address) as client:
            client.wait_for_workers(2 * _WORKERS)
            context = ndshare.ClusterContext(client)
            _check_inputs(context)
            _check_workspace(client)
            print(run_suite(lambda: ndshare.ClusterContext(client)), "passed", flush=True)
            _check_cut(context)
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(20)
            if process.stdout is not None:
                process.stdout.close()


if __name__ == "__main__":
    main()
