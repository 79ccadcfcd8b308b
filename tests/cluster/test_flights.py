"""The size of the next share of a map on a cluster."""

from __future__ import annotations

import pytest

from ndshare._cluster.flights import DEPTH, ShareSize

pytestmark = pytest.mark.once


def _all(sizes: ShareSize, items: int) -> list[int]:
    taken = []
    while items:
        taken.append(sizes.next(items))
        items -= taken[-1]
    return taken


def test_first_shares_are_one_item_for_each_worker() -> None:
    """Nothing is known yet, and nothing more is sent before it is."""
    sizes = ShareSize(10, 64)
    assert sizes.next(10_000) == 64
    assert sizes.depth == 1
    sizes.took(64, 6.4)
    assert sizes.depth == DEPTH
    assert sizes.per_item_s == pytest.approx(0.1)


def test_shares_take_as_long_as_they_should() -> None:
    """0.4 s of a group, longer with so many groups that the caller could not keep up."""
    assert ShareSize(2, 4, 0.001).next(10**6) == 1600
    assert ShareSize(1000, 4, 0.001).next(10**9) == 8000


@pytest.mark.parametrize("per_item_s", [0.0, 0.3, 5.0])
def test_long_items_leave_no_worker_without_one(per_item_s: float) -> None:
    """A share of 25 items on 64 workers would take as long as one of 64; one of 85 as long as one of 128."""
    taken = _all(ShareSize(3, 64, per_item_s), 1000)
    assert sum(taken) == 1000
    assert all(count % 64 == 0 for count in taken[:-1])


def test_shares_become_small_at_the_end() -> None:
    """All groups end together; no share is longer than a third of what is left for its group."""
    left = 10_000
    sizes = ShareSize(4, 2, 0.01)
    for count in _all(sizes, left):
        assert 1 <= count <= max(left / 12, 4)
        left -= count


def test_growth_is_bounded() -> None:
    """The first items may have been the cheap ones."""
    sizes = ShareSize(2, 1)
    assert sizes.next(10**6) == 1
    sizes.took(1, 1e-6)
    assert [sizes.next(10**6) for _ in range(3)] == [16, 256, 4096]
