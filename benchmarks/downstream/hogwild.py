"""scikit-learn: Hogwild, logistic regression whose parameters all workers change without a lock.

The sum of what the workers do depends on who was first, so what is compared is that the classifier is as good
as it has to be.
"""

from __future__ import annotations

import multiprocessing

import common
import numpy as np
from sklearn.linear_model import SGDClassifier

if common.NDSHARE:
    import ndshare

_ROWS, _COLUMNS, _EPOCHS, _BATCH = (4_000, 50, 4, 500) if common.QUICK else (100_000, 200, 40, 1_000)
_RNG = np.random.default_rng(7)
_TRUTH = _RNG.normal(size=_COLUMNS)


def train(start: int) -> int:
    """Change the shared parameters by one batch."""
    model = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=0.01, shuffle=False)
    model.classes_ = np.array([0, 1])
    model.coef_, model.intercept_, model.t_ = COEF, INTERCEPT, 1.0
    rows = slice(start, start + _BATCH)
    model.partial_fit(X[rows], LABELS[rows])
    if not np.shares_memory(model.coef_, COEF):
        raise SystemExit("scikit-learn has made parameters of its own")
    return start


def shared(array: np.ndarray) -> np.ndarray:
    """Return the values in memory that all workers have in common."""
    if common.NDSHARE:
        return ndshare.share(array)
    memory = np.frombuffer(multiprocessing.RawArray("d", array.size))
    memory[:] = array.ravel()
    return memory.reshape(array.shape)


def learn() -> bool:
    """Tell whether the classifier is good."""
    batches = list(range(0, _ROWS, _BATCH))
    with common.pool() as pool:
        for _ in range(_EPOCHS):
            pool.map(train, batches, chunksize=4)
    right = ((X @ COEF[0] > 0) == LABELS).mean()
    return bool(right > 0.93)


if __name__ == "__main__":
    X = shared(_RNG.normal(size=(_ROWS, _COLUMNS)))
    LABELS = (X @ _TRUTH + _RNG.normal(size=_ROWS) > 0).astype(int)
    COEF, INTERCEPT = shared(np.zeros((1, _COLUMNS))), np.zeros(1)
    common.run(learn)
