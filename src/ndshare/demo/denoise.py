"""The work on one tile: non-local means, and two numbers that say how good a tile is.

A pixel becomes the mean of the pixels around it, each weighted by how much its neighbourhood looks like
that of the pixel itself: edges stay, noise goes.

References
----------
Buades, Coll, Morel: "A non-local algorithm for image denoising", CVPR 2005.
"""

from __future__ import annotations

import numpy as np

from ndshare.demo.tiles import Pixels

_REACH = 6  # pixels: how far away a similar neighbourhood is looked for
_PATCH = 1  # pixels: neighbourhoods are 3 x 3
_SOFTNESS = 0.8  # in units of the noise: the smaller, the more noise and detail stay

MARGIN = _REACH + _PATCH
"""How many pixels around a tile `denoise` looks at."""


def denoise(tile: Pixels, sigma: float) -> Pixels:
    """Return a tile without most of its noise.

    Parameters
    ----------
    tile
        Shape (height + 2 `MARGIN`, width + 2 `MARGIN`, colours).
    sigma
        Standard deviation of the noise.

    Returns
    -------
    clean
        Shape (height, width, colours).
    """
    height, width = tile.shape[0] - 2 * MARGIN, tile.shape[1] - 2 * MARGIN
    tall, wide = height + 2 * _PATCH, width + 2 * _PATCH
    own = tile[_REACH : _REACH + tall, _REACH : _REACH + wide]
    total: Pixels = np.zeros((height, width, tile.shape[2]), tile.dtype)
    weights = np.zeros((height, width, 1), tile.dtype)
    per_patch = (2 * _PATCH + 1) ** 2 * tile.shape[2]
    expected = 2 * sigma**2  # mean squared difference of two equal pixels: both have noise
    for down in range(2 * _REACH + 1):
        for right in range(2 * _REACH + 1):
            other = tile[down : down + tall, right : right + wide]
            difference = own - other
            squares = _patch_sums(np.einsum("ijk,ijk->ij", difference, difference))
            squares /= per_patch
            squares -= expected
            np.maximum(squares, 0.0, out=squares)
            squares *= -1.0 / (_SOFTNESS * sigma) ** 2
            weight = np.exp(squares, out=squares)[..., None]
            weights += weight
            total += weight * other[_PATCH : _PATCH + height, _PATCH : _PATCH + width]
    total /= weights
    return total


def _patch_sums(values: Pixels) -> Pixels:
    """Return the sum over the neighbourhood of each value that has a whole one."""
    rows = values[:-2] + values[1:-1] + values[2:]
    sums: Pixels = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return sums


def psnr(tile: Pixels, original: Pixels) -> float:
    """Return the peak signal-to-noise ratio in decibels; white is 1."""
    return float(-10 * np.log10(np.mean((tile - original) ** 2, dtype=np.float64)))


def sharpness(tile: Pixels) -> float:
    """Return the root mean square of the Laplacian of the brightness: large at edges, larger with noise."""
    grey = tile.mean(axis=2, dtype=np.float64)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.sqrt(np.mean((around - 4 * grey[1:-1, 1:-1]) ** 2)))
