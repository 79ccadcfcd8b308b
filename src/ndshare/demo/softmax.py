"""The model of ``ndshare demo sgd``: softmax regression, its gradient, its accuracy."""

from __future__ import annotations

import numpy as np

from ndshare.demo.digits import CLASSES, Digits
from ndshare.demo.ridge import Floats, Ints


def weights(pixels: int) -> Floats:
    """Return the weights to begin with: one column per class, one row per pixel and one for the bias."""
    return np.zeros((pixels + 1, CLASSES))


def scores(parameters: Floats, images: Floats) -> Floats:
    """Return the probability of each class for each image, shape (n, classes)."""
    values = images @ parameters[:-1] + parameters[-1]
    values -= values.max(axis=1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    return np.asarray(values)


def gradient(parameters: Floats, images: Floats, labels: Ints) -> Floats:
    """Return the gradient of the mean cross-entropy of a batch, shape of the weights."""
    errors = scores(parameters, images)
    errors[np.arange(len(labels)), labels] -= 1.0
    errors /= len(labels)
    return np.concatenate((images.T @ errors, errors.sum(axis=0, keepdims=True)))


def accuracy(parameters: Floats, digits: Digits) -> float:
    """Return the fraction of images whose most probable class is right."""
    return float(np.mean(scores(parameters, digits.images).argmax(axis=1) == digits.labels))
