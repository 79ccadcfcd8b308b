"""A cluster context passes the conformance suite on Ray, and outlives workers of Ray's that are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import ndshare
from ndshare.testing import ContextConformance
from tests.cluster.cluster_suite import check_workspace

ray = pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = [
    pytest.mark.once,
    pytest.mark.leaves("child process", "open descriptor", "thread", "/dev/shm entry", "mapping of a memfd"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """Two processes of Ray's on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class TestRay(ContextConformance):
    """On Ray's workers."""

    def make_context(self) -> ndshare.MapContext:
        """Two tasks at a time."""
        return ndshare.ClusterContext("ray")


def test_module_is_an_engine_as_its_name_is() -> None:
    """And what is no address of Ray's is asked of Dask, as before."""
    with ndshare.ClusterExecutor(ray) as executor:
        assert executor.submit(pow, 2, 5).result(60) == 32


def test_error_of_a_call_is_that_of_the_call() -> None:
    """Not one of Ray's."""
    with ndshare.ClusterExecutor("ray") as executor, pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0).result(60)


def test_killed_worker_of_ray_costs_nothing() -> None:
    """Its share runs again; each item counts once."""
    context = ndshare.ClusterContext("ray")
    out = context.alloc(40, fill=0)
    pids = context.alloc(40, dtype=np.int64)

    def kernel(_worker: int, index: int, _value: int) -> None:
        time.sleep(0.05)
        out[index] += 1
        pids[index] = os.getppid()

    found: list[int] = []

    def kill() -> None:
        time.sleep(0.8)
        for entry in os.listdir("/proc"):
            try:
                with open(f"/proc/{entry}/cmdline") as file:
                    name = file.read()
            except OSError:
                continue
            if name.startswith("ray::_run_on_ray"):
                os.kill(int(entry), signal.SIGKILL)
                found.append(int(entry))
                return

    killer = threading.Thread(target=kill)
    killer.start()
    context.map(kernel, range(40))
    killer.join()
    assert found
    assert np.array_equal(out, np.ones(40))


def test_workspace_on_ray() -> None:
    """The values go there once, and what calls have changed comes back."""
    check_workspace("ray")
