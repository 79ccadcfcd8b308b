"""The page of mistakes: each is made, and what ndshare says is what stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

_PAGE = (Path(__file__).parent.parent / "docs" / "mistakes.md").read_text()
_SECTION = re.compile(
    r"^### (\d+)\. (.*?)\n\n```py\n(.*?)^```\n\n```text\n(.*?)^```\n\n(.+?)\n$", re.M | re.S
)
_MISTAKES = _SECTION.findall(_PAGE + "\n")

# Makes one mistake after the other, as a script that a user runs, and prints what is said.
_PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")  # of what other libraries say at import
exec(sys.argv[1])
for title, code in json.loads(sys.argv[2]):
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(code)
        except BaseException as error:
            text = str(error) if not isinstance(error, KeyError) else str(error.args[0])
            notes = [  # where in the arguments it was is a note of CPython's, from 3.14 on
                note for note in getattr(error, "__notes__", ()) if not note.startswith("when serializing ")
            ]
            said += [f"{type(error).__name__}: {text}", *notes]
            error.__traceback__ = None
    said[:0] = [f"{warning.category.__name__}: {warning.message}" for warning in caught]
    print(json.dumps([title, "\\n".join(said)]), flush=True)
executor.shutdown()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said, by title."""
    import os
    import subprocess
    import sys

    pytest.importorskip("h5py")
    start = _PAGE.partition("```py\n")[2].partition("```")[0]
    program = tmp_path_factory.mktemp("mistakes") / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [
            sys.executable,
            str(program),
            start,
            json.dumps([(title, code) for _, title, code, *_ in _MISTAKES]),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=program.parent,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def test_there_are_thirty_and_they_are_numbered() -> None:
    """Thirty mistakes or more, counted from 1, each with a sentence of advice."""
    assert len(_MISTAKES) >= 30
    assert [int(number) for number, *_ in _MISTAKES] == list(range(1, len(_MISTAKES) + 1))
    assert _PAGE.count("\n### ") == len(_MISTAKES)


def _pattern(text: str) -> str:
    """Return an expression for a text of the page: lines may be broken there, and … is anything."""
    parts = [re.escape(" ".join(part.split())) for part in text.split("…")]
    return ".*".join(parts)


@pytest.mark.parametrize(
    ("number", "title", "text"), [(m[0], m[1], m[3]) for m in _MISTAKES], ids=lambda v: str(v)[:40]
)
def test_mistake_is_answered_as_the_page_says(
    said: dict[str, Any], number: str, title: str, text: str
) -> None:
    """Type and text of the error or warning, and its notes."""
    found = " ".join(said[title].split())
    assert re.fullmatch(_pattern(text), found), f"\n{said[title]}"
