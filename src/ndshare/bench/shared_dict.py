"""Cases: `SharedDict` against NumPy on private arrays, a manager's dict, and UltraDict."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ndshare.bench.goal import Goal, Result
from ndshare.bench.timing import Contestant, alternate

_ELEMENTS = 100_000
_READ_ELEMENTS = 1_000_000
_KEYS = 10_000
_QUICK_KEYS = 1_000
_REPEATS = 50  # updates per timed run: a run of some milliseconds
_QUICK_REPEATS = 5
_PAIR_S = 0.5  # how long two processes update at once
_QUICK_PAIR_S = 0.05

Floats = npt.NDArray[np.float64]


def average(new: Any, old: Any) -> Any:
    """Return the moving average that SHMArrays has as its default."""
    return 0.1 * new + 0.9 * old


def run(rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the figures of every case."""
    yield _large(rounds, quick)
    yield _tiny(rounds, quick)
    yield _read(rounds, quick)
    yield _pair(rounds, quick)
    yield from _others(rounds, quick)
    yield _many_keys(rounds, quick)


def _repeated(function: Callable[[], Any], repeats: int) -> Callable[[], Any]:
    def repeat() -> Any:
        result = None
        for _ in range(repeats):
            result = function()
        return result

    return repeat


def _check_none(_: Any) -> None:
    """Accept any result: a moving average depends on how often it was taken."""


def _contestant(function: Callable[[], Any], repeats: int) -> Contestant:
    return Contestant(_repeated(function, repeats), _check_none, repeats)


def _large(rounds: int, quick: bool) -> Result:
    import ndshare

    repeats = _QUICK_REPEATS if quick else _REPEATS
    rng = np.random.default_rng(1)
    new, old = rng.random(_ELEMENTS), rng.random(_ELEMENTS)
    with ndshare.SharedDict({"a": old}) as d:
        values = alternate(
            {
                "NumPy": _contestant(lambda: average(new, old), repeats),
                "ndshare": _contestant(lambda: d.update({"a": new}, average), repeats),
                "ndshare, copy=False": _contestant(
                    lambda: d.update({"a": new}, average, copy=False), repeats
                ),
            },
            rounds,
        )
    return Result(
        "update",
        f"update of one array of {_ELEMENTS:,} float64, against the plain expression",
        "s",
        values,
        "NumPy",
        (Goal(1.7), Goal(1.2, subject="ndshare, copy=False")),
    )


def _tiny(rounds: int, quick: bool) -> Result:
    import ndshare

    repeats = 10 * (_QUICK_REPEATS if quick else _REPEATS)
    with ndshare.SharedDict({"a": np.zeros(3)}) as d:
        new = {"a": np.ones(3)}
        values = alternate({"ndshare": _contestant(lambda: d.update(new, average), repeats)}, rounds)
    title = "update of 3 float64, uncontended"
    return Result("tiny update", title, "s", values, None, (Goal(8e-6, "value"),))


def _read(rounds: int, quick: bool) -> Result:
    import ndshare

    repeats = 2 if quick else 10
    array = np.random.default_rng(2).random(_READ_ELEMENTS)
    with ndshare.SharedDict({"a": array}) as d:
        values = alternate(
            {
                "ndarray.copy": _contestant(array.copy, repeats),
                "ndshare": _contestant(lambda: d.read(["a"]), repeats),
            },
            rounds,
        )
    return Result("read", f"read of {_READ_ELEMENTS:,} float64", "s", values, "ndarray.copy", (Goal(1.1),))


def _updates_of(name: str, key: str, start: Any, seconds: float, counts: Any) -> None:
    """Update one key for some seconds; report how often."""
    import ndshare

    with ndshare.SharedDict.attach(name) as d:
        new = {key: np.ones(_ELEMENTS)}
        for _ in range(3):
            d.update(new, average)
        start.wait()
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            d.update(new, average)
            done += 1
        counts.put(done)


def _pair(rounds: int, quick: bool) -> Result:
    """Time per update of one process, and of two on different keys together."""
    import ndshare

    context = multiprocessing.get_context("spawn")
    seconds = _QUICK_PAIR_S if quick else _PAIR_S
    values: dict[str, list[float]] = {"1 process": [], "ndshare": []}
    with ndshare.SharedDict({"a": np.ones(_ELEMENTS), "b": np.ones(_ELEMENTS)}) as d:
        for _ in range(min(rounds, 5)):
            for contestant, keys in (("1 process", "a"), ("ndshare", "ab")):
                start, counts = context.Barrier(len(keys)), context.Queue()
                processes = [
                    context.Process(target=_updates_of, args=(d.name, key, start, seconds, counts))
                    for key in keys
                ]
                for process in processes:
                    process.start()
                values[contestant].append(seconds / sum(counts.get() for _ in keys))
                for process in processes:
                    process.join()
    return Result(
        "two processes",
        "update by 2 processes on different keys: time per update, against 1 process",
        "s",
        values,
        "1 process",
        (Goal(1 / 1.8),),
        (f"throughput of two: {_ratio(values, '1 process', 'ndshare'):.2f} times that of one",),
    )


def _ratio(values: dict[str, list[float]], above: str, below: str) -> float:
    return float(np.median(values[above]) / np.median(values[below]))


def _others(rounds: int, quick: bool) -> Iterator[Result]:
    import ndshare

    repeats = 2 if quick else 10
    rng = np.random.default_rng(3)
    new, old = rng.random(_ELEMENTS), rng.random(_ELEMENTS)
    notes: list[str] = []
    with ndshare.SharedDict({"a": old}) as d, multiprocessing.get_context("spawn").Manager() as manager:
        shared, lock = manager.dict(a=old), manager.Lock()

        def there_and_back(shared: Any) -> None:
            shared["a"] = shared["a"]

        def update_shared() -> None:
            with lock:
                shared["a"] = average(new, shared["a"])

        moving = {
            "Manager().dict": _contestant(lambda: there_and_back(shared), repeats),
            "ndshare": _contestant(lambda: there_and_back(d), repeats),
        }
        updating = {
            "Manager().dict": _contestant(update_shared, repeats),
            "ndshare": _contestant(lambda: d.update({"a": new}, average), repeats),
        }
        ultra = _ultra(old, notes)
        if ultra is not None:

            def update_ultra() -> None:
                with ultra.lock:
                    ultra["a"] = average(new, ultra["a"])

            moving["UltraDict"] = _contestant(lambda: there_and_back(ultra), repeats)
            updating["UltraDict"] = _contestant(update_ultra, repeats)
        try:
            moved = alternate(moving, min(rounds, 7))
            updated = alternate(updating, min(rounds, 7))
        finally:
            if ultra is not None:
                ultra.close(unlink=True)
    for name, title, values, goals in (
        ("other dicts", "read and write", moved, (Goal(1 / 30),)),
        ("other dicts, update", "update", updated, ()),
    ):
        ratio = _ratio(values, "Manager().dict", "ndshare")
        yield Result(
            name,
            f"{title} of {_ELEMENTS:,} float64, against a manager's dict",
            "s",
            values,
            "Manager().dict",
            goals,
            (f"{ratio:.0f} times as fast as Manager().dict", *notes),
        )


def _ultra(old: Floats, notes: list[str]) -> Any:
    try:
        from UltraDict import UltraDict
    except ImportError as error:
        notes.append(f"left out: UltraDict, not installed: {error}")
        return None
    name, room = f"ndshare-bench-{os.getpid()}", 4 * old.nbytes
    return UltraDict({"a": old}, name=name, buffer_size=room, full_dump_size=room)


def _many_keys(rounds: int, quick: bool) -> Result:
    import ndshare

    keys = _QUICK_KEYS if quick else _KEYS
    arrays = {number: np.zeros(4) for number in range(keys)}

    def create_and_attach() -> None:
        with ndshare.SharedDict(arrays) as made, ndshare.SharedDict.attach(made.name):
            pass

    values = alternate({"ndshare": Contestant(create_and_attach, _check_none)}, rounds)
    return Result(
        "many keys", f"{keys:,} keys: create, attach and close", "s", values, None, (Goal(0.1, "value"),)
    )
