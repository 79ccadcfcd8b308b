"""Alternating rounds: every contestant once per round, so that a slow minute hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_WARM_UP = 2  # rounds that are not counted: workers start, memory is touched for the first time


@dataclass(frozen=True)
class Contestant:
    """One way to do the work of a case.

    Parameters
    ----------
    run
        Does the work once and returns its result. Timed.
    check
        Raises if the result is wrong. Not timed.
    per
        Units of work in one run: the time is divided by it.
    """

    run: Callable[[], Any]
    check: Callable[[Any], None]
    per: int = 1


def alternate(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Return the seconds per unit of work of each contestant, one number per round.

    The result of one run is checked and dropped before the next run starts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-_WARM_UP, rounds):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            result = contestant.run()
            elapsed = time.perf_counter() - start
            contestant.check(result)
            del result
            if number >= 0:
                seconds[name].append(elapsed / contestant.per)
    return seconds


def median(values: list[float]) -> float:
    """Return the median of some values."""
    return statistics.median(values)
