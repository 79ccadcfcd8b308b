"""The example of contextshare: one linear system per width of a Gaussian kernel, here for real digits."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from ndshare.demo.digits import CLASSES, Digits
from ndshare.demo.grid import BLAS_THREADS
from ndshare.demo.ridge import Floats, Ints, kernel, squared_distances, targets

_RIDGE = 1e-6  # the digits repeat themselves nearly: without it wide kernels are singular


@dataclass(frozen=True)
class Fit:
    """The model of one width.

    Parameters
    ----------
    alphas
        Coefficients, shape (n, classes).
    left_out
        What the model says about each digit if that one is left out, shape (n, classes).
    pid, start, end
        Which process made it, and when, in seconds of the clock that all processes share.
    """

    alphas: Floats
    left_out: Floats
    pid: int
    start: float
    end: float


@dataclass(frozen=True)
class Run:
    """All widths, one after the other or by the workers of a workspace.

    Parameters
    ----------
    fits
        One per width.
    start, seconds
        When it began, and how long it took, start and end of the workers included.
    """

    fits: list[Fit]
    start: float
    seconds: float

    def equals(self, other: Run) -> list[bool]:
        """Tell for each width whether every number of the two is the same to the last bit."""
        return [
            one.alphas.tobytes() == two.alphas.tobytes() and one.left_out.tobytes() == two.left_out.tobytes()
            for one, two in zip(self.fits, other.fits, strict=True)
        ]


def widths(quick: bool) -> Floats:
    """Return the widths of the demo, in units of pixels."""
    found: Floats = np.exp2(np.arange(-2.0, 5.0, 1.0 if quick else 0.5))
    return found


def system(train: Digits) -> tuple[Floats, Floats]:
    """Return the two arrays of all systems: squared distances between digits, and what is wanted."""
    return squared_distances(train.images, train.images), targets(train.labels, CLASSES)


def fit(D: Floats, b: Floats, sigma: float) -> Fit:  # noqa: N803  -- the names of the example
    """Solve the system of one width; say how well it does on digits that it has not seen."""
    start = time.monotonic()
    K = np.exp(-0.5 * D / (sigma * sigma))  # noqa: N806
    K[np.diag_indices_from(K)] += _RIDGE
    alphas = np.asarray(np.linalg.solve(K, b), np.float64)
    left_out: Floats = b - alphas / np.diagonal(np.linalg.inv(K))[:, None]
    return Fit(alphas, left_out, os.getpid(), start, time.monotonic())


def serial(D: Floats, b: Floats, sigmas: Floats) -> Run:  # noqa: N803
    """Fit one width after the other, in this process."""
    from threadpoolctl import threadpool_limits

    start = time.monotonic()
    with threadpool_limits(BLAS_THREADS):
        fits = [fit(D, b, float(sigma)) for sigma in sigmas]
    return Run(fits, start, time.monotonic() - start)


def parallel(D: Floats, b: Floats, sigmas: Floats, workers: int) -> Run:  # noqa: N803
    """Fit all widths in the workers of a workspace: `D` and `b` are there by name, in shared memory."""
    from ndshare import Workspace

    start = time.monotonic()
    with Workspace({"D": D, "b": b}, workers, threads_per_worker=BLAS_THREADS) as ws:

        @ws.register
        def one_sigma(sigma: float) -> Fit:
            return fit(D, b, sigma)

        for sigma in sigmas:
            one_sigma(float(sigma))
        fits = ws.evaluate(progress=True)
    return Run(fits, start, time.monotonic() - start)


def wrong(answers: Floats, labels: Ints) -> int:
    """Return how many digits are taken for others; `answers` has a column per class."""
    return int(np.count_nonzero(answers.argmax(axis=1) != labels))


def answers(one: Fit, sigma: float, train: Digits, others: Digits) -> Floats:
    """Return what a model says about digits."""
    return kernel(squared_distances(others.images, train.images), sigma) @ one.alphas
