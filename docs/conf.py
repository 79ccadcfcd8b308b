"""How Sphinx makes the site of these pages; ``scripts/docs`` runs it."""

from __future__ import annotations

import re
from typing import Any

import ndshare

project = "ndshare"
author = "the ndshare developers"
project_copyright = "2026, the ndshare developers"
version = release = ndshare.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["pictures/*.py"]
highlight_language = "text"  # what has no language is output, or a drawing

# Markdown: headings can be linked to, as they can where the pages are read without being built.
myst_heading_anchors = 3
myst_links_external_new_tab = False

# Docstrings are numpydoc; types stand in them, so signatures show names and defaults only.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False
default_role = "py:obj"

# Every reference has to lead somewhere, but for words in backticks in docstrings, most of which are arguments
# and names of others, and for the classes of others.
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", r"(?!ndshare\.).*")]

html_theme = "furo"
html_title = f"ndshare {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def _link_pages(
    _app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Make links of the pages that docstrings name."""
    lines[:] = [re.sub(r"docs/(\w+)\.md", r":doc:`/\1`", line) for line in lines]


def _public_bases(_app: object, _name: str, _obj: object, _options: object, bases: list[Any]) -> None:
    """Show bases by their public names, and not those that have none."""
    for number, base in reversed(list(enumerate(bases))):
        name = getattr(base, "__name__", "")
        if getattr(ndshare, name, None) is base:
            bases[number] = f":py:class:`ndshare.{name}`"
        elif getattr(base, "__module__", "").startswith("ndshare."):
            del bases[number]
    bases[:] = bases or [object]


def setup(app: Any) -> None:
    """Tell Sphinx of it."""
    app.connect("autodoc-process-bases", _public_bases)
    app.connect("autodoc-process-docstring", _link_pages)
