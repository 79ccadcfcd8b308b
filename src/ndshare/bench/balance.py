"""Case: items of very different cost, against the best that can be done without knowing the costs.

Greedy list scheduling gives the next item to whoever is free first. Its makespan is computed from the
costs; a library reaches it only if handing out an item costs nothing and no item waits behind another.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ndshare.bench.goal import Goal, Result
from ndshare.bench.mappers import Mapper, Numbers, Work
from ndshare.bench.work import spin

_ITEMS = 2_000
_QUICK_ITEMS = 200
_SHAPE = 1.2  # of the Pareto distribution: the mean exists, the variance does not
_LEAST_S = 0.2e-3
_REFERENCE = "list scheduling"


def run(mappers: Mapping[str, Mapper], workers: int, rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the result of the case.

    Parameters
    ----------
    mappers
        The libraries, by name.
    workers
        How many workers each has.
    rounds
        A third of it, at least 3, is the number of draws. Each contestant runs each draw once.
    quick
        Fewer items.
    """
    items = _QUICK_ITEMS if quick else _ITEMS
    work = Work(spin, _kernel, {})
    values: dict[str, list[float]] = {name: [] for name in (_REFERENCE, *mappers)}
    for mapper in mappers.values():
        mapper.prepare(work, np.zeros(workers), np.float64)()  # workers start
    draws = max(3, rounds // 3)
    for seed in range(draws):
        costs = pareto(items, seed)
        best = makespan(costs, workers)
        values[_REFERENCE].append(1.0)
        for name, mapper in mappers.items():
            map_ = mapper.prepare(work, costs, np.float64)
            start = time.perf_counter()
            results = map_()
            elapsed = time.perf_counter() - start
            if not np.array_equal(results, costs):
                raise AssertionError(f"{name}: wrong results: {results[:5]} ...")
            values[name].append(elapsed / best)
    yield Result(
        "pareto",
        f"map of {items:,} items with Pareto-distributed cost (alpha = {_SHAPE}), {draws} draws",
        "x",
        values,
        _REFERENCE,
        (Goal(1.03),),
    )


def pareto(items: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the costs of some items in seconds."""
    return _LEAST_S * (1.0 + np.random.default_rng(seed).pareto(_SHAPE, items))


def makespan(costs: npt.NDArray[np.float64], workers: int) -> float:
    """Return the seconds that greedy list scheduling takes, in the given order."""
    free_at = [0.0] * workers
    for cost in costs.tolist():
        heapq.heapreplace(free_at, free_at[0] + cost)
    return max(free_at)


def _kernel(out: Numbers) -> Callable[..., object]:
    def kernel(_worker_id: int, index: int, value: Any) -> None:
        out[index] = spin(value)

    return kernel
