"""A cluster context passes the conformance suite on Dask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import ndshare
from dask_cluster import dask_cluster
from ndshare.testing import ContextConformance

distributed = pytest.importorskip("distributed")

# Nodes keep their workers warm from test to test, and so does the client its threads.
pytestmark = pytest.mark.leaves("child process", "open descriptor", "thread")

_engines: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def dask_clusters() -> Iterator[None]:
    """Local clusters of two and four processes."""
    with contextlib.ExitStack() as stack:
        for count in (2, 4):
            address = stack.enter_context(dask_cluster(count))
            _engines[f"dask {count}"] = stack.enter_context(distributed.Client(address))
        yield


class TestDaskOfTwo(ContextConformance):
    """On a local Dask cluster."""

    def make_context(self) -> ndshare.MapContext:
        """Two processes."""
        return ndshare.ClusterContext(_engines["dask 2"])


class TestDaskOfFour(ContextConformance):
    """On a local Dask cluster, through its own executor interface."""

    def make_context(self) -> ndshare.MapContext:
        """Four processes."""
        return ndshare.ClusterContext(_engines["dask 4"])
