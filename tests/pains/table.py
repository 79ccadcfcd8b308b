"""The table of promises and tests in docs/guarantees.md, made of the tests beside this file.

``python -m tests.pains.table`` writes it there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
_BEGIN, _END = "<!-- promises: made by tests/pains/table.py -->", "<!-- end of promises -->"


def rows() -> list[tuple[str, str, str]]:
    """Return number, promise and test of each, in order."""
    found = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            number = re.match(r"test_(\d\d)_", getattr(node, "name", ""))
            if number and isinstance(node, ast.FunctionDef):
                promise = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                found.append((number[1], promise, f"{path.name}::{node.name}"))
    return sorted(found)


def table() -> str:
    """Return it in Markdown."""
    lines = [f"| {number} | {promise} | `{test}` | holds |" for number, promise, test in rows()]
    return "\n".join(
        [_BEGIN, "| | promise | test in `tests/pains` | result |", "|---|---|---|---|", *lines, _END]
    )


def put(text: str) -> str:
    """Return the page with the table as it is now."""
    head, _, rest = text.partition(_BEGIN)
    return head + table() + rest.partition(_END)[2]


if __name__ == "__main__":
    PAGE.write_text(put(PAGE.read_text()))
