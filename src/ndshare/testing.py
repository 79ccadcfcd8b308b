"""What every map context must do: a suite for pytest, for contexts of ndshare and of others.

Subclass `ContextConformance`, say how a context is made, and let pytest collect the class::

    from ndshare.testing import ContextConformance

    class TestMyContext(ContextConformance):
        def make_context(self):
            return MyContext(num_workers=2)
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import ndshare
from ndshare.contexts import MapContext, SerialContext
from ndshare.functors import Functor

__all__ = ["ContextConformance"]

_Array = np.ndarray[Any, Any]


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


class _Adder:
    """A kernel that is an object."""

    def __init__(self, out: _Array, offset: float) -> None:
        self.out = out
        self.offset = offset

    def __call__(self, _worker_id: int, index: int, value: float) -> None:
        self.out[index] = value + self.offset

    def method(self, _worker_id: int, index: int, value: float) -> None:
        """Do the same."""
        self.out[index] = value + self.offset


def _raised(error_type: type[Exception], call: Callable[..., object], *args: Any, **kwargs: Any) -> Exception:
    try:
        call(*args, **kwargs)
    except error_type as error:
        return error
    raise AssertionError(f"no {error_type.__name__} was raised")


class ContextConformance:
    """The suite. Each method is a test; a fresh context is made for each."""

    def make_context(self) -> MapContext:
        """Return the context to be tested."""
        raise NotImplementedError

    # ------------------------------------------------------------------ alloc

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

    # ------------------------------------------------------------------ kernels

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
                _worker_id: int, index: int, value: _Array, out: _Array = out, spectrum: _Array = spectrum
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

            def kernel(_worker_id: int, index: int, value: int, out: _Array = out) -> None:
                out[index] = value

            context.map(kernel, range(10))
            assert out.tolist() == list(range(10))

    # ------------------------------------------------------------------ collections

    def test_small_collections(self) -> None:
        """None, one, fewer than workers, a few more."""
        context = self.make_context()
        for n in (0, 1, 2, context.num_workers, context.num_workers + 1, 17):
            out = context.alloc(n, int)

            def kernel(_worker_id: int, index: int, value: int, out: _Array = out) -> None:
                out[index] = value + 1

            report = context.map(kernel, range(n))
            assert out.tolist() == list(range(1, n + 1))
            assert report.done.shape == (n,)

    def test_ragged_collections(self) -> None:
        """Items of different lengths, some empty."""
        context = self.make_context()
        items = [np.arange(k % 5) for k in range(20)]
        sums = context.alloc(20)

        def kernel(_worker_id: int, index: int, value: _Array) -> None:
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

    # ------------------------------------------------------------------ errors

    def test_first_error_is_raised_with_its_index(self) -> None:
        """The original exception, with a note."""
        context = self.make_context()
        out = context.alloc(100)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            if index == 37:
                raise ZeroDivisionError("at thirty-seven")
            out[index] = value

        error = _raised(ZeroDivisionError, context.map, kernel, range(100))
        assert error.args == ("at thirty-seven",)
        assert "item 37 of 100" in error.__notes__[0]
        context.map(lambda *_: None, range(10))  # usable again

    def test_errors_are_collected_and_the_rest_is_done(self) -> None:
        """Items 3 and 7 fail of 10: 8 values, 2 errors with their index."""
        context = self.make_context()
        out = context.alloc(10, fill=-1)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            if value in {3, 7}:
                raise ValueError(value)
            out[index] = value

        report = context.map(kernel, range(10), on_error="collect")
        assert [(index, type(error), error.args) for index, error in report.errors] == [
            (3, ValueError, (3,)),
            (7, ValueError, (7,)),
        ]
        assert out.tolist() == [0, 1, 2, -1, 4, 5, 6, -1, 8, 9]
        assert np.flatnonzero(~report.done).tolist() == [3, 7]

    def test_no_new_share_is_begun_after_an_error(self) -> None:
        """At most what the other workers were at."""
        context = self.make_context()
        done = context.alloc(1000, int)

        def kernel(_worker_id: int, index: int, _value: int) -> None:
            if index == 0:
                raise ValueError
            time.sleep(0.002)
            done[index] = 1

        with contextlib.suppress(ValueError):
            context.map(kernel, range(1000), shares=1000)
        assert done.sum() < 500

    def test_error_state_of_the_caller_holds(self) -> None:
        """`numpy.errstate` around a map decides what happens in its kernel."""
        context = self.make_context()
        out = context.alloc(3)

        def kernel(_worker_id: int, index: int, value: float) -> None:
            out[index] = np.float64(1.0) / np.float64(value)

        with np.errstate(divide="raise"):
            _raised(FloatingPointError, context.map, kernel, [1.0, 0.0, 2.0])
        with np.errstate(divide="ignore"):
            context.map(kernel, [1.0, 0.0, 2.0])
        assert out.tolist() == [1.0, np.inf, 0.5]

    def test_system_exit_is_an_error_of_its_item(self) -> None:
        """It ends neither worker nor program."""
        context = self.make_context()

        def kernel(_worker_id: int, index: int, _value: int) -> None:
            if index == 1:
                raise SystemExit(4)

        report = context.map(kernel, range(5), on_error="collect")
        assert [(index, type(error)) for index, error in report.errors] == [(1, SystemExit)]

    def test_a_worker_that_dies_costs_one_item(self) -> None:
        """Its index is known, everything else is done, the next map works."""
        context = self.make_context()
        if not context.can_kill:
            return
        out = context.alloc(100)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            if index == 37:
                os.kill(os.getpid(), signal.SIGKILL)
            out[index] = value + 1

        report = context.map(kernel, range(100), on_error="collect")
        ((index, error),) = report.errors
        assert index == 37
        assert isinstance(error, ndshare.WorkerDiedError)
        assert error.signal_number == signal.SIGKILL
        assert np.count_nonzero(out) == 99
        assert report.done.sum() == 99
        context.map(lambda *_: None, range(10))

    def test_an_item_that_takes_too_long(self) -> None:
        """Only its worker is ended; contexts that cannot do that say so."""
        context = self.make_context()
        out = context.alloc(20)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            if index == 5:
                time.sleep(60)
            out[index] = value + 1

        if not context.can_kill:
            assert "timeout" in str(_raised(ValueError, context.map, kernel, range(20), timeout=0.5))
            return
        report = context.map(kernel, range(20), timeout=0.5, on_error="collect")
        assert [(index, type(error)) for index, error in report.errors] == [(5, TimeoutError)]
        assert np.count_nonzero(out) == 19

    # ------------------------------------------------------------------ reduction, locks, random numbers

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
                sums: _Array = sums,
                largest: _Array = largest,
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

            def kernel(_worker_id: int, index: int, value: float, sums: _Array = sums) -> None:
                sums[index // 16] += value ** np.arange(5)

            context.map(kernel, values)
            results.add(context.reduce(sums).tobytes())
        assert len(results) == 1

    def test_reduce_refuses_other_arrays(self) -> None:
        """It would not know the axis."""
        context = self.make_context()
        assert "alloc" in str(_raised(ValueError, context.reduce, context.alloc((2, 3))))

    def test_additions_under_a_lock_are_exact(self) -> None:
        """All workers into one array."""
        context = self.make_context()
        total, lock = context.alloc(3, int), ndshare.lock()

        def kernel(_worker_id: int, index: int, value: int) -> None:
            with lock:
                total[index % 3] += value

        if not context.can_lock:
            assert "span machines" in str(_raised(TypeError, context.map, kernel, range(3000)))
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

            def kernel(_worker_id: int, index: int, _value: int, out: _Array = out) -> None:
                out[index] = ndshare.item_rng().normal(size=3)

            context.map(kernel, collection, seed=seed)
            drawn.append(out.copy())
        assert drawn[0].tobytes() == drawn[1].tobytes() == drawn[2].tobytes()
        assert len(np.unique(np.concatenate([drawn[0], drawn[3]]))) == 240

    # ------------------------------------------------------------------ around the kernel

    def test_progress_is_monotone_and_reaches_the_end_once(self) -> None:
        """Also after an error."""
        context = self.make_context()
        for n in (0, 1, 500):
            heard: list[tuple[int, int]] = []

            def kernel(_worker_id: int, index: int, _value: int) -> None:
                if index == 3:
                    raise ValueError

            def progress(done: int, total: int, heard: list[tuple[int, int]] = heard) -> None:
                heard.append((done, total))

            context.map(kernel, range(n), on_error="collect", progress=progress)
            assert heard == sorted(set(heard))
            assert heard[-1] == (n, n)

    def test_a_map_inside_a_kernel_runs(self) -> None:
        """In the kernel's own thread, three levels deep."""
        context = self.make_context()
        out = context.alloc((3, 4, 5))

        def outer(_worker_id: int, i: int, _value: int) -> None:
            def middle(_worker_id: int, j: int, _value: int) -> None:
                def inner(worker_id: int, k: int, _value: int) -> None:
                    assert worker_id == 0
                    out[i, j, k] = 100 * i + 10 * j + k

                ndshare.map(inner, range(5))

            ndshare.map(middle, range(4))

        context.map(outer, range(3))
        expected = [[[100 * i + 10 * j + k for k in range(5)] for j in range(4)] for i in range(3)]
        assert out.tolist() == expected

    def test_reports_add_up(self) -> None:
        """Items and busy time per worker."""
        context = self.make_context()
        report = context.map(lambda *_: time.sleep(0.002), range(20))
        assert sum(worker.items for worker in report.workers) == 20
        assert report.busy > 0.03
        assert 1 <= len(report.workers) <= context.num_workers
        assert "20 items" in repr(report)

    def test_wrong_arguments_are_refused_at_the_call(self) -> None:
        """Before anything runs."""
        context = self.make_context()
        cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (TypeError, "kernel", {"kernel": 3}),
            (ValueError, "on_error", {"on_error": "ignore"}),
            (ValueError, "shares", {"shares": 0}),
            (ValueError, "retries", {"retries": -1}),
        ]
        for error_type, word, arguments in cases:
            call = {"kernel": lambda *_: None, "functor": range(3), **arguments}
            assert word in str(_raised(error_type, context.map, **call))
