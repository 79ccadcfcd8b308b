"""The table in docs/guarantees.md is that of the tests."""

from __future__ import annotations

import pytest

from tests.pains.table import PAGE, put, rows

pytestmark = pytest.mark.once


def test_the_page_has_the_table_of_the_tests() -> None:
    """Made anew it is the same; a promise is one sentence or two."""
    assert put(PAGE.read_text()) == PAGE.read_text()
    assert len({number for number, _, _ in rows()}) >= 36
