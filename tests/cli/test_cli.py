"""The ``ndshare`` command: sub-commands, version, help, and what it says when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ndshare
from ndshare import cli


def test_cli_version_is_printed(capsys) -> None:
    """``--version`` prints the version and ends with status 0."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ndshare {ndshare.__version__}\n"


def test_cli_without_words_prints_help(capsys) -> None:
    """No words at all: the help, which names every sub-command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "bench" in text


def test_cli_unknown_command_is_refused(capsys) -> None:
    """An unknown sub-command: status 2, and the message names the known ones."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["demon"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "demon" in text
    assert "demo" in text


def test_cli_missing_package_names_the_extra(monkeypatch, capsys) -> None:
    """A sub-command whose packages are not installed: status 2 and what to install."""
    for name in [name for name in sys.modules if name.startswith(("ndshare.demo", "scipy"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.linalg", None)
    assert cli.main(["demo", "--quick"]) == 2
    assert "pip install 'ndshare[demo]'" in capsys.readouterr().err


def test_cli_as_module_works(tmp_path: Path) -> None:
    """``python -m ndshare`` is the command."""
    done = subprocess.run(
        [sys.executable, "-m", "ndshare", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout.startswith("ndshare ")
