"""A cluster context passes the conformance suite on a plain executor and on Dask."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from typing import Any

import pytest

import ndshare
from ndshare.testing import ContextConformance

# Nodes keep their workers warm from test to test; test_cluster.py looks at what is left when an engine ends.
pytestmark = [pytest.mark.once, pytest.mark.leaves("child process", "open descriptor", "thread")]

_engines: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def plain_executor() -> Iterator[None]:
    """Two processes of the standard library."""
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        list(executor.map(time.sleep, [0.1, 0.1]))  # both are forked now, and not in the middle of a test
        _engines["futures"] = executor
        yield


class TestFutures(ContextConformance):
    """On the standard library's processes."""

    def make_context(self) -> ndshare.MapContext:
        """Two processes of one worker."""
        return ndshare.ClusterContext(_engines["futures"])


class TestFuturesOfTwo(ContextConformance):
    """On processes with more workers than one."""

    def make_context(self) -> ndshare.MapContext:
        """Two processes of two workers."""
        return ndshare.ClusterContext(_engines["futures"], workers_per_node=2)
