"""What the camera of the demo sees: two photographs, enlarged, and the way the camera moves over them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ndshare.demo import tiles

Grey = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

STEP = 8  # pixels: the camera moves in multiples of it, and the tracker looks at every so many
_EDGE, _QUICK_EDGE = 3000, 600
_TRAVEL, _QUICK_TRAVEL = 400, 160  # pixels the camera moves about


class Scene(NamedTuple):
    """What there is to be seen.

    Attributes
    ----------
    pixels
        Grey values between 0 and 1, shape (edge + travel, edge + travel).
    edge
        Pixels along an edge of a frame.
    """

    pixels: Grey
    edge: int

    @property
    def travel(self) -> int:
        """Pixels the camera moves about, in each direction."""
        return len(self.pixels) - self.edge

    def frame(self, place: npt.NDArray[np.int64], out: Grey) -> None:
        """Write what the camera sees at a place (row and column of its upper left corner)."""
        row, column = place
        np.copyto(out, self.pixels[row : row + self.edge, column : column + self.edge])


def make(quick: bool) -> Scene:
    """Return the scene: two photographs, one above the other, enlarged to the size of a modern sensor."""
    edge, travel = (_QUICK_EDGE, _QUICK_TRAVEL) if quick else (_EDGE, _TRAVEL)
    _, pictures = tiles.load(quick=False)
    grey = np.concatenate(list(pictures.mean(axis=-1, dtype=np.float32)))
    size = edge + travel
    rows, columns = (np.arange(size) * n // size for n in grey.shape)
    return Scene(np.ascontiguousarray(grey[rows[:, None], columns]), edge)


def path(scene: Scene, frames: int) -> Places:
    """Return where the camera is at each frame, shape (frames, 2): a Lissajous figure in steps of `STEP`."""
    angle = 2 * np.pi * np.arange(frames) / frames
    curve = 0.5 + 0.5 * np.stack([np.sin(3 * angle), np.sin(4 * angle)], axis=1)
    return (np.rint(curve * (scene.travel // STEP)) * STEP).astype(np.int64)


class Finder:
    """Finds where in the scene a frame was taken: the maximum of the normalised correlation of thumbnails.

    Parameters
    ----------
    scene
        What the camera moves over.
    """

    def __init__(self, scene: Scene) -> None:
        small = scene.pixels[::STEP, ::STEP].astype(np.float64)
        self._shape = small.shape
        self._spectrum = np.fft.rfft2(small - small.mean())
        edge = len(range(0, scene.edge, STEP))
        self._places = small.shape[0] - edge + 1
        total = np.pad(np.cumsum(np.cumsum((small - small.mean()) ** 2, axis=0), axis=1), ((1, 0), (1, 0)))
        window = total[edge:, edge:] - total[:-edge, edge:] - total[edge:, :-edge] + total[:-edge, :-edge]
        self._norm = np.sqrt(window)
        self._mean = small.mean()

    def find(self, frame: Grey) -> tuple[int, int]:
        """Return row and column of the upper left corner of a frame."""
        small = frame[::STEP, ::STEP].astype(np.float64) - self._mean
        spectrum = np.conj(np.fft.rfft2(small, self._shape))
        score = np.fft.irfft2(self._spectrum * spectrum, self._shape)[: self._places, : self._places]
        row, column = np.unravel_index(np.argmax(score / self._norm), score.shape)
        return int(row) * STEP, int(column) * STEP
