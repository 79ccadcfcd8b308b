"""Libraries that take a pool get an `ndshare.Pool`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ndshare

# They warn of their own and of NumPy's ways.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def pool() -> Iterator[ndshare.Pool]:
    """Return a pool of two workers."""
    with ndshare.Pool(2) as pool:
        yield pool
    pool.join()


def _bowl(point: Any) -> float:
    return float(np.sum((np.asarray(point) - 0.5) ** 2))


def _log_gauss(point: Any) -> float:
    return -0.5 * float(np.sum(np.square(point)))


def _stretch(cube: Any) -> Any:
    return 10 * np.asarray(cube) - 5


def test_scipy_minimizes_with_the_map_of_a_pool(pool: ndshare.Pool) -> None:
    """The same as in one process."""
    optimize = pytest.importorskip("scipy.optimize")
    arguments: dict[str, Any] = {"updating": "deferred", "seed": 1, "maxiter": 8, "polish": False}
    alone = optimize.differential_evolution(_bowl, [(-2, 2)] * 3, **arguments)
    found = optimize.differential_evolution(_bowl, [(-2, 2)] * 3, workers=pool.map, **arguments)
    assert np.array_equal(found.x, alone.x)


def test_emcee_samples_with_a_pool(pool: ndshare.Pool) -> None:
    """The same chain as in one process."""
    emcee = pytest.importorskip("emcee")
    start = np.random.default_rng(1).normal(size=(8, 2))
    chains = []
    for workers in (None, pool):
        sampler = emcee.EnsembleSampler(8, 2, _log_gauss, pool=workers)
        sampler.random_state = np.random.RandomState(2).get_state()
        sampler.run_mcmc(start, 12)
        chains.append(sampler.get_chain())
    assert np.array_equal(*chains)


def test_dynesty_finds_the_size_of_a_pool(pool: ndshare.Pool) -> None:
    """And samples with it."""
    dynesty = pytest.importorskip("dynesty")
    sampler = dynesty.NestedSampler(
        _log_gauss, _stretch, 2, nlive=30, pool=pool, rstate=np.random.default_rng(3)
    )
    assert sampler.queue_size == 2
    sampler.run_nested(maxiter=60, print_progress=False)
    assert sampler.results.niter >= 60


def test_pymoo_evaluates_with_the_starmap_of_a_pool(pool: ndshare.Pool) -> None:
    """One call for each individual of a generation."""
    pytest.importorskip("pymoo")
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize
    from pymoo.parallelization.starmap import StarmapParallelization

    class Bowl(ElementwiseProblem):  # type: ignore[misc]  # of no known type
        def __init__(self, **options: Any) -> None:
            super().__init__(n_var=2, n_obj=1, xl=-2, xu=2, **options)

        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            out["F"] = _bowl(x)

    problem = Bowl(elementwise_runner=StarmapParallelization(pool.starmap))
    found = minimize(problem, GA(pop_size=10), ("n_gen", 4), seed=1)
    assert found.F[0] < 1


def test_schwimmbad_s_code_finds_what_it_asks_a_pool_for(pool: ndshare.Pool) -> None:
    """Its pools have `size` and `map`; so has this one."""
    utils = pytest.importorskip("schwimmbad.utils")
    batches = utils.batch_tasks(pool.size, n_tasks=10)
    assert sorted(pool.map(_length, batches)) == [5, 5]


def _length(batch: Any) -> int:
    first, *rest = batch  # (start, stop) in some versions, with the index of the batch in all
    start, stop = first if isinstance(first, tuple) else (first, rest[0])
    return int(stop - start)
