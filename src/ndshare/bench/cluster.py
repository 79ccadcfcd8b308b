"""Cases: maps on a local Dask cluster, against Dask as it is written by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ndshare._cluster import ClusterContext
from ndshare._system import processors
from ndshare.bench import costs
from ndshare.bench.dask_cluster import Load, load_of, opened
from ndshare.bench.goal import Goal, Result
from ndshare.bench.simulation import Costs, Machines, Work, simulate
from ndshare.bench.timing import Contestant, alternate

_ITEM_BYTES = 1 << 20
_ITEMS, _QUICK_ITEMS = 1000, 40
_SHARES = 100

CASES = ("outputs", "overhead", "bytes", "costs")


class _Traffic:
    """Notes what passes through the scheduler while each contestant runs.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._before = load_of(client)
        self._noted: dict[str, list[Load]] = {}

    def counted(self, name: str, contestant: Contestant) -> Contestant:
        """Return the contestant, whose check notes the traffic of the run before it."""
        noted = self._noted[name] = []

        def check(result: Any) -> None:
            now = load_of(self._client)
            noted.append(now - self._before)
            contestant.check(result)
            self._before = load_of(self._client)

        return Contestant(contestant.run, check, contestant.per)

    def nbytes(self, rounds: int) -> dict[str, list[float]]:
        """Return the bytes of the last rounds of each contestant."""
        return {name: [load.nbytes for load in loads[-rounds:]] for name, loads in self._noted.items()}


def run(
    cases: Sequence[str], _versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    """Yield the result of each case."""
    if "overhead" in cases:
        with _local(workers) as client:
            yield _overhead(client, ClusterContext(client), rounds)
    with opened(workers) as client:
        context = ClusterContext(client)
        if "outputs" in cases:
            yield from _outputs(client, context, _QUICK_ITEMS if quick else _ITEMS, min(rounds, 5))
        if "bytes" in cases:
            yield from _bytes(context, quick)
        if "costs" in cases:
            found = costs.measure(client, 1 if quick else 3)
            yield from costs.results(found)
            yield from _simulated(context, found, min(rounds, 5), quick)


@contextlib.contextmanager
def _local(workers: int) -> Iterator[Any]:
    """Start a cluster as a user does on one machine: the scheduler is a part of this process."""
    import distributed

    local: Callable[..., Any] = distributed.LocalCluster
    connect: Callable[..., Any] = distributed.Client
    with (
        local(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
        ) as cluster,
        connect(cluster) as client,
    ):
        yield client


def _make(value: int) -> Any:
    return np.random.default_rng(value).random(_ITEM_BYTES // 8)


def _block(block_id: tuple[int, int] = (0, 0)) -> Any:
    return _make(block_id[0])[np.newaxis]


def _outputs(client: Any, context: ClusterContext, items: int, rounds: int) -> Iterator[Result]:
    out = context.alloc((items, _ITEM_BYTES // 8))

    def kernel(_worker_id: int, index: int, value: int) -> None:
        out[index] = _make(value)

    def ours() -> Any:
        context.map(kernel, range(items))
        return out

    def by_hand(direct: bool | None = None) -> Any:
        futures = client.map(_make, range(items), pure=False)
        for index, values in enumerate(client.gather(futures, direct=direct)):
            out[index] = values
        return out

    def past_the_scheduler() -> Any:
        return by_hand(direct=True)

    def as_dask_array() -> Any:
        chunks = (1,) * items, (out.shape[1],)
        blocks: Any = importlib.import_module("dask.array").map_blocks(
            _block, chunks=chunks, dtype=out.dtype, meta=np.empty((0, 0))
        )
        out[:] = blocks.compute(scheduler=client)
        return out

    def check(result: Any) -> None:
        for index in (0, items // 2, items - 1):
            if not np.array_equal(result[index], _make(index)):
                raise AssertionError(f"row {index} is wrong")
        result[:] = 0

    traffic = _Traffic(client)
    runs = {
        "Dask by hand": by_hand,
        "Dask, gather(direct=True)": past_the_scheduler,
        "Dask Array": as_dask_array,
        "ndshare": ours,
    }
    contestants = {name: traffic.counted(name, Contestant(run, check)) for name, run in runs.items()}
    title = f"{items:,} items of 1 MB into one array"
    yield Result("outputs", title, "s", alternate(contestants, rounds), "Dask by hand", (Goal(1.0),))
    title = f"{items:,} items of 1 MB: bytes through the scheduler"
    yield Result("traffic", title, "B", traffic.nbytes(rounds), "Dask by hand", (Goal(0.6),))


def _nothing(_value: int) -> None:
    pass


def _overhead(client: Any, context: ClusterContext, rounds: int) -> Result:
    def kernel(*_entry: object) -> None:
        pass

    def ours() -> Any:
        return context.map(kernel, range(_SHARES), shares=_SHARES).items

    def by_hand() -> Any:
        return len(client.gather(client.map(_nothing, range(_SHARES), pure=False)))

    def check(count: int) -> None:
        if count != _SHARES:
            raise AssertionError(f"{count} of {_SHARES} shares")

    contestants = {"Dask tasks": Contestant(by_hand, check), "ndshare": Contestant(ours, check)}
    title = f"{_SHARES} shares with nothing to do"
    return Result("overhead", title, "s", alternate(contestants, rounds), "Dask tasks", (Goal(1.5),))


def _bytes(context: ClusterContext, quick: bool) -> Iterator[Result]:
    size = 100_000 if quick else 1_000_000
    rng = np.random.default_rng(1)
    kinds = {
        "floats": (rng.normal(size=size), "bytes changed", 1.05),
        "counts": (rng.poisson(3, size), "bytes of the elements touched", 0.3),
        "mask": (rng.random(8 * size) < 0.5, "bytes of the elements touched", 0.3),
    }
    for name, (values, unit, limit) in kinds.items():
        out = context.alloc(values.shape, values.dtype)

        def kernel(_worker_id: int, _index: int, value: Any, out: Any = out, values: Any = values) -> None:
            out[value] = values[value]

        with costs.merging() as merged:
            context.map(
                kernel, [slice(k, k + len(values) // 10) for k in range(0, len(values), len(values) // 10)]
            )
        came = sum(nbytes for nbytes, _ in merged)
        if not np.array_equal(out, values) or not came:
            raise AssertionError(f"{name}: {came} bytes came back")
        whole = int(np.count_nonzero(values.view(np.uint8))) if name == "floats" else values.nbytes
        title = f"bytes sent back for {name}, by {unit}"
        yield Result(f"bytes-{name}", title, "x", {"ndshare": [came / whole]}, None, (Goal(limit, "value"),))


#: What is simulated and run: kernels alone, kernels that write much, shares with nothing to do.
_WORKS = {
    "kernels": Work(200, 0.02),
    "writing": Work(200, 0.005, _ITEM_BYTES),
    "shares": Work(_SHARES, 0.0, share_items=1),
}


def _simulated(context: ClusterContext, found: Costs, rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the seconds of maps on this cluster beside those that were foretold.

    Kernels sleep, as if each node had processors of its own. Everything else runs on those of this machine.
    """
    machines = Machines(context.num_workers, 1)
    crowd = max((machines.nodes + 2) / processors(), 1.0)
    for name, usual in _WORKS.items():
        work = dataclasses.replace(usual, items=_QUICK_ITEMS) if quick else usual
        out = context.alloc((work.items, int(work.bytes_per_item) // 8))
        shares = work.items // work.share_items if work.share_items else None

        def kernel(_worker_id: int, index: int, value: float, work: Work = work, out: Any = out) -> None:
            time.sleep(work.kernel_s)
            out[index] = value

        def run(work: Work = work, kernel: Any = kernel, shares: int | None = shares) -> Any:
            return context.map(kernel, range(1, work.items + 1), shares=shares)

        def check(_report: Any, out: Any = out) -> None:
            if not np.array_equal(out[:, -1], range(1, len(out) + 1)):
                raise AssertionError("wrong values")
            out[:] = 0

        values = alternate({"measured": Contestant(run, check)}, rounds)
        values["simulated"] = [simulate(work, machines, costs.slower(found, crowd), warm=True).seconds]
        title = f"{work.items} items of {work.kernel_s * 1e3:g} ms that write {work.bytes_per_item:,.0f} B"
        title += f", in {shares} shares" if shares else ""
        yield Result(f"simulated-{name}", title, "s", values, "measured")
