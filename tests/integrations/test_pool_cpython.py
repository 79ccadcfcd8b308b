"""CPython's own tests of `multiprocessing.Pool`, with ndshare's: all pass but those that the page names."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations import pool_cpython_tests as cpython_tests

_PAGE = Path(__file__).parents[2] / "docs" / "pool.md"


def _excused() -> set[str]:
    """Return the names that the page gives a reason for."""
    listed = _PAGE.read_text().split("All pass but these:")[1]
    rows = re.findall(r"^\| (`test_.*?) \| .+ \|$", listed, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(test_\w+)`", row)}


def test_their_tests_pass(tmp_path: Path) -> None:
    """Those of the interpreter that runs this one, where it has them."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(cpython_tests.MODULE) is None:
        pytest.skip("this interpreter came without its own tests")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(Path(cpython_tests.__file__))]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(test_\w+) (tests\..*|test\..*)$", done.stdout, re.MULTILINE)
    ran = re.search(r"^(\d+) tests ran", done.stdout, re.MULTILINE)
    assert ran is not None, done.stderr
    assert int(ran[1]) >= 30
    assert [line for name, line in failed if name not in _excused()] == []
    assert len(_excused()) == 1
