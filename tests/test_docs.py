"""Every Python block in the README and the docs runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

_ROOT = Path(__file__).parent.parent
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_EVERYWHERE = ("h5py", "distributed")  # no wheels for some Pythons
_LINK = re.compile(r"\[[^\]]+\]\((?!https?:|mailto:|#)([^)#]+)")


def script_of(text: str) -> str:
    """Return the Python blocks of a page as one script, each on the lines where the page has it."""
    lines: list[str] = []
    for match in _BLOCK.finditer(text):
        start = text.count("\n", 0, match.start(1))
        lines += [""] * (start - len(lines)) + match.group(1).splitlines()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_page_python_blocks_run_as_one_script(page: Path, run_script) -> None:
    """The blocks of a page, in order, run as a plain script without a main guard."""
    script = script_of(page.read_text())
    for name in _NOT_EVERYWHERE:
        if re.search(rf"^(import|from) {name}\b", script, re.MULTILINE):
            pytest.importorskip(name)
    if script.strip():  # pages fork while threads run, which raises from 3.15 on, after the child has begun
        run_script(script, interpreter_args=("-W", "error", "-W", "ignore:This process:DeprecationWarning"))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_page_links_lead_somewhere(page: Path) -> None:
    """A relative link names a file that exists."""
    for target in _LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_script_of_keeps_line_numbers() -> None:
    """A traceback of a block points to the line in the page."""
    assert script_of("a\n```python\nx = 1\n```\nb\n```python\ny = 2\n```\n") == "\n\nx = 1\n\n\n\ny = 2\n"


def test_the_comparison_has_all_fifty_five_features_with_thirteen_marks() -> None:
    """Each feature once, a mark for ndshare and each of twelve others."""
    page = (_ROOT / "docs" / "compared.md").read_text()
    rows = re.findall(r"^\| (\d+) (.+) \|$", page, re.MULTILINE)
    assert sorted(int(number) for number, _ in rows) == list(range(1, 56))
    assert {text.count("|") for _, text in rows} == {13}
