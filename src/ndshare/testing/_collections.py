"""What a context has to map over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ndshare.functors import Functor
from ndshare.testing._suite import Array, Suite


class _Opaque(Functor):
    """A functor as libraries written for pasha have it: no length, shares of its own kind."""

    def __init__(self, values: list[float]) -> None:
        self._parts = values

    @classmethod
    def wrap(cls, _value: object) -> None:
        """Never by itself."""

    def split(self, num_workers: int) -> list[range]:
        """Every num_workers-th item."""
        return [range(k, len(self._parts), num_workers) for k in range(num_workers)]

    def iterate(self, share: range) -> Iterator[tuple[int, float]]:
        """Yield entries."""
        for index in share:
            yield index, self._parts[index]


class Collections(Suite):
    """Collections of every size and kind, cut as may be."""

    def test_small_collections(self) -> None:
        """None, one, fewer than workers, a few more."""
        context = self.make_context()
        for n in (0, 1, 2, context.num_workers, context.num_workers + 1, 17):
            out = context.alloc(n, int)

            def kernel(_worker_id: int, index: int, value: int, out: Array = out) -> None:
                out[index] = value + 1

            report = context.map(kernel, range(n))
            assert out.tolist() == list(range(1, n + 1))
            assert report.done.shape == (n,)

    def test_ragged_collections(self) -> None:
        """Items of different lengths, some empty."""
        context = self.make_context()
        items = [np.arange(k % 5) for k in range(20)]
        sums = context.alloc(20)

        def kernel(_worker_id: int, index: int, value: Array) -> None:
            sums[index] = value.sum()

        context.map(kernel, items)
        assert sums.tolist() == [item.sum() for item in items]

    def test_functors_without_a_length(self) -> None:
        """As libraries have them that were written for pasha: run share by share."""
        context = self.make_context()
        out = context.alloc(25)

        def kernel(_worker_id: int, index: int, value: float) -> None:
            out[index] = value

        context.map(kernel, _Opaque([float(k) for k in range(25)]))
        assert out.tolist() == list(range(25))

    def test_fixed_number_of_shares(self) -> None:
        """It changes nothing about the result."""
        context = self.make_context()
        out = context.alloc(100)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            out[index] = value

        for shares in (1, 3, 100, 1000):
            out[:] = -1
            report = context.map(kernel, range(100), shares=shares)
            assert out.tolist() == list(range(100))
            assert sum(worker.shares for worker in report.workers) <= shares
