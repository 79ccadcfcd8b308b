"""pasha: azimuthal integration of AGIPD trains, batch after batch, as an online analysis has them."""

from __future__ import annotations

import common
import numpy as np

common.install("pasha")
import pasha as psh  # which of the two has just been said

_MODULES = (16, 512, 128)
_TRAINS, _PULSES, _BATCHES, _RINGS = (4, 2, 2, 200) if common.QUICK else (12, 8, 14, 500)


def rings() -> np.ndarray:
    """Return the ring of each pixel, as if the modules were one plane of 1024 by 1024."""
    y, x = np.mgrid[:1024, :1024] - 511.5
    radius = np.hypot(x, y)
    return (radius / radius.max() * (_RINGS - 1)).astype(np.intp).reshape(_MODULES)


def integrate(batches: list[np.ndarray], ring: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Return the mean of each ring, for each pulse of each train of each batch."""
    psh.set_default_context("processes", num_workers=common.WORKERS)
    used = ring[mask]
    counts = np.bincount(used, minlength=_RINGS).clip(1)
    results = []
    for data in batches:
        profiles = psh.alloc(shape=(_TRAINS, _PULSES, _RINGS), dtype=np.float64)

        def integrate_train(worker_id: int, index: int, train: np.ndarray, profiles=profiles) -> None:
            for pulse, frame in enumerate(train):
                sums = np.bincount(used, weights=frame[mask], minlength=_RINGS)
                profiles[index, pulse] = sums / counts

        psh.map(integrate_train, data)
        results.append(profiles.mean(axis=(0, 1)))
    return results


if __name__ == "__main__":
    RNG = np.random.default_rng(2)
    MASK = RNG.random(_MODULES) > 0.02
    TRAINS = RNG.integers(0, 2**14, (_TRAINS, _PULSES, *_MODULES), np.uint16)
    BATCHES = [np.roll(TRAINS, shift, axis=0) for shift in range(2)] * (_BATCHES // 2)
    common.run(lambda: integrate(BATCHES, rings(), MASK))
