"""The site: every page is in its table of contents, every public name in the reference, every link leads somewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import ndshare

pytestmark = pytest.mark.once

_TOP = Path(__file__).parent.parent
_DOCS = _TOP / "docs"
_SCRIPT = _TOP / "scripts" / "docs"
_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _in_contents(page: Path) -> set[Path]:
    """Return a page and those that its tables of contents lead to, at any depth."""
    found = {page}
    for entries in _TOCTREE.findall(page.read_text()):
        for line in entries.splitlines():
            if line and not line.startswith(":"):
                name = re.sub(r".*<(.*)>", r"\1", line)
                found |= _in_contents(page.parent / f"{name}.md")
    return found


def test_every_page_is_in_the_contents() -> None:
    """No page is lost, and none that is named is missing."""
    assert _in_contents(_DOCS / "index.md") == set(_DOCS.rglob("*.md"))


def test_every_public_name_is_in_the_reference_once() -> None:
    """A new public name gets its line on a page of docs/api."""
    pages = "\n".join(path.read_text() for path in sorted((_DOCS / "api").glob("*.md")))
    named = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(ndshare.__all__)


def test_every_functor_is_in_the_reference() -> None:
    """So have those of `ndshare.functors`, which programs extend."""
    from ndshare import functors

    pages = "\n".join(path.read_text() for path in sorted((_DOCS / "api").glob("*.md")))
    classes = {name for name in functors.__all__ if isinstance(getattr(functors, name), type)}
    assert {name for name in classes if f":: {name}\n" not in pages.replace("ndshare.functors.", "")} == set()


def test_broken_links_are_found(tmp_path: Path) -> None:
    """Missing files and missing places in files; addresses elsewhere are not looked at."""
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><img src="no.png">'
        '<a href="#here">4</a><p id="here"></p><a href="https://example.org/no">5</a>'
    )
    (tmp_path / "b.html").write_text('<p id="there">')
    broken_links = runpy.run_path(str(_SCRIPT))["broken_links"]
    assert broken_links(tmp_path) == ["a.html: b.html#gone", "a.html: c.html", "a.html: no.png"]


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """With Sphinx as strict as it can be."""
    for name in ("sphinx", "myst_parser", "numpydoc", "furo", "sphinx_copybutton"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, _SCRIPT, "--out", tmp_path / "site"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "api" / "maps.html").exists()
