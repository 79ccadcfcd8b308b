"""The conformance suite as a function, and what the scripts on hosts and under MPI share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import ndshare
from ndshare.testing import ContextConformance


def run_suite(make: Callable[[], ndshare.MapContext]) -> int:
    """Run every test of the suite; returns how many there are."""

    class Suite(ContextConformance):
        def make_context(self) -> ndshare.MapContext:
            return make()

    suite = Suite()
    names = [name for name in sorted(dir(suite)) if name.startswith("test_")]
    for name in names:
        getattr(suite, name)()
    return len(names)


def check_workspace(engine: Any) -> None:
    """Have a workspace on an engine change its values."""
    with ndshare.Workspace({"a": np.arange(10.0)}, engine=engine) as ws:

        @ws.register
        def change(index: int) -> int:
            a[index] += 1  # type: ignore[name-defined]  # noqa: F821 - a value of the workspace
            return index

        change(3)
        assert ws.evaluate() == [3]
        assert ws["a"][3] == 4


if __name__ == "__main__":  # mpiexec -n 3 python -m mpi4py.futures cluster_suite.py
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as executor:
        print(run_suite(lambda: ndshare.ClusterContext(executor)), "passed", flush=True)
