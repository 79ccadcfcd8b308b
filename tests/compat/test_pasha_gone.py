"""What users of pasha want gone is gone from ndshare.compat.pasha."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from collections.abc import Callable

import numpy as np
import pytest

import ndshare
from ndshare.compat import pasha as psh

pytestmark = pytest.mark.once

RunScript = Callable[..., subprocess.CompletedProcess[str]]


def _writer(out):
    def kernel(worker_id, index, value):
        out[index] = value

    return kernel


def test_gone_dead_worker_hangs_map() -> None:
    """It is an error that names the item; the context goes on."""
    ctx = psh.ProcessContext(2)
    out = ctx.alloc(20)

    def kernel(worker_id, index, value):
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        out[index] = value

    with pytest.raises(ndshare.WorkerDiedError) as caught:
        ctx.map(kernel, range(20))
    assert caught.value.signal_number == signal.SIGKILL
    ctx.map(_writer(out), range(20))
    assert out.tolist() == list(range(20))


def test_gone_static_shares() -> None:
    """Uneven items keep all workers busy: whoever has the first does not get half of the others."""
    import time

    ctx = psh.ProcessContext(2)
    owner = ctx.alloc(40, int, fill=-1)

    def kernel(worker_id, index, value):
        time.sleep(0.3 if index == 0 else 0.002)
        owner[index] = worker_id

    ctx.map(kernel, range(40))
    assert set(owner) == {0, 1}
    assert (owner == owner[0]).sum() < 20


def test_gone_pool_per_map_and_fork_only(run_script: RunScript) -> None:
    """A kernel that uses arrays and numbers is run by the same warm workers each time."""
    script = """
        import os
        import numpy as np
        from ndshare.compat import pasha as psh
        from os import getpid
        ctx = psh.ProcessContext(1)
        pids = ctx.alloc(3, int)
        def kernel(worker_id, index, value):
            pids[index] = getpid()
        seen = set()
        for _ in range(3):
            ctx.map(kernel, np.arange(3))
            seen |= set(pids.tolist())
        assert len(seen) == 1 and os.getpid() not in seen, seen
    """
    run_script(textwrap.dedent(script))


def test_gone_zero_workers_on_one_cpu(run_script: RunScript) -> None:
    """At least one."""
    script = """
        import os
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        from ndshare.compat import pasha as psh
        assert psh.ProcessContext().num_workers == psh.ThreadContext().num_workers == 1
        out = psh.alloc(3)
        def kernel(worker_id, index, value):
            out[index] = value
        psh.map(kernel, [1, 2, 3])
        assert out.tolist() == [1, 2, 3]
    """
    run_script(textwrap.dedent(script))


def test_gone_writes_to_other_arrays_are_lost_silently() -> None:
    """They are still lost, and a warning says so by name."""
    ctx = psh.ProcessContext(2)
    ordinary = np.zeros(10)

    def kernel(worker_id, index, value):
        ordinary[index] = value

    with pytest.warns(ndshare.SilentWriteWarning, match="ordinary"):
        ctx.map(kernel, range(1, 11))
    assert not ordinary.any()


@pytest.mark.parametrize("kind", [psh.SerialContext, psh.ThreadContext])
def test_gone_alloc_from_another_context_is_lost(kind) -> None:
    """What any context allocates, processes write to: EXtra mixes them exactly so."""
    psh.set_default_context(kind(2))
    try:
        out = psh.alloc(10, fill=np.nan)
    finally:
        psh._default_context = None
    psh.ProcessContext(2).map(_writer(out), range(10))
    assert out.tolist() == list(range(10))


@pytest.mark.parametrize("kind", [psh.SerialContext, psh.ThreadContext, psh.ProcessContext])
def test_gone_fill_with_an_array_and_of_no_dimensions(kind) -> None:
    """As documented."""
    ctx = kind(2)
    assert ctx.alloc((2, 3), fill=np.arange(3)).tolist() == [[0, 1, 2]] * 2
    assert ctx.alloc((), fill=4).item() == 4
    assert ctx.alloc((), int).shape == ()
    assert ctx.alloc((0, 3), fill=1).shape == (0, 3)


def add_one(array):
    """Write to an argument."""
    array += 1


def test_gone_pickling_an_allocated_array_copies() -> None:
    """It travels to an executor's workers as the same memory."""
    out = psh.ProcessContext(2).alloc(1000)
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(add_one, out).result()
    assert (out == 1).all()


def test_gone_nested_processes_are_refused() -> None:
    """A map inside a kernel runs in that worker."""
    ctx = psh.ProcessContext(2)
    out = ctx.alloc((3, 4))

    def outer(worker_id, row, value):
        def inner(worker_id, column, value):
            out[row, column] = value

        ctx.map(inner, [10 * row + column for column in range(4)])

    ctx.map(outer, range(3))
    assert out.tolist() == [[10 * row + column for column in range(4)] for row in range(3)]


def test_gone_no_progress_timeout_or_chunking() -> None:
    """The options of `ndshare.MapContext.map` are those of `map` here."""
    ctx = psh.ProcessContext(2)
    out = ctx.alloc(10)
    calls: list[tuple[int, int]] = []
    report = ctx.map(
        _writer(out), range(10), shares=2, progress=lambda done, total: calls.append((done, total))
    )
    assert report.done.all()
    assert calls[-1] == (10, 10)

    def stuck(worker_id, index, value):
        import time

        time.sleep(60 if index == 1 else 0)

    report = ctx.map(stuck, range(4), timeout=0.3, on_error="collect")
    assert [(index, type(error)) for index, error in report.errors] == [(1, TimeoutError)]


def test_gone_no_blas_limits(run_script: RunScript) -> None:
    """Each of two workers has its part of the processors, and the caller keeps its own."""
    script = """
        import os
        import numpy as np, threadpoolctl
        from ndshare.compat import pasha as psh
        def threads():
            return max([pool["num_threads"] for pool in threadpoolctl.threadpool_info()], default=1)
        before = threads()
        ctx = psh.ProcessContext(len(os.sched_getaffinity(0)))
        each = ctx.alloc(4, int)
        def kernel(worker_id, index, value):
            each[index] = threads()
        ctx.map(kernel, range(4))
        assert each.tolist() == [1] * 4, each
        assert threads() == before
    """
    run_script(textwrap.dedent(script))


@pytest.mark.parametrize("wrong", [3, None, psh.ProcessContext])
def test_gone_any_object_as_default_context(wrong) -> None:
    """Only a context, or something with its methods."""
    with pytest.raises(TypeError, match="set_default_context takes a context"):
        psh.set_default_context(wrong)
