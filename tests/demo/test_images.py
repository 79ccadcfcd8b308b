"""The demo with photographs: tiles, noise, the filter, and the whole of it as a user starts it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import ndshare
from ndshare.demo import denoise, images, tiles
from ndshare.demo.cleaning import MARKS, Cleaned, clean

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """Return the middle of both photographs."""
    return tiles.load(quick=True)[1]


def test_photographs_are_cut_to_whole_tiles() -> None:
    """Both photographs are there, by name, and nothing is left over at their edges."""
    for quick in (True, False):
        names, pictures = tiles.load(quick)
        assert names == ["china.jpg", "flower.jpg"]
        assert pictures.shape[1] % tiles.SIZE == pictures.shape[2] % tiles.SIZE == 0
        assert pictures.dtype == np.float32
        assert 0 <= pictures.min() < pictures.max() <= 1


def test_join_undoes_cut(photographs) -> None:
    """Tiles without margin, put together, are the pictures."""
    np.testing.assert_array_equal(tiles.join(tiles.cut(photographs), photographs.shape), photographs)


def test_margin_shows_the_neighbours(photographs) -> None:
    """The margin of a tile is what lies around it; outside the picture it is its mirror image."""
    margin = 3
    size = tiles.SIZE
    stack = tiles.cut(photographs, margin)
    np.testing.assert_array_equal(stack[:, margin:-margin, margin:-margin], tiles.cut(photographs))
    columns = photographs.shape[2] // size
    inner = photographs[0, size - margin : 2 * size + margin, size - margin : 2 * size + margin]
    np.testing.assert_array_equal(stack[columns + 1], inner)
    np.testing.assert_array_equal(stack[0, margin - 1], stack[0, margin + 1])


def test_noise_is_as_announced_and_the_same_every_time(photographs) -> None:
    """The noise has the standard deviation that the filter is told, and never changes."""
    noisy = tiles.add_noise(photographs)
    assert (noisy - photographs).std() == pytest.approx(tiles.NOISE, rel=0.01)
    np.testing.assert_array_equal(noisy, tiles.add_noise(photographs))


def test_denoise_matches_the_definition() -> None:
    """The filter is the weighted mean of Buades, Coll and Morel, pixel by pixel."""
    rng = np.random.default_rng(3)
    sigma, margin, height, width = 0.1, denoise.MARGIN, 3, 2
    tile = rng.random((height + 2 * margin, width + 2 * margin, 3)).astype(np.float32) * 0.3
    found = denoise.denoise(tile, sigma)
    assert found.shape == (height, width, 3)
    patch, reach = 1, margin - 1
    for row, column in np.ndindex(height, width):
        y, x = row + margin, column + margin
        own = tile[y - patch : y + patch + 1, x - patch : x + patch + 1]
        total, weights = np.zeros(3), 0.0
        for v in range(y - reach, y + reach + 1):
            for u in range(x - reach, x + reach + 1):
                other = tile[v - patch : v + patch + 1, u - patch : u + patch + 1]
                distance = max(float(np.mean((own - other) ** 2)) - 2 * sigma**2, 0.0)
                weight = np.exp(-distance / (0.8 * sigma) ** 2)
                total += weight * tile[v, u]
                weights += weight
        np.testing.assert_allclose(found[row, column], total / weights, rtol=1e-4)


def test_measures_of_known_pictures() -> None:
    """Ten per cent off everywhere is 20 dB; a plane has no sharpness, a checkerboard has much."""
    flat = np.full((8, 8, 3), 0.5, np.float32)
    assert denoise.psnr(flat + np.float32(0.1), flat) == pytest.approx(20.0, abs=1e-4)
    ramp = np.repeat(np.linspace(0, 1, 8, dtype=np.float32)[:, None, None], 8, axis=1) + np.zeros(3)
    assert denoise.sharpness(ramp) == pytest.approx(0.0, abs=1e-6)
    board = np.indices((8, 8)).sum(axis=0) % 2
    assert denoise.sharpness(np.repeat(board[..., None], 3, axis=2)) == pytest.approx(4.0)


@pytest.mark.parametrize("context", [ndshare.ThreadContext(2), ndshare.ProcessContext(2)], ids=repr)
def test_clean_equals_serial_in_every_bit(context, photographs, capsys) -> None:
    """Every context makes the serial numbers, to the last bit, and the noise becomes less."""
    some = photographs[:, : 2 * tiles.SIZE, : 2 * tiles.SIZE]
    noisy = ndshare.share(tiles.cut(tiles.add_noise(some), denoise.MARGIN))
    original = ndshare.share(tiles.cut(some))
    serial = clean(ndshare.SerialContext(), noisy, original, tiles.NOISE, "serial")
    parallel = clean(context, noisy, original, tiles.NOISE, "parallel")
    assert parallel.equals(serial)
    assert not parallel.equals(Cleaned(serial.tiles, serial.marks + 1e-15, serial.report))
    assert parallel.report.done.all()
    assert (parallel.marks[:, 1] > parallel.marks[:, 0] + 3).all()
    assert "8/8" in capsys.readouterr().err
    lines = images.table(["one", "two"], parallel).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert parallel.marks.shape == (8, len(MARKS))


def test_demo_images_quick_does_the_job(run_ndshare, tmp_path: Path) -> None:
    """``ndshare demo images --quick`` removes noise, with the serial numbers, and draws it."""
    out = tmp_path / "made" / "here"
    done = run_ndshare("demo images --quick --workers 2 --out", out, interpreter_args=("-W", "error"))
    assert "each equal to the serial one in every bit" in done.stdout
    assert "2 workers" in done.stdout
    assert "<MapReport: 48 items" in done.stdout
    assert done.stderr.count("48/48") >= 2  # a bar for each run
    for name in ("china.jpg", "flower.jpg"):
        line = next(line for line in done.stdout.splitlines() if line.startswith(name))
        noisy, clean_, gain = map(float, line.split()[1:4])
        assert noisy == pytest.approx(20, abs=0.2)
        assert clean_ > noisy + 5
        assert gain == pytest.approx(clean_ - noisy, abs=0.02)
    assert (out / "ndshare-images.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(out) == ["ndshare-images.png"]


def test_demo_images_zero_workers_is_refused(capsys) -> None:
    """``--workers 0`` is refused with a sentence."""
    from ndshare.demo import main

    with pytest.raises(SystemExit):
        main(["images", "--workers", "0"])
    assert "at least 1 worker" in capsys.readouterr().err
