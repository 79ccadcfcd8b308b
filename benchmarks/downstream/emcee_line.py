"""emcee: a line with outliers, sampled with a pool of processes."""

from __future__ import annotations

import common
import emcee
import numpy as np

_WALKERS, _STEPS, _POINTS = (16, 20, 1_000) if common.QUICK else (32, 600, 20_000)
_RNG = np.random.default_rng(3)
X = np.sort(_RNG.random(_POINTS) * 10)
Y = 2.5 * X + 1 + _RNG.normal(size=_POINTS) * np.where(_RNG.random(_POINTS) < 0.1, 10, 1)


def log_probability(theta: np.ndarray) -> float:
    """Return how likely a slope, an offset and a share of outliers are."""
    slope, offset, share = theta
    if not 0 < share < 1:
        return -np.inf
    residual = Y - slope * X - offset
    inner = (1 - share) * np.exp(-0.5 * residual**2)
    outer = share / 10 * np.exp(-0.005 * residual**2)
    return float(np.log(inner + outer + 1e-300).sum())


def sample() -> np.ndarray:
    """Return the chain."""
    start = np.array([2.5, 1.0, 0.2]) + 1e-2 * np.random.default_rng(4).normal(size=(_WALKERS, 3))
    with common.pool() as pool:
        sampler = emcee.EnsembleSampler(_WALKERS, 3, log_probability, pool=pool)
        sampler.random_state = np.random.RandomState(5).get_state()
        sampler.run_mcmc(start, _STEPS)
        return sampler.get_chain()


if __name__ == "__main__":
    common.run(sample)
