"""Two hosts on one machine: network namespaces with addresses and a /dev/shm of their own.

::

    first host: caller, scheduler, workers ──lo      second host: workers
                        └───────── first ═════ second ─────────┘

Started as ``unshare --net --mount python two_hosts.py`` by test_hosts.py; prints what it finds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

import ndshare
from ndshare._cluster.engines import DaskEngine
from ndshare.bench.memory import tree
from tests.cluster.cluster_suite import run_suite

_FIRST, _SECOND = "10.99.0.1", "10.99.0.2"
_ITEMS = 64


def _sh(*words: str) -> None:
    subprocess.run(words, check=True)


def _copies(nbytes: int) -> int:
    """How many files of at least this size the nodes have mapped, all processes together."""
    found = set()
    for pid in tree(os.getpid()):  # this may run twice at a time on a machine
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as file:
            for line in file:
                if "memfd:ndshare-sparse" in line:
                    span, _, _, _, inode, *_ = line.split()
                    low, high = (int(part, 16) for part in span.split("-"))
                    if high - low >= nbytes:
                        found.add(inode)
    return len(found)


def _memory(host: int) -> int:
    """Bytes that the processes of a host have: what each has to itself, and pages of shared memory once."""
    own, files = 0, {}
    for pid in tree(host):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            own += sum(int(line.split()[1]) for line in file if line.startswith(("Pss_Anon:", "Pss_File:")))
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{fd}"
                if os.readlink(path).startswith("/memfd:ndshare"):
                    facts = os.stat(path)
                    files[facts.st_ino] = facts.st_blocks * 512
    return own * 1024 + sum(files.values())


def _network() -> dict[str, int]:
    """Bytes that the first host has sent, to itself and to the other one."""
    links = json.loads(subprocess.check_output(["ip", "-s", "-j", "link"]))
    sent = {link["ifname"]: link["stats64"]["tx"]["bytes"] for link in links}
    return {"itself": sent["lo"], "the other": sent["first"]}


def _check_inputs(context: ndshare.ClusterContext, hosts: list[int], megabytes: int) -> None:
    """All workers read all pages of a table, in two maps; prints what it takes, in tables."""
    table = np.random.default_rng(1).random(megabytes * 125_000)
    out = context.alloc(_ITEMS)
    contents: list[int] = []
    submit = context._engine.submit

    def counting(task: Any, *rest: Any) -> Any:
        contents.append(sum(content.nbytes for content in task.contents.values() if content.nbytes > 1e6))
        return submit(task, *rest)

    context._engine.submit = counting  # type: ignore[method-assign]

    def kernel(_worker_id: int, index: int, value: int) -> None:
        time.sleep(0.01)
        out[index] = table[value::512].sum()

    context.map(lambda *_: time.sleep(0.01), range(_ITEMS), shares=_ITEMS)  # all have their workers
    before = [_memory(host) for host in hosts]
    for name in ("first", "second"):
        contents.clear()
        network = _network()
        report = context.map(kernel, range(_ITEMS), shares=_ITEMS)
        sent = {link: now - network[link] for link, now in _network().items()}
        assert np.array_equal(out, [table[k::512].sum() for k in range(_ITEMS)])
        found: dict[str, Any] = {
            "workers": len(report.workers),
            "copies": _copies(table.nbytes),
            "memory": [
                round((_memory(host) - was) / table.nbytes, 3)
                for host, was in zip(hosts, before, strict=True)
            ],
            "contents": sum(contents) / table.nbytes,
            "sent": {link: round(nbytes / table.nbytes, 4) for link, nbytes in sent.items()},
            "bytes sent": sent,
            "s": round(report.elapsed, 1),
        }
        print(name, "map", json.dumps(found), flush=True)
    context._engine.submit = submit  # type: ignore[method-assign]


def _check_workspace(client: Any) -> None:
    """Values are on each host once, for all of its processes and their workers."""
    values = np.random.default_rng(2).normal(size=5_000_000)
    others = _copies(values.nbytes)
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
        copies = _copies(values.nbytes) - others
        print("workspace: copies", copies, "sent", sum(sent) // values.nbytes, flush=True)
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
    """Make the hosts, run the checks, end them."""
    import distributed

    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=32, help="size of the input")
    parser.add_argument("--workers", type=int, default=2, help="of each host")
    parser.add_argument("--only-inputs", action="store_true")
    options = parser.parse_args()
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
            worker += ["--nworkers", str(options.workers), "--nthreads", "1", "--no-dashboard"]
            running.append(subprocess.Popen(worker, cwd="/tmp", **quiet))
        with distributed.Client(address) as client:
            client.wait_for_workers(2 * options.workers)
            context = ndshare.ClusterContext(client)
            _check_inputs(context, [process.pid for process in running[2:]], options.megabytes)
            if not options.only_inputs:
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
