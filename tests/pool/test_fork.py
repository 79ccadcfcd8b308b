"""Executors whose workers are forked from the program: tried in a process of its own, which has no threads of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CASES = Path(__file__).with_name("fork_cases.py")


@pytest.mark.parametrize("which", ["spawn", "forkserver", "not spawn and not forkserver"])
def test_executors_that_fork(which: str) -> None:
    """Every case of `fork_cases.py`: those with what contexts of `multiprocessing` make, and the others."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            "-k",
            which,
            str(_CASES),
        ],
        cwd=_CASES.parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
