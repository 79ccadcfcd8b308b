"""The data: two photographs that scikit-learn ships, noise of known strength, and square tiles of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]

SIZE = 32  # pixels along an edge of a tile
NOISE = 0.1  # standard deviation; white is 1
_SEED = 8  # the noise is the same on every machine
_QUICK = (4, 6)  # tiles of each photograph, rows and columns


def load(quick: bool) -> tuple[list[str], Pixels]:
    """Return names and pixels of the photographs.

    Parameters
    ----------
    quick
        Only the middle of each.

    Returns
    -------
    names
        Of the files.
    pictures
        Values between 0 and 1, shape (n, height, width, 3); height and width are multiples of `SIZE`.
    """
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    pictures = np.stack(bunch.images).astype(np.float32) / np.float32(255)
    rows, columns = _QUICK if quick else (pictures.shape[1] // SIZE, pictures.shape[2] // SIZE)
    top = (pictures.shape[1] - rows * SIZE) // 2
    left = (pictures.shape[2] - columns * SIZE) // 2
    names = [name.replace("\\", "/").rpartition("/")[2] for name in bunch.filenames]
    return names, pictures[:, top : top + rows * SIZE, left : left + columns * SIZE]


def add_noise(pictures: Pixels) -> Pixels:
    """Return the pictures with Gaussian noise of standard deviation `NOISE` on every value."""
    rng = np.random.default_rng(_SEED)
    noise = rng.standard_normal(pictures.shape, dtype=np.float32)
    noise *= np.float32(NOISE)
    noise += pictures
    return noise


def cut(pictures: Pixels, margin: int = 0) -> Pixels:
    """Return the tiles of all pictures, row by row.

    Parameters
    ----------
    pictures
        Shape (n, height, width, 3).
    margin
        How many pixels around a tile are to be seen as well; pictures go on as in a mirror.

    Returns
    -------
    tiles
        A copy, shape (tiles, `SIZE` + 2 margin, `SIZE` + 2 margin, 3).
    """
    edge = SIZE + 2 * margin
    padded = np.pad(pictures, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (edge, edge), axis=(1, 2))
    return np.moveaxis(windows[:, ::SIZE, ::SIZE], 3, -1).reshape(-1, edge, edge, 3)


def join(tiles: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Return the pictures of this shape that `cut` has cut, without margin, into these tiles."""
    count, height, width, colours = shape
    grid = tiles.reshape(count, height // SIZE, width // SIZE, SIZE, SIZE, colours)
    return grid.swapaxes(2, 3).reshape(shape)
