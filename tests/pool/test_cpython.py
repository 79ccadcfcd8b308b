"""CPython's own tests of process pools, with ndshare's executor: all pass but those that the page names."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pool import cpython_tests

_PAGE = Path(__file__).parents[2] / "docs" / "executor.md"
_MOST = 8  # names that may fail
_OF_315 = "test_traceback_when_child_process_terminates_abruptly"


def _excused() -> set[str]:
    """Return the names that the page gives a reason for."""
    listed = _PAGE.read_text().split("All pass but these:")[1]
    names = set(re.findall(r"^\| `(test_\w+)`.* \| .+ \|$", listed, re.MULTILINE))
    return names | {_OF_315} if sys.version_info >= (3, 15) else names


def test_few_names_are_excused() -> None:
    """Each with its reason; the page names those that are not run as well."""
    assert 0 < len(_excused() - {_OF_315}) <= _MOST
    page = _PAGE.read_text()
    assert all(f"`{name}`" in page for name in (*cpython_tests.PRIVATE, _OF_315))


@pytest.mark.parametrize("module", cpython_tests.MODULES)
def test_their_tests_pass(module: str, tmp_path: Path) -> None:
    """Those of the interpreter that runs this one, where it has them."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(cpython_tests.PACKAGE) is None:
        pytest.skip("this interpreter came without its own tests")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(Path(cpython_tests.__file__)), module]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(test_\w+) (test\..*)$", done.stdout, re.MULTILINE)
    assert re.search(r"^[1-9]\d* tests ran", done.stdout, re.MULTILINE), done.stderr
    assert [line for name, line in failed if name not in _excused()] == []
