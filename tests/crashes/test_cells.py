"""The matrix has what it promises: enough cells, each with an outcome."""

from __future__ import annotations

import pytest

from tests.crashes import test_callers, test_workers
from tests.dict import test_crash

pytestmark = pytest.mark.once


def test_there_are_more_than_a_hundred_cells() -> None:
    """Workers and their origin, maps, callers, producers, consumers, updaters."""
    executor = len(test_workers.CELLS)
    maps = len(test_workers._MAP_POINTS) * 3 * 2
    callers = len(test_callers.POINTS) * 4
    queues = 3 * 2 * 3 * 2
    assert executor + maps + callers + queues >= 100
    assert test_crash._MOST_STEPS > 0  # of an updater: each step of its own
