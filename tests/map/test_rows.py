"""Reduction: NumPy's results for rows per worker, fixed bits for rows per block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ndshare
from ndshare._map.rows import reduce_rows

_UFUNCS = [np.add, np.multiply, np.maximum, np.minimum, np.logical_or, np.hypot, np.fmax]


def _halves(rows, op):
    """Return the tree written down once more: by recursion on the largest power of two."""
    if len(rows) == 1:
        return rows[0]
    half = 1 << (len(rows) - 1).bit_length() - 1
    return op(_halves(rows[:half], op), _halves(rows[half:], op))


@pytest.mark.parametrize("op", _UFUNCS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("dtype", ["f8", "f4", "i2", "?", "c16"])
@pytest.mark.parametrize("tree", [False, True])
def test_reduce_rows_equals_numpy(op, dtype, tree):
    """Result, dtype and shape are those of ``op.reduce``."""
    rng = np.random.default_rng(1)
    for count in (1, 2, 3, 7, 8, 9):
        array = rng.integers(0, 50, (count, 3, 2)).astype(dtype)
        try:
            expected = op.reduce(array, axis=0)
        except TypeError:
            with pytest.raises(TypeError):
                reduce_rows(array, op, tree=tree)
            continue
        result = reduce_rows(array, op, tree=tree)
        assert result.dtype == expected.dtype
        assert result.shape == (3, 2)
        assert np.allclose(result, expected, rtol=1e-2 if expected.dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64, 100])
def test_reduce_rows_as_a_tree_is_this_tree(count):
    """The bits are those of the tree, whatever the layout in memory; a plain function gives the same."""
    array = np.random.default_rng(count).standard_normal((count, 5)) * 10.0 ** np.arange(count)[:, None] % 1e9
    expected = _halves(list(array), np.add)
    for rows in (array, np.asfortranarray(array), ndshare.array(array), np.repeat(array, 2, axis=0)[::2]):
        assert reduce_rows(rows, axis=0, tree=True).tobytes() == expected.tobytes()
    assert reduce_rows(array, lambda a, b: a + b, tree=True).tobytes() == expected.tobytes()


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=70), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_reduce_rows_of_blocks_does_not_depend_on_who_filled_them(values, workers):
    """Blocks filled in any order by any number of workers give the same bits."""
    blocks = [values[k : k + 4] for k in range(0, len(values), 4)]
    results = set()
    for step in {1, workers}:
        rows = np.zeros(len(blocks))
        for first in range(step):
            for block in range(first, len(blocks), step):
                for value in blocks[block]:
                    rows[block] += value
        results.add(reduce_rows(rows, tree=True).tobytes())
    assert len(results) == 1


def test_reduce_rows_finds_the_axis_by_the_order():
    """First axis for C order, last for Fortran order, or the one that is given."""
    c, f = np.arange(24.0).reshape(2, 3, 4), np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    for tree in (False, True):
        assert np.array_equal(reduce_rows(c, tree=tree), c.sum(0))
        assert np.array_equal(reduce_rows(f, tree=tree), f.sum(2))
        assert np.array_equal(reduce_rows(c, axis=1, tree=tree), c.sum(1))
        assert np.array_equal(reduce_rows(c, axis=-1, tree=tree), c.sum(2))
        assert reduce_rows(np.arange(5), tree=tree) == 10


@pytest.mark.parametrize("tree", [False, True])
def test_reduce_rows_with_a_function_may_write_to_its_first_argument(tree):
    """The rows stay what they were, and the result is memory of its own."""

    def add(a, b):
        a += b
        return a

    rows = ndshare.array(np.arange(12.0).reshape(4, 3))
    before = rows.copy()
    result = reduce_rows(rows, add, tree=tree)
    assert result.tolist() == [18.0, 22.0, 26.0]
    assert np.array_equal(rows, before)
    single = reduce_rows(rows[:1], add, tree=tree)
    single[:] = -1
    assert np.array_equal(rows, before)
    assert reduce_rows(np.array([3, 1, 2]), max, tree=tree) == 3


@pytest.mark.parametrize("tree", [False, True])
def test_reduce_rows_result_is_memory_of_its_own(tree):
    """Writing to the result of one row leaves the row alone."""
    rows = np.ones((1, 3))
    reduce_rows(rows, tree=tree)[:] = 5
    assert rows.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("tree", [False, True])
def test_reduce_rows_of_none_gives_the_identity_or_says_so(tree):
    """No rows: zero for a sum, one for a product, ValueError where there is no answer."""
    empty = np.zeros((0, 3), np.float32)
    assert reduce_rows(empty, tree=tree).tolist() == [0, 0, 0]
    assert reduce_rows(empty, tree=tree).dtype == np.float32
    assert reduce_rows(empty, np.multiply, tree=tree).tolist() == [1, 1, 1]
    for op in (np.maximum, lambda a, b: a):
        with pytest.raises(ValueError, match=r"no rows .*no identity"):
            reduce_rows(empty, op, tree=tree)
    assert reduce_rows(np.zeros((3, 0)), tree=tree).shape == (0,)


@pytest.mark.parametrize(("op", "message"), [(np.sin, "takes 1"), (np.divmod, "gives 2"), (3, "op is 3")])
def test_reduce_rows_refuses_what_is_no_binary_operation(op, message):
    """A ufunc of one argument, or of two results, or no function at all."""
    with pytest.raises(TypeError, match=message):
        reduce_rows(np.ones(3), op)


def test_reduce_rows_refuses_an_array_without_axes():
    """A single number has no rows."""
    with pytest.raises(ValueError, match="no axis"):
        reduce_rows(np.array(1.0))


def test_reduce_rows_tree_is_not_the_plain_sum():
    """The test data of this file could tell the two apart."""
    array = np.random.default_rng(0).standard_normal(1000)
    trees = {reduce_rows(array[list(order)], tree=True) for order in itertools.islice(_orders(), 5)}
    assert len(trees) > 1


def _orders():
    rng = np.random.default_rng(2)
    while True:
        yield rng.permutation(1000)
