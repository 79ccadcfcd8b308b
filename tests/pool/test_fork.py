"""Executors whose workers are forked from the program: tried in a process of its own, which has no threads of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CASES = Path(__file__).with_name("fork_cases.py")


def test_executors_that_fork() -> None:
    """Every case of `fork_cases.py`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(_CASES)],
        cwd=_CASES.parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
