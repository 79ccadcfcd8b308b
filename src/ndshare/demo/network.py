"""The model of ``ndshare demo sgd``: a network with one hidden layer, its gradient, its accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # learners start the sooner without what these need
    from ndshare.demo.digits import Digits
    from ndshare.demo.ridge import Floats, Ints

CLASSES = 10
HIDDEN = 512


def weights(pixels: int, seed: int = 1) -> tuple[Floats, Floats]:
    """Return the weights to begin with: of the hidden and of the output layer; their last rows are biases."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(scale=(2 / pixels) ** 0.5, size=(pixels + 1, HIDDEN))
    output = rng.normal(scale=(1 / HIDDEN) ** 0.5, size=(HIDDEN + 1, CLASSES))
    hidden[-1] = output[-1] = 0.0
    return hidden, output


def scores(hidden: Floats, output: Floats, images: Floats) -> tuple[Floats, Floats]:
    """Return the probability of each class for each image, shape (n, classes), and the hidden values."""
    inner = np.maximum(images @ hidden[:-1] + hidden[-1], 0.0)
    values = inner @ output[:-1] + output[-1]
    values -= values.max(axis=1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    return values, inner


def gradient(hidden: Floats, output: Floats, images: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """Return the gradient of the mean cross-entropy of a batch, in the shapes of the weights."""
    errors, inner = scores(hidden, output, images)
    errors[np.arange(len(labels)), labels] -= 1.0
    errors /= len(labels)
    back = (errors @ output[:-1].T) * (inner > 0)
    return (
        np.concatenate((images.T @ back, back.sum(axis=0, keepdims=True))),
        np.concatenate((inner.T @ errors, errors.sum(axis=0, keepdims=True))),
    )


def accuracy(hidden: Floats, output: Floats, digits: Digits) -> float:
    """Return the fraction of images whose most probable class is right."""
    values, _ = scores(hidden, output, digits.images)
    return float(np.mean(values.argmax(axis=1) == digits.labels))
