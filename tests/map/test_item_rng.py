"""Random numbers of an item: the same bits wherever and whenever it is mapped."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import ndshare
from ndshare._map.randomness import Stream
from ndshare._system import _wire

_RUNNING = 1


class Board:
    """What a runner keeps: a slot that says which item is being mapped."""

    def __init__(self, offset=8):
        self.memory = np.zeros(64, np.uint8)
        self.offset = offset

    def enter(self, seed):
        """Return the context of a map."""
        return Stream(seed, self.memory, self.offset)

    def go_to(self, index):
        """Begin an item."""
        _wire.store_u64(self.memory, self.offset, index << 2 | _RUNNING)


def drawn(seed, indices, count=5):
    """Return what each of some items draws, in the order given."""
    board, found = Board(), {}
    with board.enter(seed):
        for index in indices:
            board.go_to(index)
            found[index] = ndshare.item_rng().random(count).tolist()
    return found


def test_item_rng_depends_on_seed_and_index_only():
    """Order, subset and what was drawn before do not matter; seed and index do."""
    one = drawn(7, range(20))
    assert drawn(7, reversed(range(20))) == one
    assert drawn(7, [3, 17]) == {3: one[3], 17: one[17]}
    assert len({tuple(values) for values in one.values()}) == 20
    other = drawn(8, range(20))
    assert not {tuple(v) for v in one.values()} & {tuple(v) for v in other.values()}


@pytest.mark.parametrize("method", ["random", "normal", "integers32", "exponential"])
def test_item_rng_leaves_nothing_to_the_next_item(method):
    """Half-used buffers of one item (32-bit halves, blocks of four) do not reach the next."""

    def draw(rng, count):
        if method == "integers32":
            return rng.integers(0, 2**32, count, np.uint32).tolist()
        return getattr(rng, method)(size=count).tolist()

    board = Board()
    with board.enter(3):
        board.go_to(5)
        alone = draw(ndshare.item_rng(), 9)
    for before in range(6):
        with board.enter(3):
            board.go_to(4)
            draw(ndshare.item_rng(), before)
            board.go_to(5)
            assert draw(ndshare.item_rng(), 9) == alone


def test_item_rng_called_again_for_an_item_goes_on():
    """Two helpers of one kernel do not draw the same numbers; a second try begins anew."""
    board = Board()
    with board.enter(1) as stream:
        board.go_to(0)
        rng = ndshare.item_rng()
        first = rng.random()
        assert ndshare.item_rng() is rng
        second = ndshare.item_rng().random()
        assert first != second
        stream.restart()
        assert ndshare.item_rng().random() == first
        assert ndshare.item_rng().random() == second


def test_item_rng_bits_are_fixed():
    """The numbers of a seed stay what they are: Philox with the index in word 2 of the counter."""
    key = np.random.SeedSequence(42).generate_state(2, np.uint64)
    for index in (0, 1, 10**6, 2**61):
        bits = np.random.Philox(key=key, counter=np.array([0, 0, index, 0], np.uint64))
        assert drawn(42, [index], 9)[index] == np.random.Generator(bits).random(9).tolist()
    assert drawn(2**100, [1]) == drawn(2**100, [1])


def test_item_rng_streams_are_independent():
    """Neighbouring items and seeds are not correlated, and each is uniform."""
    rows = np.array([values for seed in range(4) for values in drawn(seed, range(50), 400).values()])
    assert abs(rows.mean() - 0.5) < 0.005
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert abs(correlation).max() < 0.3
    assert abs(correlation.mean()) < 0.001
    assert len(np.unique(rows)) == rows.size


def test_item_rng_outside_of_a_map_says_what_to_do():
    """No item: RuntimeError with the remedy; the same in a thread the kernel started."""
    with pytest.raises(RuntimeError, match=r"map\(\.\.\., seed=0\).*default_rng"):
        ndshare.item_rng()
    board, seen = Board(), []

    def in_thread():
        with pytest.raises(RuntimeError, match="in this thread"):
            ndshare.item_rng()
        seen.append(True)

    with board.enter(1):
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        ndshare.item_rng()
    assert seen
    with pytest.raises(RuntimeError, match="no item"):
        ndshare.item_rng()


def test_item_rng_without_a_seed_says_what_to_do():
    """A map without a seed: RuntimeError that names the argument."""
    with Board().enter(None), pytest.raises(RuntimeError, match=r"without a seed.*map\(\.\.\., seed=0\)"):
        ndshare.item_rng()


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_item_rng_bad_seed_is_refused(seed):
    """NumPy says what a seed may be."""
    with Board().enter(seed), pytest.raises((ValueError, TypeError)):
        ndshare.item_rng()


def test_item_rng_of_a_nested_map_leaves_the_outer_one_alone():
    """The outer item goes on where it was; an error inside does not leave the inner context behind."""
    outer, inner = Board(), Board(16)
    expected = drawn(1, [4], 2)[4]
    with outer.enter(1):
        outer.go_to(4)
        found = [ndshare.item_rng().random()]
        with pytest.raises(ZeroDivisionError), inner.enter(1):
            inner.go_to(4)
            assert ndshare.item_rng().random() == expected[0]
            raise ZeroDivisionError
        found.append(ndshare.item_rng().random())
    assert found == expected


def test_item_rng_threads_do_not_disturb_each_other():
    """Each worker thread has its own generator and its own slot."""
    expected, found = drawn(9, range(200)), {}

    def work(indices):
        found.update(drawn(9, indices))

    threads = [threading.Thread(target=work, args=(range(k, 200, 4),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
