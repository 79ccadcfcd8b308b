"""What happens around the kernel: progress, maps within, reports, wrong arguments."""

from __future__ import annotations

import time
from typing import Any

import ndshare
from ndshare.testing._suite import Suite, raised


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
