"""Functor of sparse matrices, row by row."""

import numpy as np
import pytest

import ndshare
from ndshare.functors import SparseFunctor, find
from tests.functors.functor_tasks import entries, travelled

sparse = pytest.importorskip("scipy.sparse")
pytestmark = pytest.mark.once

DENSE = np.where(np.arange(60).reshape(12, 5) % 4 == 0, np.arange(60.0).reshape(12, 5), 0)


@pytest.mark.parametrize(
    "form", ["csr_matrix", "csr_array", "csc_matrix", "coo_array", "lil_matrix", "dok_array"]
)
def test_rows_are_those_of_a_loop(form):
    """Type, shape, dtype and content, in every share; rows without entries too."""
    matrix = getattr(sparse, form)(DENSE)
    functor, looped = find(matrix), list(matrix.tocsr())
    for start, stop in ((0, len(functor)), (2, 5), (7, 7)):
        got = entries(functor, start, stop)
        assert [index for index, _ in got] == list(range(start, stop))
        for index, row in got:
            assert (type(row), row.dtype) == (type(looped[index]), matrix.dtype)
            assert np.array_equal(row.toarray(), looped[index].toarray())


@pytest.mark.parametrize("form", ["csr_matrix", "csr_array"])
def test_rows_are_views_and_shared_memory_stays_shared(form):
    """At a receiver as well: what a kernel writes to a row is in the matrix."""
    matrix = ndshare.share(getattr(sparse, form)(DENSE))
    assert all(ndshare.is_shared(row.data) for _, row in entries(travelled(find(matrix))) if row.nnz)

    def kernel(worker_id, index, row):
        row.data[:] = index

    ndshare.ProcessContext(2).map(kernel, matrix)
    assert (matrix.toarray() == np.where(DENSE != 0, np.arange(12.0)[:, None], 0)).all()


@pytest.mark.parametrize("value", [DENSE, sparse.coo_array(DENSE[0])])
def test_what_has_no_rows_is_refused(value):
    """Arrays that are not sparse, or have one dimension."""
    with pytest.raises(TypeError, match="SparseFunctor: needs a sparse matrix with rows, got "):
        SparseFunctor(value)
