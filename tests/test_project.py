"""What the repository shows to people: templates, citation, where to report, the pages of the site."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

_TOP = Path(__file__).parent.parent
_TEMPLATES = sorted((_TOP / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def _yaml(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text())


@pytest.mark.parametrize(
    "path", [path for path in _TEMPLATES if path.stem != "config"], ids=lambda path: path.stem
)
def test_issue_template_is_a_form_that_asks_for_the_doctor(path: Path) -> None:
    """Each is a form as the issue tracker reads it, and names ``ndshare doctor --json``."""
    form = _yaml(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in fields:
        assert field["type"] in {"textarea", "dropdown", "input", "checkboxes"}
        assert field["attributes"]["label"]
    assert "ndshare doctor --json" in path.read_text()


def test_citation_is_complete() -> None:
    """Title, authors and licence are there, and the licence is that of the package."""
    citation = _yaml(_TOP / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()
    assert f'license = "{citation["license"]}"' in (_TOP / "pyproject.toml").read_text()


def test_security_policy_leads_to_the_page() -> None:
    """Who finds a hole reads what is promised, and where to say it."""
    text = (_TOP / "SECURITY.md").read_text()
    assert "(docs/security.md)" in text
    assert "Not in a public issue" in text


def test_readme_has_its_two_lines_and_a_first_screen() -> None:
    """The lines that CI runs as they stand; before the first heading one picture, one table, and where it loses."""
    text = (_TOP / "README.md").read_text()
    assert re.findall(r"^pip install.*$", text, re.MULTILINE) == [
        "pip install '.[demo]' && ndshare demo",
        "pip install '.[test]' && pytest",
    ]
    first = text.partition("\n## ")[0]
    assert len(first.splitlines()) <= 40
    assert first.count("![") == 1
    assert first.count("|---") == 3  # one table of three columns
    assert "Where it loses" in first
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", first)
    assert (_TOP / picture).stat().st_size < 100_000


@pytest.mark.parametrize("script", ["docs", "notebooks", "release"])
def test_scripts_name_what_exists(script: str) -> None:
    """A script in Python compiles, and the tests it names are there."""
    text = (_TOP / "scripts" / script).read_text()
    compile(text, script, "exec")
    named = re.findall(r'"(tests/[\w/.]+)"', text)
    assert [name for name in named if not (_TOP / name).exists()] == []


def test_programs_of_others_are_there_and_pinned() -> None:
    """Each that the script names lies in its folder and on its page; all that they need has one version."""
    script = runpy.run_path(str(_TOP / "scripts" / "downstream"))
    folder = _TOP / "benchmarks" / "downstream"
    programs = {path.stem for path in folder.glob("*.py")} - {"common"}
    assert programs == set(script["PROGRAMS"])
    page = (_TOP / "docs" / "downstream.md").read_text()
    assert {name for name in programs if f"| `{name}` |" not in page} == set()
    needs = [line for line in (folder / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert [line for line in needs if not re.fullmatch(r"[\w-]+==[\d.]+", line)] == []
