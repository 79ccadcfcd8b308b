"""Random programs in an interpreter of their own, where a crash shows: the heap against its model."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.once, pytest.mark.chaos, pytest.mark.sanitized]


def test_heap_agrees_with_its_model(run_module, chaos_seed, chaos_rounds):
    """Allocate, lend, take, resize, fork, with arguments nobody should give: the right bytes or an error."""
    assert run_module("tests.memory.fuzz_heap", str(chaos_seed), str(1500 * chaos_rounds)) == "right\n"
