"""A map over all tiles, in any context: results are written in place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ndshare import MapContext, MapReport
from ndshare._system import Bar
from ndshare.demo.denoise import MARGIN, denoise, psnr, sharpness
from ndshare.demo.tiles import Pixels

MARKS = ("PSNR noisy", "PSNR denoised", "sharpness original", "sharpness noisy", "sharpness denoised")
"""What is measured of each tile: decibels, and brightness per pixel squared."""


@dataclass(frozen=True)
class Cleaned:
    """What a map over the tiles made.

    Parameters
    ----------
    tiles
        Without noise, shape (n, height, width, 3).
    marks
        Shape (n, `MARKS`).
    report
        Of the map.
    """

    tiles: Pixels
    marks: npt.NDArray[np.float64]
    report: MapReport

    def equals(self, other: Cleaned) -> bool:
        """Tell whether every number of the two is the same to the last bit."""
        return self.tiles.tobytes() == other.tiles.tobytes() and self.marks.tobytes() == other.marks.tobytes()


def clean(context: MapContext, noisy: Pixels, original: Pixels, sigma: float, title: str) -> Cleaned:
    """Denoise and measure each tile.

    Parameters
    ----------
    context
        Where: serially, in threads or in processes. The rest is the same.
    noisy
        Tiles with a margin of `MARGIN` pixels.
    original
        The same tiles without margin and noise.
    sigma
        Standard deviation of the noise.
    title
        Of the progress bar.
    """
    tiles = context.alloc(like=original)
    marks = context.alloc((len(original), len(MARKS)))

    def kernel(_worker_id: int, index: int, tile: Pixels) -> None:
        seen, wanted = tile[MARGIN:-MARGIN, MARGIN:-MARGIN], original[index]
        tiles[index] = denoise(tile, sigma)
        marks[index] = (
            psnr(seen, wanted),
            psnr(tiles[index], wanted),
            sharpness(wanted),
            sharpness(seen),
            sharpness(tiles[index]),
        )

    report = context.map(kernel, noisy, progress=Bar(title))
    return Cleaned(tiles, marks, report)
