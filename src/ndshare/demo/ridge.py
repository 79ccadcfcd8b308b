"""The model: kernel ridge regression onto one column per digit, largest column wins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def squared_distances(a: Floats, b: Floats, out: Floats | None = None) -> Floats:
    """Return the squared Euclidean distance of each row of `a` to each row of `b`.

    Parameters
    ----------
    a, b
        Points, shapes (n, d) and (m, d).
    out
        Where to write the result, shape (n, m).
    """
    out = np.matmul(a, b.T, out=out)
    out *= -2.0
    out += (a**2).sum(axis=1)[:, None]
    out += (b**2).sum(axis=1)
    return np.maximum(out, 0.0, out=out)  # rounding may leave a small negative number


def kernel(distances: Floats, bandwidth: float) -> Floats:
    """Return the Gaussian kernel of squared distances."""
    values = distances / (-2.0 * bandwidth**2)
    return np.exp(values, out=values)


def targets(labels: Ints, classes: int) -> Floats:
    """Return one row per label: 1 in the column of its class, -1 elsewhere."""
    return np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)


def fit(gram: Floats, wanted: Floats, ridge: float) -> Floats:
    """Return the coefficients, shape (n, classes), for a kernel matrix, which is overwritten."""
    gram[np.diag_indices_from(gram)] += ridge
    return np.asarray(cho_solve(cho_factor(gram, lower=True, overwrite_a=True, check_finite=False), wanted))


@dataclass(frozen=True)
class Score:
    """How well one model did on each fold.

    Parameters
    ----------
    wrong
        Number of wrong labels per fold.
    total
        Number of labels in all folds.
    losses
        Mean squared distance to the targets per fold: unlike a count, it shows the last bit.
    """

    wrong: Ints
    total: int
    losses: Floats

    @property
    def error(self) -> float:
        """Fraction of wrong labels."""
        return float(self.wrong.sum() / self.total)


def cross_validate(distances: Floats, labels: Ints, folds: Ints, bandwidth: float, ridge: float) -> Score:
    """Fit without each fold in turn and test on it.

    Parameters
    ----------
    distances
        Squared distances between all samples, shape (n, n). Only read.
    labels, folds
        Class and fold of each sample, shape (n,).
    bandwidth
        Standard deviation of the Gaussian kernel, in units of pixels.
    ridge
        Regularisation, added to the diagonal of the kernel matrix.
    """
    wrong, losses = [], []
    wanted = targets(labels, int(labels.max()) + 1)
    for fold in range(int(folds.max()) + 1):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        coefficients = fit(kernel(distances[np.ix_(seen, seen)], bandwidth), wanted[seen], ridge)
        found = kernel(distances[np.ix_(unseen, seen)], bandwidth) @ coefficients
        wrong.append(np.count_nonzero(found.argmax(axis=1) != labels[unseen]))
        losses.append(np.mean((found - wanted[unseen]) ** 2))
    return Score(np.array(wrong), len(labels), np.array(losses))
