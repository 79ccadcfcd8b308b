"""The data: 1,797 handwritten digits of 8 x 8 pixels, as scikit-learn ships them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CLASSES = 10
_HELD_OUT = 0.2  # fraction that no model sees before the end
_SEED = 8  # the split is the same on every machine


@dataclass(frozen=True)
class Digits:
    """Images and their labels.

    Parameters
    ----------
    images
        Pixels between 0 and 1, float64, shape (n, 64).
    labels
        The digit of each image, int64, shape (n,).
    """

    images: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def load() -> tuple[Digits, Digits]:
    """Return the digits to learn from and the digits held out for the final test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(_SEED).permutation(len(bunch.target))
    images = bunch.data[order] / 16.0
    labels = bunch.target[order].astype(np.int64)
    cut = round(_HELD_OUT * len(labels))
    return Digits(images[cut:], labels[cut:]), Digits(images[:cut], labels[:cut])


def fold_numbers(n: int, folds: int) -> npt.NDArray[np.int64]:
    """Return the fold of each of `n` samples: they are in random order, so folds may alternate."""
    return np.arange(n) % folds
