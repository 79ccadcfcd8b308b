"""Arrays of a context: what `alloc` gives, rows that are reduced, locks and random numbers of kernels."""

from __future__ import annotations

import numpy as np

import ndshare
from ndshare._map import SerialContext
from ndshare.testing._suite import Array, Suite, raised


class Allocation(Suite):
    """Shapes, dtypes, layouts and contents of what is allocated."""

    def test_alloc_gives_zeros_of_float64_in_c_order(self) -> None:
        """The defaults are NumPy's for zeros."""
        array = self.make_context().alloc((3, 4))
        assert type(array) is np.ndarray
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
        assert not array.any()

    def test_alloc_takes_shapes_of_every_kind(self) -> None:
        """Integers, iterables, nothing, nobody."""
        context = self.make_context()
        assert context.alloc(5).shape == (5,)
        assert context.alloc(iter([2, 3])).shape == (2, 3)
        assert context.alloc(()).shape == ()
        assert context.alloc((0,)).shape == (0,)
        assert context.alloc((), fill=3)[()] == 3
        assert context.alloc((0,), fill=3).shape == (0,)

    def test_alloc_takes_what_is_not_given_from_like(self) -> None:
        """Explicit arguments win."""
        context = self.make_context()
        model = np.ones((2, 3), np.int16, order="F")
        array = context.alloc(like=model)
        assert array.shape == (2, 3)
        assert array.dtype == np.int16
        assert array.flags.f_contiguous
        array = context.alloc(7, np.float32, order="C", like=model)
        assert array.shape == (7,)
        assert array.dtype == np.float32

    def test_alloc_fills_with_scalars_and_arrays(self) -> None:
        """By NumPy's rules of broadcasting."""
        context = self.make_context()
        assert np.isnan(context.alloc(3, fill=np.nan)).all()
        assert context.alloc((2, 3), int, fill=[1, 2, 3]).tolist() == [[1, 2, 3], [1, 2, 3]]

    def test_alloc_per_worker_adds_an_axis(self) -> None:
        """In front for order C, behind for order F."""
        context = self.make_context()
        n = context.num_workers
        assert context.alloc((2, 3), per_worker=True).shape == (n, 2, 3)
        assert context.alloc((2, 3), order="F", per_worker=True).shape == (2, 3, n)
        assert context.alloc((100, 3), per_block=32).shape == (4, 3)


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
