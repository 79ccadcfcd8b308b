"""What a context does when an item fails, takes too long or ends its worker, and what it reports."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import numpy as np

import ndshare
from ndshare.testing._suite import Suite, raised


class Errors(Suite):
    """Errors, deaths and time limits."""

    def test_first_error_is_raised_with_its_index(self) -> None:
        """The original exception, with a note."""
        context = self.make_context()
        out = context.alloc(100)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            if index == 37:
                raise ZeroDivisionError("at thirty-seven")
            out[index] = value

        error = raised(ZeroDivisionError, context.map, kernel, range(100))
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
            raised(FloatingPointError, context.map, kernel, [1.0, 0.0, 2.0])
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
            assert "timeout" in str(raised(ValueError, context.map, kernel, range(20), timeout=0.5))
            return
        report = context.map(kernel, range(20), timeout=0.5, on_error="collect")
        assert [(index, type(error)) for index, error in report.errors] == [(5, TimeoutError)]
        assert np.count_nonzero(out) == 19


class Surroundings(Suite):
    """Progress, maps inside maps, reports, refusals."""

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
            assert word in str(raised(error_type, context.map, **call))
