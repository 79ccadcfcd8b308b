"""Cases: maps of tiny kernels, so that everything around them is timed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from ndshare.bench.goal import Goal, Result
from ndshare.bench.mappers import Mapper, Numbers, Work
from ndshare.bench.timing import Contestant, alternate
from ndshare.bench.work import loop_alone, pick, triple

_TINY = 100  # items
_WARM = {
    "ndshare": 100,
    "serial": 100,
}  # maps per round: they are so short that the first few find cold caches
_WARM_PEERS = 10
_MANY = 200_000
_QUICK_MANY = 20_000
_LARGE = 20_000_000  # elements: 160 MB
_QUICK_LARGE = 2_000_000
# The others would pickle the array anew for each chunk, for seconds.
_SEND_LARGE = ("ndshare", "pasha", "joblib")


def tiny(mappers: Mapping[str, Mapper], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the cases of a map that has hardly anything to do.

    Parameters
    ----------
    mappers
        The libraries, by name.
    rounds
        How often each contestant is timed.
    quick
        Small sizes, to see that everything works.
    """
    values = range(_TINY)
    runs = _runs(mappers, _TRIPLE, values, np.int64)
    contestants = {}
    for name, run in runs.items():
        repeats = 2 if quick else _WARM.get(name, _WARM_PEERS)
        contestants[name] = Contestant(partial(_repeat, run, repeats), partial(_check, values), repeats)
    alone = {name: contestants[name] for name in ("serial", "ndshare")}
    title = f"map of {_TINY} tiny items, warm"
    yield Result("tiny", title, "s", alternate(alone, rounds), "serial", (Goal(0.25e-3, "value"),))
    # Apart: after the others have run, caches are cold and processors elsewhere.
    yield Result(
        "tiny-peers",
        f"{title}, in turns with the peers",
        "s",
        alternate(contestants, rounds),
        "pasha" if "pasha" in contestants else "mp.Pool",
    )


def many(mappers: Mapping[str, Mapper], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the cases of many tiny items; parameters as of `tiny`."""
    count = _QUICK_MANY if quick else _MANY
    numbers = range(count)
    array = np.linspace(0.0, 1.0, count)
    in_place = {name: mapper for name, mapper in mappers.items() if name in ("ndshare", "pasha")}
    title = f"map of {count:,} tiny items, out[i] = 3 * v"
    for name, values, who, what in (
        ("many", numbers, mappers, "of a range"),
        ("many-array", array, in_place, "of an array"),
    ):
        dtype = np.int64 if values is numbers else np.float64
        contestants = {
            name: Contestant(run, partial(_check, values))
            for name, run in _runs(who, _TRIPLE, values, dtype).items()
        }
        alone = {name: contestants[name] for name in ("serial", "ndshare")}
        with multiprocessing.get_context("fork").Pool(2) as pool:
            halves = [(0, count // 2), (count // 2, count)]
            run = partial(pool.starmap, loop_alone, halves, 1)
            # What these two processors can do: nothing is sent, nothing is shared.
            both = {"two plain loops, half each": Contestant(run, lambda _: None)}
            seconds = alternate(alone | both if values is numbers else alone, rounds)
        yield Result(name, f"{title}, v {what}", "s", seconds, "serial", (Goal(0.6),))
        # Apart: after a library that keeps this process busy, workers are slow to get a processor each.
        yield Result(
            f"{name}-peers",
            f"{title}, v {what}, in turns with the peers",
            "s",
            alternate(contestants, rounds),
            "serial",
        )


def captured(mappers: Mapping[str, Mapper], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the case of a kernel that uses a large ordinary array; parameters as of `tiny`."""
    large = np.ones(_QUICK_LARGE if quick else _LARGE)

    def kernel_for(out: Numbers) -> Callable[..., object]:
        def kernel(_worker_id: int, index: int, value: int) -> None:
            out[index] = large[value]

        return kernel

    work = Work(pick, kernel_for, {"values": large})
    values = range(_TINY)
    who = {name: mapper for name, mapper in mappers.items() if name in _SEND_LARGE}
    runs = _runs(who, work, values, np.float64)
    del runs["serial"]  # has nothing to send
    yield Result(
        "captured",
        f"map of {_TINY} tiny items that use an ordinary array of {large.nbytes / 1e6:.0f} MB, warm",
        "s",
        alternate({name: Contestant(run, _check_ones) for name, run in runs.items()}, rounds),
        "pasha" if "pasha" in runs else None,
        (Goal(25e-3, "value"),),
    )


def _triple_kernel(out: Numbers) -> Callable[..., object]:
    def kernel(_worker_id: int, index: int, value: Any) -> None:
        out[index] = 3 * value

    return kernel


_TRIPLE = Work(triple, _triple_kernel, {})


def _runs(
    mappers: Mapping[str, Mapper], work: Work, values: Any, dtype: Any
) -> dict[str, Callable[[], Numbers]]:
    """Return one function per contestant that does the work; the first is a plain loop."""
    out = np.empty(len(values), dtype)
    runs = {"serial": partial(_serially, work.kernel(out), values, out)}
    return runs | {name: mapper.prepare(work, values, dtype) for name, mapper in mappers.items()}


def _serially(kernel: Callable[..., object], values: Any, out: Numbers) -> Numbers:
    for index, value in enumerate(values):
        kernel(0, index, value)
    return out


def _repeat(run: Callable[[], Numbers], count: int) -> Numbers:
    for _ in range(count - 1):
        run()
    return run()


def _check(values: Any, results: Numbers) -> None:
    if not np.array_equal(results, 3 * np.asarray(values)):
        raise AssertionError(f"wrong results: {results[:5]} ...")
    results[...] = 0  # the next one has to do it itself


def _check_ones(results: Numbers) -> None:
    if not (results == 1).all():
        raise AssertionError(f"wrong results: {results[:5]} ...")
    results[...] = 0
