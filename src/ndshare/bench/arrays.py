"""Cases: one array to a worker and one back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ndshare.bench.goal import Goal, Result
from ndshare.bench.peers import Peer
from ndshare.bench.timing import Contestant, alternate
from ndshare.bench.work import add_one

Floats = npt.NDArray[np.float64]

_LARGE = 20_000_000  # elements: 160 MB
_QUICK_LARGE = 2_000_000
_MEGABYTE = 131_072  # elements
_KEPT = 20  # live results
_QUICK_KEPT = 4
_REPEATS = 100  # calls per round of the 1 MB cases: the first few find cold caches


def run(pools: Mapping[str, Peer], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the result of each case.

    Parameters
    ----------
    pools
        The peers, by name.
    rounds
        How often each contestant is timed.
    quick
        Ten times smaller arrays, to see that everything works.
    """
    import ndshare

    size = _QUICK_LARGE if quick else _LARGE
    x = np.linspace(0.0, 1.0, size)
    megabytes = f"{x.nbytes / 1e6:.0f} MB"
    calls = {name: partial(pool.call, add_one, x) for name, pool in pools.items() if name != "mp.Pool"}
    yield Result(
        "large",
        f"add_one(x), x ordinary, {megabytes}",
        "s",
        alternate(_checked({"bare": partial(add_one, x), **calls}, x), rounds),
        "bare",
        (Goal(1.6),),
    )
    shared = ndshare.share(x)
    shared_calls = {"bare": partial(add_one, x), "ndshare": partial(pools["ndshare"].call, add_one, shared)}
    yield Result(
        "large-shared",
        f"add_one(x), x shared, {megabytes}",
        "s",
        alternate(_checked(shared_calls, x), rounds),
        "bare",
        (Goal(1.0),),
    )
    del shared, shared_calls
    kept = _QUICK_KEPT if quick else _KEPT
    subjects = {"bare": partial(add_one, x), "ndshare": calls["ndshare"], "stdlib": calls["stdlib"]}
    yield Result(
        "large-kept",
        f"add_one(x), x ordinary, {megabytes}, {kept} results kept",
        "s",
        alternate(
            {
                name: Contestant(partial(_repeat, call, kept), partial(_check_all, x), kept)
                for name, call in subjects.items()
            },
            max(3, rounds // 5),
        ),
        "bare",
        (Goal(3.0),),
    )
    y = np.linspace(0.0, 1.0, _MEGABYTE)
    small = {name: partial(pool.call, add_one, y) for name, pool in pools.items() if name != "mp.Pool"}
    subjects = {"bare": partial(add_one, y), "ndshare": small["ndshare"]}
    title = "add_one(x), x ordinary, 1 MB"
    yield Result(
        "megabyte", title, "s", alternate(_often(subjects, y), rounds), "bare", (Goal(0.25e-3, "extra"),)
    )
    # Apart: for 30 ms after them the caches, and the kernel's choice of processors, are those of the others.
    yield Result(
        "megabyte-peers",
        f"{title}, in turns with the peers",
        "s",
        alternate(_often({**subjects, **small}, y), rounds),
        "bare",
    )


def _repeat(call: Callable[[], Any], count: int) -> list[Any]:
    return [call() for _ in range(count)]


def _drop(call: Callable[[], Any], count: int) -> Any:
    for _ in range(count - 1):
        call()
    return call()


def _often(calls: Mapping[str, Callable[[], Any]], x: Floats) -> dict[str, Contestant]:
    return {
        name: Contestant(partial(_drop, call, _REPEATS), partial(_check_one, x), _REPEATS)
        for name, call in calls.items()
    }


def _checked(calls: Mapping[str, Callable[[], Any]], x: Floats) -> dict[str, Contestant]:
    return {name: Contestant(call, partial(_check_one, x)) for name, call in calls.items()}


def _check_one(x: Floats, result: Floats) -> None:
    # Sampled: comparing all of it would push the caches and the freed pages about before the next run.
    if (
        result.shape != x.shape
        or result.dtype != x.dtype
        or not np.array_equal(result[::4099], x[::4099] + 1)
    ):
        raise AssertionError(f"wrong result: shape {result.shape}, dtype {result.dtype}, {result[:3]} ...")


def _check_all(x: Floats, results: list[Floats]) -> None:
    for result in results:
        _check_one(x, result)
