"""What kernels may be and what they may be mapped over, and that what they write arrives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

import ndshare
from ndshare._map import SerialContext
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


class _Adder:
    """A kernel that is an object."""

    def __init__(self, out: Array, offset: float) -> None:
        self.out = out
        self.offset = offset

    def __call__(self, _worker_id: int, index: int, value: float) -> None:
        self.out[index] = value + self.offset

    def method(self, _worker_id: int, index: int, value: float) -> None:
        """Do the same."""
        self.out[index] = value + self.offset


class Kernels(Suite):
    """Kernels of every kind, outputs of every kind."""

    def test_kernel_writes_arrive(self) -> None:
        """Each item once, at its index."""
        context = self.make_context()
        values = np.arange(1000.0)
        out, hits = context.alloc(like=values), context.alloc(1000, int)

        def kernel(_worker_id: int, index: int, value: float) -> None:
            out[index] = 3 * value
            hits[index] += 1

        report = context.map(kernel, values)
        assert np.array_equal(out, 3 * values)
        assert (hits == 1).all()
        assert report.items == 1000
        assert report.done.all()
        assert report.errors == []

    def test_kernel_may_be_anything_callable(self) -> None:
        """Lambda, partial, bound method, object."""
        context = self.make_context()
        values = list(range(20))
        out = context.alloc(20)

        def kernel(offset: float, _worker_id: int, index: int, value: float) -> None:
            out[index] = value + offset

        adder = _Adder(out, 4.0)
        kernels: dict[float, Callable[..., object]] = {
            1.0: lambda _worker_id, index, value: out.__setitem__(index, value + 1.0),
            2.0: functools.partial(kernel, 2.0),
            4.0: adder,
            4.1: adder.method,
        }
        for offset, function in kernels.items():
            out[:] = 0
            context.map(function, values)
            assert out.tolist() == [value + int(offset) for value in values]

    def test_worker_ids_are_rows_of_per_worker_arrays(self) -> None:
        """Sums over rows are exact for integers."""
        context = self.make_context()
        counts = context.alloc(10, int, per_worker=True)

        def kernel(worker_id: int, _index: int, value: int) -> None:
            counts[worker_id, value % 10] += value

        context.map(kernel, range(1000))
        assert counts.sum(axis=0).tolist() == [sum(range(k, 1000, 10)) for k in range(10)]

    def test_outputs_are_the_same_bits_as_in_the_calling_thread(self) -> None:
        """Floating point included."""
        results = []
        values = np.random.default_rng(1).normal(size=(64, 33))
        for context in (SerialContext(), self.make_context()):
            out = context.alloc(64)
            spectrum = context.alloc((64, 17), complex)

            def kernel(
                _worker_id: int, index: int, value: Array, out: Array = out, spectrum: Array = spectrum
            ) -> None:
                out[index] = np.exp(value).sum()
                spectrum[index] = np.fft.rfft(value)

            context.map(kernel, values)
            results.append(out.tobytes() + spectrum.tobytes())
        assert results[0] == results[1]

    def test_dtypes_and_layouts_of_outputs(self) -> None:
        """Structured, F order, bool, one element."""
        context = self.make_context()
        record = np.dtype([("count", "i4"), ("mean", "f8", (2,))])
        table = context.alloc(8, record)
        columns = context.alloc((3, 8), order="F")
        flags, last = context.alloc(8, bool), context.alloc(())

        def kernel(_worker_id: int, index: int, value: int) -> None:
            table[index] = (index, (value, -value))
            columns[:, index] = value
            flags[index] = value % 2
            if index == 7:
                last[()] = value

        context.map(kernel, range(8))
        assert table["count"].tolist() == list(range(8))
        assert table["mean"][:, 1].tolist() == [-value for value in range(8)]
        assert columns.tolist() == [list(range(8))] * 3
        assert flags.tolist() == [False, True] * 4
        assert last == 7

    def test_arrays_of_other_contexts_can_be_mapped(self) -> None:
        """What one context has allocated, every other can write to."""
        context = self.make_context()
        for maker in (SerialContext(), ndshare.ThreadContext(2), ndshare.ProcessContext(1)):
            out = maker.alloc(10)

            def kernel(_worker_id: int, index: int, value: int, out: Array = out) -> None:
                out[index] = value

            context.map(kernel, range(10))
            assert out.tolist() == list(range(10))
