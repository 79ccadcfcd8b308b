"""What the parts of a share cost on this machine, for `ndshare.bench.simulation`.

The caller's and the scheduler's part are measured on a local Dask cluster with one node that has nothing to
do, a node's part in this process, which is given shares as an engine gives them to a node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ndshare._cluster import Cargo, ClusterContext
from ndshare._node import Change
from ndshare.bench.dask_cluster import load_of
from ndshare.bench.goal import Result
from ndshare.bench.simulation import Costs

_SHARES = 200
_ROW_BYTES = 1 << 20
_ROWS = 64
_ROWS_PER_SHARE = 8
_PREFIX = "cost-"


class _Here:
    """An engine of one node, which is this process; notes how long each share takes."""

    _max_workers = 1

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def submit(self, function: Callable[[Any], Any], task: Any) -> Any:
        import concurrent.futures

        future: Any = concurrent.futures.Future()
        began = time.perf_counter()
        result = function(task)
        self.seconds.append(time.perf_counter() - began)
        future.set_result(result)
        return future


def measure(client: Any, rounds: int = 3) -> Costs:
    """Return the costs on this machine.

    Parameters
    ----------
    client : distributed.Client
        Of a cluster of `ndshare.bench.dask_cluster`.
    rounds : int, optional
        How often each is measured; the least counts.
    """
    return Costs(**_engine(client, rounds), **_node(rounds), receive_s=_receive(client, rounds))


def _nothing(*_entry: object) -> None:
    pass


def _engine(client: Any, rounds: int) -> dict[str, float]:
    """Measure what a share costs the caller, the scheduler and a node, and how long the way is."""
    context = ClusterContext(client)

    def kernel(*_entry: object) -> None:
        pass

    latencies, callers, schedulers, nodes, nbytes = [], [], [], [], []
    for number in range(-1, rounds):
        ways = []
        for _ in range(10):
            began = time.perf_counter()
            client.submit(_nothing, pure=False).result()
            ways.append(time.perf_counter() - began)
        before, nodes_s, cpu_s = load_of(client), _cpu_of_nodes(client), time.process_time()
        context.map(kernel, range(_SHARES), shares=_SHARES)
        cpu_s = time.process_time() - cpu_s
        nodes_s = _cpu_of_nodes(client) - nodes_s
        load = load_of(client) - before
        if number >= 0:
            latencies.append(statistics.median(ways))
            callers.append(cpu_s / _SHARES)
            schedulers.append(load.cpu_s / _SHARES)
            nodes.append(nodes_s / _SHARES)
            nbytes.append(load.nbytes / _SHARES)
    return {
        "latency_s": min(latencies),
        "caller_s": min(callers),
        "scheduler_s": min(schedulers),
        "node_s": min(nodes),
        "scheduler_bytes": statistics.median(nbytes),
    }


def _cpu_of_nodes(client: Any) -> float:
    """Return the processor time of the engine's processes, without that of their workers."""
    spent: dict[str, float] = client.run(time.process_time)
    return sum(spent.values())


def _node(rounds: int) -> dict[str, float]:
    """Measure what a node takes to start its workers, and what is written costs it and the caller."""
    engine = _Here()
    context = ClusterContext(engine)

    def nothing(*_entry: object) -> None:
        pass

    context.map(nothing, range(2), shares=2)
    first, second = engine.seconds
    engine.seconds.clear()
    context.map(nothing, range(50), shares=50)
    share_s = statistics.median(engine.seconds)
    values = np.random.default_rng(1).random(_ROW_BYTES // 8)
    row = np.empty_like(values)

    def write(_worker_id: int, index: int, _value: int) -> None:
        out[index] = values

    plain, writing, merges = [], [], []
    for _ in range(rounds):
        out = context.alloc((_ROWS, values.size))
        out.fill(0)  # the caller's pages are there, as they are if the array is used again
        engine.seconds.clear()
        with merging() as merged:
            context.map(write, range(_ROWS), shares=_ROWS // _ROWS_PER_SHARE)
        began = time.perf_counter()
        for _ in range(_ROWS):
            row[:] = values
        plain.append(time.perf_counter() - began)
        writing.append(sum(engine.seconds) - len(engine.seconds) * share_s)
        merges.append(sum(seconds for _, seconds in merged))
    nbytes = _ROWS * values.nbytes
    return {
        "start_s": max(first - second, 0.0),
        "write_s": (min(writing) - min(plain)) / nbytes * 1e9,
        "merge_s": min(merges) / nbytes * 1e9,
    }


@contextlib.contextmanager
def merging() -> Iterator[list[tuple[int, float]]]:
    """Note bytes and seconds of all that comes back and is merged meanwhile, share by share."""
    noted: list[tuple[int, float]] = []
    merge = Cargo.merge

    def watched(cargo: Cargo, changes: Iterable[Change]) -> None:
        changes = list(changes)
        began = time.perf_counter()
        merge(cargo, changes)
        noted.append((sum(change.nbytes for change in changes), time.perf_counter() - began))

    Cargo.merge = watched  # type: ignore[method-assign, assignment]
    try:
        yield noted
    finally:
        Cargo.merge = merge  # type: ignore[method-assign]


def _receive(client: Any, rounds: int) -> float:
    """Measure the seconds for each GB that comes from a node straight to the caller."""
    size = 32 << 20
    seconds = []
    for _ in range(2 * rounds):
        future = client.submit(np.ones, size, np.uint8, pure=False)
        future.exception()  # wait
        began = time.perf_counter()
        client.gather(future, direct=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / size * 1e9


def slower(costs: Costs, factor: float) -> Costs:
    """Return the costs where so many times as many parties share the processors."""
    times = {
        field.name: getattr(costs, field.name) * factor
        for field in dataclasses.fields(costs)
        if field.name.endswith("_s") and field.name != "latency_s"  # which is waiting
    }
    return dataclasses.replace(costs, **times)


def results(costs: Costs) -> Iterator[Result]:
    """Yield one result for each of the costs."""
    for field in dataclasses.fields(costs):
        unit = "B" if field.name.endswith("bytes") else "s"
        per = " per GB" if field.name in ("write_s", "receive_s", "merge_s") else ""
        title = f"cost of a share: {field.name.removesuffix('_s').replace('_', ', ')}{per}"
        yield Result(_PREFIX + field.name, title, unit, {"ndshare": [getattr(costs, field.name)]}, None)


def load(path: str) -> Costs:
    """Return the costs from a file of ``ndshare bench cluster --json``."""
    with open(path) as file:
        cases = {case["name"]: case for case in json.load(file)["cases"]}
    names = [field.name for field in dataclasses.fields(Costs)]
    missing = [name for name in names if _PREFIX + name not in cases]
    if missing:
        raise ValueError(
            f"{path} has no costs ({', '.join(missing)}); write one with: "
            "ndshare bench cluster --cases costs --json FILE"
        )
    return Costs(**{name: cases[_PREFIX + name]["results"]["ndshare"]["median"] for name in names})
