"""Many threads use SharedDicts at once, with the GIL or without it."""

from __future__ import annotations

import pytest

from tests.dict.free_threads import Stress

pytestmark = [pytest.mark.once, pytest.mark.chaos]


def test_threads_use_dicts_in_every_way_at_once(chaos_seed, chaos_rounds):
    """No torn value, no lost update, no refusal that is none of their own, no lock left, no hang."""
    done = Stress().run(3.0 * chaos_rounds, chaos_seed)
    assert done["single"]
    assert done["count"]
