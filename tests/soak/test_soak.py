"""A minute of everything at once: values are right whoever is killed, and nothing is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.once


@pytest.mark.chaos
def test_soak(chaos_seed: int, chaos_rounds: int, run_module: Any) -> None:
    """Descriptors, mappings, memory and names stay where they are (the whole of it: scripts/soak)."""
    said = run_module("tests.soak.soak", "--seconds", str(30 * chaos_rounds), "--seed", str(chaos_seed))
    found, last = json.loads(said.partition("\n")[2].rpartition("\n{")[0]), json.loads(said.splitlines()[-1])
    print(found)
    assert found["deeds"] > 20
    assert found["kills"] > 5
    assert last["/dev/shm"] == 0
    assert last["threads"] <= 3
    assert last["descriptors"] < 200
    assert last["mappings"] < 1500
    assert last["PSS (MB)"] < 1500
