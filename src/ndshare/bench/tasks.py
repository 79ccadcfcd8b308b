"""Cases: many tasks that do nothing, so that only the way there and back is timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ndshare.bench.goal import Goal, Result
from ndshare.bench.peers import Peer
from ndshare.bench.timing import Contestant, alternate
from ndshare.bench.work import add_one, small_arrays

_Verb = Callable[[Callable[[int], Any], int], list[Any]]  # `Peer.many` or `Peer.map`

_MANY = 10_000
_QUICK_MANY = 1_000
_TRIPS = 200  # round trips per round
_SMALL_REPEATS = 300  # about 10 ms: short turns, for the speed of a shared machine changes within a second
_SMALL_ROUNDS = 8  # turns per round


def run(pools: Mapping[str, Peer], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the result of each case; parameters as in `ndshare.bench.arrays.run`."""
    trips = _TRIPS // 10 if quick else _TRIPS
    yield Result(
        "round-trip",
        "round trip of a tiny task",
        "s",
        alternate(
            {
                name: Contestant(partial(_trips, pool, trips), partial(_check, trips), trips)
                for name, pool in pools.items()
                if name != "mp.Pool"
            },
            rounds,
        ),
        "stdlib",
        (Goal(0.65),),
    )
    many = _QUICK_MANY if quick else _MANY
    yield Result(
        "submit-many",
        f"{many:,} tiny tasks submitted at once, per task",
        "s",
        _time_many({name: pool.many for name, pool in pools.items()}, many, rounds),
        "stdlib",
        (Goal(0.25),),
    )
    yield Result(
        "map-many",
        f"map of {many:,} tiny items, chunksize 1, per item",
        "s",
        _time_many({name: pool.map for name, pool in pools.items()}, many, rounds),
        "mp.Pool",
        (Goal(0.8),),
    )
    yield Result(
        "small-arrays",
        "code with small arrays, inside a worker against outside, in turns on one processor",
        "x",
        {"ndshare": _small_arrays(pools["ndshare"], rounds if quick else _SMALL_ROUNDS * rounds)},
        None,
        (Goal(1.04, "value"),),
    )


def _small_arrays(pool: Peer, turns: int) -> list[float]:
    """Return how many times as long as outside the code takes inside, for each turn.

    The speed of a shared machine changes within a second and from processor to processor, so each short turn
    is a comparison of its own. The worker's own clock is read: the way there and back is not counted.
    """
    cpu = min(os.sched_getaffinity(0))
    ratios = []
    for _ in range(turns + 1):
        outside = small_arrays(_SMALL_REPEATS, cpu)
        ratios.append(float(pool.call(small_arrays, _SMALL_REPEATS, cpu)) / outside)
    return ratios[1:]


def _time_many(verbs: Mapping[str, _Verb], count: int, rounds: int) -> dict[str, list[float]]:
    contestants = {
        name: Contestant(partial(verb, add_one, count), partial(_check, count), count)
        for name, verb in verbs.items()
    }
    return alternate(contestants, max(3, rounds * 2 // 3))


def _trips(pool: Peer, count: int) -> list[Any]:
    return [pool.call(add_one, i) for i in range(count)]


def _check(count: int, results: list[Any]) -> None:
    if results != list(range(1, count + 1)):
        raise AssertionError(f"wrong results: {results[:5]} ... of {count}")
