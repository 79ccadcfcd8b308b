"""Cases: what a map costs for each item, within one process."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ndshare._map import run as run_loop
from ndshare._system import DONE, Board
from ndshare.bench.goal import Goal, Result
from ndshare.bench.timing import Contestant, alternate

_ITEMS = 200_000
_DRAWS = 20_000
_QUICK = 10  # times fewer
_ZERO = 0

# A kernel in C that takes (worker_id, index, value) and does nothing: the least common multiple of zero and
# anything is known as soon as zero is seen, the rest is only checked to be integers.
_nothing = math.lcm


def run(rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the results: bookkeeping per item, and the random numbers of an item.

    Parameters
    ----------
    rounds
        How often each contestant is timed.
    quick
        Fewer items.
    """
    yield _bookkeeping(rounds, _ITEMS // _QUICK if quick else _ITEMS)
    yield _random_numbers(rounds, _DRAWS // _QUICK if quick else _DRAWS)


def _bookkeeping(rounds: int, items: int) -> Result:
    """Return the cost of index, done mask and slot.

    The cheapest way to call something in C for each element of a list is `map`, consumed by a `deque` that
    keeps nothing. All its arguments exist already, the index too; what the loop of a share takes beyond it is
    its bookkeeping, the making of the index included. (`itertools.starmap` would need a tuple per call.)
    """
    values = list(range(items))

    def plain() -> None:
        deque(map(_nothing, itertools.repeat(_ZERO), values, values), maxlen=0)

    board = Board(np.zeros(Board.nbytes(1, items), np.uint8), 1, items)

    def loop(source: Callable[[], Any], by_index: bool, timed: bool) -> tuple[int, bool]:
        board.mask[:] = 0
        return run_loop(
            _nothing, _ZERO, source(), by_index, board.memory, board.slot(0), board.mask_at, 0, items, timed
        )

    def check(found: tuple[int, bool]) -> None:
        if found != (items, False) or not (board.mask == DONE).all():
            raise AssertionError(f"wrong result: {found}")

    loops = {
        "ndshare": partial(loop, lambda: values, by_index=True, timed=False),
        "ndshare, with a timeout": partial(loop, lambda: values, by_index=True, timed=True),
        "ndshare, iterator of entries": partial(loop, lambda: enumerate(values), by_index=False, timed=False),
    }
    contestants = {"map()": Contestant(plain, _no_check, items)}
    contestants |= {name: Contestant(run, check, items) for name, run in loops.items()}
    return Result(
        "bookkeeping",
        "index, progress and error of an item, beyond the call of a kernel in C",
        "s",
        alternate(contestants, rounds),
        "map()",
        (Goal(25e-9, "extra"),),
    )


def _random_numbers(rounds: int, items: int) -> Result:
    import ndshare

    context = ndshare.SerialContext()
    values = range(items)

    def empty(_worker_id: int, _index: int, _value: int) -> None:
        pass

    def with_item_rng(_worker_id: int, _index: int, _value: int) -> None:
        ndshare.item_rng()

    def with_default_rng(_worker_id: int, index: int, _value: int) -> None:
        np.random.default_rng((1, index))

    kernels = {"no numbers": empty, "ndshare": with_item_rng, "default_rng((seed, index))": with_default_rng}
    return Result(
        "item-rng",
        "the random number generator of an item",
        "s",
        alternate(
            {
                name: Contestant(partial(context.map, kernel, values, seed=1), _no_check, items)
                for name, kernel in kernels.items()
            },
            rounds,
        ),
        "no numbers",
        (Goal(3e-6, "extra"),),
    )


def _no_check(_: object) -> None:
    """Accept: a kernel that fails has raised already."""
