"""Where a workspace's calls run: in workers of this machine, or on a cluster; a fixture that does both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ndshare
from tests.cluster.engine_processes import Processes

# The nodes of an engine keep their workers warm from test to test.
ON_A_CLUSTER = pytest.mark.leaves("child process", "open descriptor", "thread")


@pytest.fixture(name="engine", scope="module")
def two_processes() -> Iterator[Processes]:
    """Two processes in place of a cluster."""
    with Processes(2) as engine:
        yield engine


@pytest.fixture(name="workspace", params=["here", pytest.param("cluster", marks=ON_A_CLUSTER)])
def make_workspace(request: pytest.FixtureRequest) -> Callable[..., ndshare.Workspace]:
    """Return what makes a workspace, with the arguments of `ndshare.Workspace`."""
    if request.param == "here":
        return ndshare.Workspace
    engine = request.getfixturevalue("engine")

    def make(values: Any, _num_workers: int | None = None, **options: Any) -> ndshare.Workspace:
        return ndshare.Workspace(values, engine=engine, **options)

    return make
