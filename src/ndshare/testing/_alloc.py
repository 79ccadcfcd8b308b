"""What `alloc` of a context has to give."""

from __future__ import annotations

import numpy as np

from ndshare.testing._suite import Suite


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
