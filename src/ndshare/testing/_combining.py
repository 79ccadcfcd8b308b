"""What kernels have in common: rows that are reduced, locks, random numbers."""

from __future__ import annotations

import numpy as np

import ndshare
from ndshare._map import SerialContext
from ndshare.testing._suite import Array, Suite, raised


class Combining(Suite):
    """Reduction, locks, random numbers."""

    def test_rows_per_worker_are_reduced(self) -> None:
        """By any operation, along the right axis."""
        context = self.make_context()
        for order in ("C", "F"):
            sums = context.alloc((3, 2), int, order=order, per_worker=True)
            largest = context.alloc((), int, order=order, per_worker=True)

            def kernel(
                worker_id: int,
                _index: int,
                value: int,
                sums: Array = sums,
                largest: Array = largest,
                order: str = order,
            ) -> None:
                row = sums[worker_id] if order == "C" else sums[..., worker_id]
                row[value % 3, value % 2] += value
                largest[worker_id] = max(largest[worker_id], value)

            context.map(kernel, range(600))
            expected = [
                [sum(v for v in range(600) if v % 3 == i and v % 2 == j) for j in (0, 1)] for i in range(3)
            ]
            assert context.reduce(sums).tolist() == expected
            assert context.reduce(largest, np.maximum) == 599

    def test_rows_per_block_give_the_same_bits_everywhere(self) -> None:
        """Floating-point sums do not depend on who had which item, or when."""
        values = np.random.default_rng(2).normal(size=1000)
        results = set()
        for context in (SerialContext(), self.make_context(), self.make_context()):
            sums = context.alloc((1000, 5), per_block=16)

            def kernel(_worker_id: int, index: int, value: float, sums: Array = sums) -> None:
                sums[index // 16] += value ** np.arange(5)

            context.map(kernel, values)
            results.add(context.reduce(sums).tobytes())
        assert len(results) == 1

    def test_reduce_refuses_other_arrays(self) -> None:
        """It would not know the axis."""
        context = self.make_context()
        assert "alloc" in str(raised(ValueError, context.reduce, context.alloc((2, 3))))

    def test_additions_under_a_lock_are_exact(self) -> None:
        """All workers into one array."""
        context = self.make_context()
        total, lock = context.alloc(3, int), ndshare.lock()

        def kernel(_worker_id: int, index: int, value: int) -> None:
            with lock:
                total[index % 3] += value

        if not context.can_lock:
            assert "span machines" in str(raised(TypeError, context.map, kernel, range(3000)))
            return
        context.map(kernel, range(3000))
        assert total.tolist() == [sum(range(k, 3000, 3)) for k in range(3)]

    def test_random_numbers_depend_on_seed_and_index_only(self) -> None:
        """The same bits as in the calling thread; other bits for another seed; no two items alike."""
        values = list(range(40))
        drawn = []
        for context, collection, seed in (
            (SerialContext(), values, 7),
            (self.make_context(), values, 7),
            (self.make_context(), iter(values), 7),
            (self.make_context(), values, 8),
        ):
            out = context.alloc((40, 3))

            def kernel(_worker_id: int, index: int, _value: int, out: Array = out) -> None:
                out[index] = ndshare.item_rng().normal(size=3)

            context.map(kernel, collection, seed=seed)
            drawn.append(out.copy())
        assert drawn[0].tobytes() == drawn[1].tobytes() == drawn[2].tobytes()
        assert len(np.unique(np.concatenate([drawn[0], drawn[3]]))) == 240
