"""The search: one function on every grid point, by a loop or by the workers of an executor."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from ndshare.demo.ridge import Floats, Ints, Score, cross_validate

BLAS_THREADS = 1  # in both runs: otherwise the serial one uses the cores as well, and rounds differently


class _Bar(tqdm):  # type: ignore[misc]  # tqdm comes without types
    """A progress bar without tqdm's monitor thread, which would outlive the bar."""

    monitor_interval = 0


@dataclass(frozen=True)
class Grid:
    """The models to compare.

    Parameters
    ----------
    bandwidths, ridges
        The values of the two parameters, ascending.
    folds
        Number of parts for cross-validation.
    """

    bandwidths: Floats
    ridges: Floats
    folds: int

    @classmethod
    def make(cls, quick: bool) -> Grid:
        """Return the grid of the demo: bandwidths in steps of the square root of 2, decades of ridges."""
        bandwidths: Floats = np.exp2(np.arange(-1.5, 4.0, 0.5))
        ridges: Floats = np.power(10.0, np.arange(-8, 3))
        return cls(bandwidths, ridges[::2], 3) if quick else cls(bandwidths, ridges, 5)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (ridges) and columns (bandwidths)."""
        return len(self.ridges), len(self.bandwidths)

    def points(self) -> list[tuple[float, float]]:
        """Return every ``(bandwidth, ridge)``, row by row."""
        return [(float(width), float(ridge)) for ridge in self.ridges for width in self.bandwidths]


@dataclass(frozen=True)
class Search:
    """What a run over the grid found.

    Parameters
    ----------
    errors
        Cross-validation error of each model, shape of the grid.
    losses
        Loss of each model and fold, shape of the grid and one axis more.
    seconds
        Wall-clock time, start and end of the workers included.
    """

    errors: Floats
    losses: Floats
    seconds: float

    def equals(self, other: Search) -> bool:
        """Tell whether every number of the two is the same to the last bit."""
        return (
            self.errors.tobytes() == other.errors.tobytes()
            and self.losses.tobytes() == other.losses.tobytes()
        )

    @property
    def best(self) -> tuple[int, int]:
        """Row and column of the smallest error; among equals, that of the smallest loss."""
        order = np.lexsort((self.losses.mean(axis=2).ravel(), self.errors.ravel()))
        row, column = np.unravel_index(order[0], self.errors.shape)
        return int(row), int(column)


def _collect(grid: Grid, scores: Iterable[Score], title: str, start: float) -> Search:
    bar = _Bar(scores, total=len(grid.points()), desc=title, unit="model", ncols=78)
    found = list(bar)
    errors = np.array([score.error for score in found]).reshape(grid.shape)
    losses = np.array([score.losses for score in found]).reshape(*grid.shape, grid.folds)
    return Search(errors, losses, time.perf_counter() - start)


def _task(distances: Floats, labels: Ints, folds: Ints) -> Callable[[float, float], Score]:
    return partial(cross_validate, distances, labels, folds)


def search_serial(grid: Grid, distances: Floats, labels: Ints, folds: Ints) -> Search:
    """Evaluate the grid in this process, one model after the other."""
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    task = _task(distances, labels, folds)
    with threadpool_limits(BLAS_THREADS):
        scores: Iterator[Score] = (task(*point) for point in grid.points())
        return _collect(grid, scores, "serial  ", start)


def search_parallel(grid: Grid, distances: Floats, labels: Ints, folds: Ints, workers: int) -> Search:
    """Evaluate the grid by the workers of an executor.

    `distances` lies in shared memory: the task function that carries it goes to each worker once,
    and the matrix itself stays where it is.
    """
    from ndshare import ProcessPoolExecutor

    start = time.perf_counter()
    with ProcessPoolExecutor(workers, threads_per_worker=BLAS_THREADS) as executor:
        scores = executor.map(_task(distances, labels, folds), *zip(*grid.points(), strict=True))
        return _collect(grid, scores, "parallel", start)


def pickled_bytes(grid: Grid, distances: Floats, labels: Ints, folds: Ints) -> int:
    """Return how much a pool that pickles arguments would send for the same tasks."""
    arguments: tuple[Any, ...] = (_task(distances, labels, folds), grid.points()[0])
    return len(pickle.dumps(arguments, protocol=pickle.HIGHEST_PROTOCOL)) * len(grid.points())
