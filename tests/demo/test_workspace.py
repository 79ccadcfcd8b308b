"""The demo of the workspace: its systems, and the whole of it as a user starts it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ndshare.demo import digits, main, widths

pytestmark = pytest.mark.once


def test_fit_solves_the_system_of_its_width() -> None:
    """The coefficients give back what was wanted."""
    train = digits.Digits(np.random.default_rng(3).random((50, 64)), np.arange(50) % 10)
    D, b = widths.system(train)
    found = widths.fit(D, b, 0.5)
    kernel = np.exp(-2.0 * D)
    np.testing.assert_allclose((kernel + 1e-6 * np.eye(50)) @ found.alphas, b, atol=1e-9)
    assert widths.wrong(widths.answers(found, 0.5, train, train), train.labels) == 0


def test_fit_says_what_a_model_without_one_digit_says() -> None:
    """As if each digit were left out in turn."""
    train = digits.Digits(np.random.default_rng(3).random((30, 64)), np.arange(30) % 10)
    D, b = widths.system(train)
    found = widths.fit(D, b, 2.0)
    rest = np.arange(30) != 7
    model = widths.fit(D[np.ix_(rest, rest)], b[rest], 2.0)
    np.testing.assert_allclose(found.left_out[7], np.exp(-0.125 * D[7, rest]) @ model.alphas, atol=1e-8)


def test_widths_in_parallel_equal_the_serial_ones_in_every_bit() -> None:
    """And a difference in the last bit is a difference."""
    train, _ = digits.load()
    some = digits.Digits(train.images[:200], train.labels[:200])
    D, b = widths.system(some)
    sigmas = np.array([0.5, 1.0, 2.0])
    one, other = widths.parallel(D, b, sigmas, 2), widths.serial(D, b, sigmas)
    assert one.equals(other) == [True] * 3
    assert {fit.pid for fit in other.fits} == {os.getpid()}
    assert os.getpid() not in {fit.pid for fit in one.fits}
    other.fits[1].alphas[3, 3] = np.nextafter(other.fits[1].alphas[3, 3], 9)
    assert one.equals(other) == [True, False, True]


def test_demo_workspace_quick_does_the_job(run_ndshare, tmp_path: Path) -> None:
    """``ndshare demo workspace --quick``: a table, equal numbers, a picture, nothing else."""
    out = tmp_path / "made" / "here"
    done = run_ndshare("demo workspace --quick --workers 2 --out", out, interpreter_args=("-W", "error"))
    rows = [line for line in done.stdout.splitlines() if line.endswith("  equal")]
    assert len(rows) == 7
    assert max(map(len, rows)) <= 80
    assert min(float(row.split()[2]) for row in rows) < 2.0
    assert "equal in every bit" in done.stdout
    assert "16.7 MB shared once" in done.stdout
    assert done.stderr.count("7/7") == 1
    assert (out / "ndshare-workspace.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(out) == ["ndshare-workspace.png"]


def test_demo_workspace_zero_workers_is_refused(capsys) -> None:
    """With a sentence; and the help of the first demo names the second."""
    with pytest.raises(SystemExit):
        main(["workspace", "--workers", "0"])
    assert "at least 1 worker" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "workspace" in capsys.readouterr().out
