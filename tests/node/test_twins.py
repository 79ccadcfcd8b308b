"""What changed in memory since its twin was made: found byte by byte, merged without touching anything else."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ndshare._memory import sparse
from ndshare._node import _twin
from ndshare._node.twins import Twin, find_changes

pytestmark = pytest.mark.once


def _bytes(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


@pytest.mark.parametrize("zero", [True, False])
def test_changes_of_random_memory_merge_to_the_same(chaos_seed: int, zero: bool) -> None:
    """Any length, any density; against zeros and against a twin."""
    rng = np.random.default_rng(chaos_seed)
    for _ in range(300):
        n = int(rng.integers(0, 200))
        old = np.zeros(n, np.uint8) if zero else rng.integers(0, 256, n, np.uint8)
        new = np.where(rng.random(n) < rng.random(), rng.integers(0, 256, n, np.uint8), old).astype(np.uint8)
        runs, data = _twin.changes(new, None if zero else old)
        assert len(data) == np.count_nonzero(new != old)
        target = old.copy()
        assert _twin.merge(target, runs, data) == len(data)
        assert target.tobytes() == new.tobytes()


def test_merging_leaves_gaps_to_other_writers() -> None:
    """Neighbouring single bytes of two shares: neither overwrites the other."""
    base = np.zeros(64, np.uint8)
    first, second = base.copy(), base.copy()
    first[::2], second[1::2] = 7, 9
    target = base.copy()
    for new in (first, second):
        change = find_changes(0, 0, new, None)
        assert change is not None
        change.merge(target)
    assert target.tolist() == [7, 9] * 32


def test_nan_and_negative_zero_are_bytes() -> None:
    """The same NaN is no change, -0.0 is one."""
    old = np.array([np.nan, 0.0, 1.0])
    new = np.array([np.nan, -0.0, 1.0])
    runs, data = _twin.changes(new.view(np.uint8), old.view(np.uint8))
    assert len(data) == 1
    target = old.copy()
    _twin.merge(target.view(np.uint8), runs, data)
    assert target.tobytes() == new.tobytes()


@pytest.mark.parametrize("runs", [b"\x05\x05", b"\x00\x03", b"\x80", b"\x00\x01\x00", b"\xff" * 12])
def test_damaged_messages_are_refused_and_change_nothing(runs: bytes) -> None:
    """Too long for the target, for the data, or cut off."""
    target = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="do not fit"):
        _twin.merge(target, runs, b"\x01\x02")
    assert not target.any()


def test_sizes_of_messages() -> None:
    """Random floats cost hardly more than themselves; counts and masks much less than their elements."""
    rng = np.random.default_rng(1)
    cases = {
        "floats": (rng.normal(size=100_000), 1.05, True),
        "counts": (rng.poisson(3, 100_000), 0.3, False),
        "labels": (rng.integers(0, 10, 100_000), 0.3, False),
        "mask": (rng.random(800_000) < 0.5, 0.3, False),
    }
    for name, (values, most, of_changed) in cases.items():
        memory = values.view(np.uint8)
        change = find_changes(0, 0, memory, None)
        assert change is not None
        bytes_of = np.count_nonzero(memory) if of_changed else values.nbytes
        assert change.nbytes <= most * bytes_of, (name, change.nbytes / bytes_of)
        target = np.zeros_like(memory)
        change.merge(target)
        assert target.tobytes() == memory.tobytes()


def test_twin_of_zeros_takes_memory_where_it_is_touched() -> None:
    """Share after share it begins with zeros."""
    twin = Twin(3, 1 << 30, None)
    try:
        for round_ in range(3):
            twin.begin([])
            assert not twin.work[123_456_789]
            twin.work[123_456_789] = round_ + 1
            twin.work[-1] = 5
            changes = twin.changes()
            assert sum(change.nbytes for change in changes) < 100
            assert all(change.block == 3 for change in changes)
            twin.reset()
            assert twin.changes() == []
    finally:
        twin.close()


@pytest.mark.parametrize("resident", [True, False])
def test_twin_of_a_content_is_reset_to_it(resident: bool) -> None:
    """Patches included; whether it stays mapped or not."""
    rng = random.Random(1)
    base = np.frombuffer(rng.randbytes(100_000), np.uint8)
    memory = sparse(base.size, filled=True).array(np.uint8, (base.size,))
    memory[:] = base
    twin = Twin(0, base.size, memory)
    twin.resident = resident
    try:
        patch = _bytes(*[1] * 5000)
        twin.begin([(40_000, patch)])
        assert twin.changes() == []
        twin.work[0] ^= 255
        twin.work[40_000] = 9
        target = base.copy()
        target[40_000:45_000] = 1
        for change in twin.changes():
            change.merge(target)
        assert target.tobytes() == twin.work.tobytes()
        twin.reset()
        assert twin.work.tobytes() == base.tobytes()
    finally:
        twin.close()


def test_patches_of_a_twin_of_zeros_are_compared_with_themselves() -> None:
    """Only what the share itself has changed comes back, zeros over a patch included."""
    twin = Twin(0, 50_000, None)
    try:
        twin.begin([(100, _bytes(*range(1, 51))), (200, _bytes(4, 4))])
        twin.work[110] = 0
        twin.work[201] = 5
        changes = twin.changes()
        assert sum(int(change.data.size) for change in changes if not change.packed) <= 2
        target = np.zeros(50_000, np.uint8)
        target[100:150] = range(1, 51)
        target[200:202] = 4
        for change in changes:
            change.merge(target)
        assert target.tobytes() == twin.work.tobytes()
    finally:
        twin.close()
