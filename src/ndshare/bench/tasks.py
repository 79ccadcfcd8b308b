"""Cases: many tasks that do nothing, so that only the way there and back is timed."""

from __future__ import annotations

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
_SMALL_REPEATS = 1_500  # about 50 ms per size and round


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
    repeats = _SMALL_REPEATS // 10 if quick else _SMALL_REPEATS
    inside, outside = [], []
    for number in range(-1, rounds):  # the worker's own clock: the way there and back is not counted
        outside.append(small_arrays(repeats))
        inside.append(float(pools["ndshare"].call(small_arrays, repeats)))
        if number < 0:
            inside.clear()
            outside.clear()
    yield Result(
        "small-arrays",
        "code with small arrays, inside a worker against outside",
        "s",
        {"outside": outside, "ndshare": inside},
        "outside",
        (Goal(1.04),),
    )


def _time_many(verbs: Mapping[str, _Verb], count: int, rounds: int) -> dict[str, list[float]]:
    contestants = {
        name: Contestant(partial(verb, add_one, count), partial(_check, count), count)
        for name, verb in verbs.items()
    }
    return alternate(contestants, max(3, rounds // 3))


def _trips(pool: Peer, count: int) -> list[Any]:
    return [pool.call(add_one, i) for i in range(count)]


def _check(count: int, results: list[Any]) -> None:
    if results != list(range(1, count + 1)):
        raise AssertionError(f"wrong results: {results[:5]} ... of {count}")
