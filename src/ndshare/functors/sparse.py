"""Functor of the rows of sparse matrices of SciPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from ndshare.functors.base import Functor, indices_of, is_instance


class SparseFunctor(Functor):
    """Functor of the rows of a `scipy.sparse` matrix or array: the kernel gets ``(worker_id, index, row)``.

    Parameters
    ----------
    matrix : scipy.sparse.spmatrix or scipy.sparse.sparray
        Of two dimensions. CSR is not copied; other formats are converted, once. A row is what a loop over a
        CSR matrix gives; its `data` and `indices` are views, of shared memory if the matrix is shared.
    """

    def __init__(self, matrix: Any) -> None:
        if not _has_rows(matrix):
            raise TypeError(f"SparseFunctor: needs a sparse matrix with rows, got {type(matrix).__name__}")
        self.matrix = matrix.tocsr()

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept matrices and arrays of two dimensions."""
        return cls(value) if _has_rows(value) else None

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield ``(index, row)``."""
        matrix, kind = self.matrix, type(self.matrix)
        columns = matrix.shape[1]
        shape = (1, columns) if is_instance(matrix, "scipy.sparse", "spmatrix") else (columns,)
        for index in indices_of(share, len(self)):
            start, stop = matrix.indptr[index : index + 2]
            row = kind(shape, dtype=matrix.dtype)  # which copies what it is given if that is a small part
            row.data, row.indices = matrix.data[start:stop], matrix.indices[start:stop]
            row.indptr = matrix.indptr[index : index + 2] - start
            yield index, row


def _has_rows(value: Any) -> bool:
    return is_instance(value, "scipy.sparse", "spmatrix", "sparray") and value.ndim == 2
