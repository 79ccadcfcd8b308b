"""The demo: its mathematics, and the whole of it as a user starts it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge

import ndshare
from ndshare.demo import digits, network, plot, ridge
from ndshare.demo.grid import Grid, Search, pickled_bytes, search_parallel, search_serial
from ndshare.demo.table import size, table

pytestmark = pytest.mark.once


@pytest.fixture
def points() -> np.ndarray:
    """Return sixty points in seven dimensions."""
    return np.random.default_rng(5).normal(size=(60, 7))


def test_squared_distances_match_scipy(points) -> None:
    """The distances are those of SciPy, none is negative, and `out` may be shared memory."""
    out = ndshare.empty((60, 60))
    result = ridge.squared_distances(points, points, out=out)
    assert result is out
    assert result.min() >= 0
    np.testing.assert_allclose(result, cdist(points, points, "sqeuclidean"), atol=1e-12)


def test_fit_matches_scikit_learn(points) -> None:
    """The coefficients are those of scikit-learn's kernel ridge regression."""
    wanted = points @ np.arange(14.0).reshape(7, 2)
    bandwidth, strength = 2.5, 0.3
    gram = ridge.kernel(ridge.squared_distances(points, points), bandwidth)
    model = KernelRidge(alpha=strength, kernel="rbf", gamma=1 / (2 * bandwidth**2)).fit(points, wanted)
    np.testing.assert_allclose(ridge.fit(gram, wanted, strength), model.dual_coef_, rtol=1e-8)


def test_cross_validate_tests_each_sample_once() -> None:
    """Well separated classes are found without error, in every fold."""
    labels = np.arange(40) % 4
    points = np.eye(4)[labels] * 10 + np.random.default_rng(1).normal(size=(40, 4), scale=0.1)
    distances = ridge.squared_distances(points, points)
    score = ridge.cross_validate(distances, labels, digits.fold_numbers(40, 5), 3.0, 1e-3)
    assert score.total == 40
    assert score.wrong.tolist() == [0, 0, 0, 0, 0]
    assert score.error == 0
    assert (score.losses < 0.05).all()


def test_digits_are_split_once_and_for_all() -> None:
    """All 1,797 digits are used, one in five is held out, and the split never changes."""
    train, held_out = digits.load()
    again, _ = digits.load()
    assert len(train) + len(held_out) == 1797
    assert len(held_out) == 359
    assert set(held_out.labels) == set(range(10))
    np.testing.assert_array_equal(train.images, again.images)


def _search(errors: list[list[float]], losses: list[list[float]]) -> Search:
    return Search(np.array(errors), np.array(losses)[..., None], 1.0)


def test_best_breaks_ties_by_loss() -> None:
    """Among models with the same error the one with the smallest loss is the best."""
    assert _search([[0.2, 0.1], [0.1, 0.3]], [[0.0, 0.5], [0.4, 0.0]]).best == (1, 0)


def test_searches_of_different_bits_differ() -> None:
    """A difference in the last bit of a loss is a difference."""
    one = _search([[0.1]], [[0.5]])
    other = _search([[0.1]], [[np.nextafter(0.5, 1)]])
    assert one.equals(one)
    assert not one.equals(other)


def test_table_marks_the_best_and_fits_a_terminal() -> None:
    """One row per ridge, the best model marked, at most 80 columns."""
    grid = Grid.make(quick=False)
    errors = np.full(grid.shape, 0.1)
    errors[2, 3] = 0.05
    lines = table(grid, Search(errors, errors[..., None], 1.0)).splitlines()
    assert len(lines) == 1 + len(grid.ridges)
    assert max(map(len, lines)) <= 80
    assert [index for index, line in enumerate(lines) if "5.00*" in line] == [3]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (16_500_000, "16.5 MB"), (3.2e9, "3.2 GB"), (5e12, "5.0 TB")],
)
def test_size_uses_a_readable_unit(nbytes: float, text: str) -> None:
    """Bytes are given in the unit that a reader would choose."""
    assert size(nbytes) == text


def test_search_in_parallel_equals_serial_in_every_bit() -> None:
    """The workers' numbers are the serial numbers, to the last bit."""
    rng = np.random.default_rng(2)
    points, labels = rng.normal(size=(300, 6)), rng.integers(0, 3, 300)
    distances = ndshare.empty((300, 300))
    ridge.squared_distances(points, points, out=distances)
    folds = digits.fold_numbers(300, 3)
    grid = Grid(np.array([0.5, 1.0, 2.0]), np.array([1e-3, 1.0]), 3)
    parallel = search_parallel(grid, distances, labels, folds, workers=2)
    serial = search_serial(grid, distances, labels, folds)
    assert parallel.equals(serial)
    assert pickled_bytes(grid, distances, labels, folds) > 6 * distances.nbytes


@pytest.mark.leaves("open descriptor")  # matplotlib keeps the font files that it used open
def test_plot_of_constant_errors_is_drawn(tmp_path: Path) -> None:
    """A surface without any relief, or without any error, makes a picture all the same."""
    grid = Grid.make(quick=True)
    _, held_out = digits.load()
    answers = np.eye(10)[held_out.labels]
    for number, value in enumerate((0.0, 0.1)):
        errors = np.full(grid.shape, value)
        path = tmp_path / f"{number}.png"
        plot.save(str(path), grid, Search(errors, errors[..., None], 1.0), held_out, answers, "caption")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_demo_quick_does_the_job(run_ndshare, tmp_path: Path) -> None:
    """``ndshare demo --quick`` finds a good model, with the serial numbers, and draws it."""
    out = tmp_path / "made" / "here"
    done = run_ndshare("demo --quick --workers 2 --out", out, interpreter_args=("-W", "error"))
    assert "each equal to the serial one in every bit" in done.stdout
    assert "16.5 MB shared once" in done.stdout
    assert "2 workers" in done.stdout
    assert "66/66" in done.stderr  # the progress bar
    test_line = next(line for line in done.stdout.splitlines() if line.startswith("test "))
    assert float(test_line.split()[-2]) < 2.0, test_line
    assert (out / "ndshare-demo.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(out) == ["ndshare-demo.png"]


def test_demo_zero_workers_is_refused(capsys) -> None:
    """``--workers 0`` is refused with a sentence."""
    from ndshare.demo import main

    with pytest.raises(SystemExit):
        main(["--workers", "0"])
    assert "at least 1 worker" in capsys.readouterr().err


def test_gradient_of_the_network_is_that_of_the_loss() -> None:
    """The gradient agrees with differences of the cross-entropy, in both layers."""
    rng = np.random.default_rng(9)
    images, labels = rng.random((20, 5)), rng.integers(0, 10, 20)
    layers = network.weights(5)

    def loss(hidden: np.ndarray, output: np.ndarray) -> float:
        return float(-np.mean(np.log(network.scores(hidden, output, images)[0][np.arange(20), labels])))

    found = network.gradient(*layers, images, labels)
    for layer, row, column in ((0, 0, 0), (0, 5, 300), (1, 3, 7), (1, 512, 9)):
        shift = [np.zeros_like(one) for one in layers]
        shift[layer][row, column] = 1e-6
        above = loss(*(one + by for one, by in zip(layers, shift, strict=True)))
        below = loss(*(one - by for one, by in zip(layers, shift, strict=True)))
        assert found[layer][row, column] == pytest.approx((above - below) / 2e-6, abs=1e-7)


def test_demo_sgd_quick_converges_although_learners_are_killed(run_ndshare, tmp_path: Path) -> None:
    """``ndshare demo sgd --quick``: good accuracy, some kills, every step counted once, a picture."""
    done = run_ndshare("demo sgd --quick --workers 2 --out", tmp_path, interpreter_args=("-W", "error"))
    assert "counted, each of them in the weights" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("2 processes"))
    assert float(line.split()[2].rstrip("%")) > 25, line  # however busy the machine: by chance it is 10
    assert "killed and replaced" in line
    assert (tmp_path / "ndshare-sgd.png").read_bytes().startswith(b"\x89PNG")
    assert done.stderr == ""


def test_demo_json_has_the_figures(run_ndshare, tmp_path: Path) -> None:
    """With ``--json`` standard output is one object; the text goes to stderr."""
    done = run_ndshare("demo workspace --quick --workers 2 --json --out", tmp_path)
    said = json.loads(done.stdout)
    assert (said["demo"], said["status"], said["equal"]) == ("workspace", 0, True)
    assert said["serial_seconds"] > 0
    assert "numbers " in done.stderr
