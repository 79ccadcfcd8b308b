"""ndshare.compat.contextshare keeps what callers of contextshare rely on, and has not its faults."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import ndshare
import seed_programs
from ndshare.compat import contextshare as shared

RunScript = Callable[..., subprocess.CompletedProcess[str]]

# The other systems are too ill-conditioned for their solutions to be compared.
_README = seed_programs.CONTEXTSHARE + "np.testing.assert_allclose(s[0], p[0], rtol=1e-6)\n"


def test_documented_example_runs_with_one_import_line_changed(run_script: RunScript) -> None:
    """The README's program, smaller, and without its main guard."""
    line = {"import contextshare as shared": "from ndshare.compat import contextshare as shared"}
    run_script(seed_programs.changed(_README, line))


def test_documented_example_runs_unchanged_after_install(run_script: RunScript) -> None:
    """The same with the original's own import line."""
    run_script("import ndshare.compat; ndshare.compat.install('contextshare')\n" + _README)


@pytest.fixture
def sm() -> Iterator[shared.SharedMemory]:
    """Return a running one."""
    with shared.SharedMemory({"D": np.arange(6.0).reshape(2, 3), "k": np.array(3)}, nworkers=2) as made:
        yield made


def _module_function(x):
    return D.sum() + x  # noqa: F821 - a name of the workspace


def test_keep_names_are_usable_bare(sm) -> None:
    """In closures, lambdas and functions of a module."""
    sm.register(_module_function)(1)
    sm.register(lambda x: D[x].tolist())(1)  # noqa: F821
    assert sm.evaluate() == [16.0, [3.0, 4.0, 5.0]]


def test_keep_several_functions_share_one_queue_and_evaluate_is_repeatable(sm) -> None:
    """Results are in the order of the calls; an empty queue gives an empty list."""
    add = sm.register(lambda x, y=0: x + y)
    double = sm.register(lambda x: 2 * x)
    for x in range(3):
        assert add(x, y=10) is None
        assert double(x) is None
    assert sm.evaluate() == [10, 0, 11, 2, 12, 4]
    assert sm.evaluate() == []
    double(21)
    assert sm.evaluate() == [42]


def test_keep_calls_begin_with_evaluate_and_sm_call_does_nothing(sm, tmp_path) -> None:
    """A call is noted; what is never evaluated never runs."""
    touch = sm.register(lambda: (tmp_path / "ran").touch())
    touch()
    assert sm() is None
    assert not (tmp_path / "ran").exists()
    sm.evaluate()
    assert (tmp_path / "ran").exists()


def test_keep_tqdm_only_with_progress(run_script: RunScript) -> None:
    """Not even imported otherwise."""
    script = """
        import sys
        from ndshare.compat import contextshare as shared
        with shared.SharedMemory({}, nworkers=1) as sm:
            f = sm.register(lambda: 1)
            f(); f()
            assert sm.evaluate() == [1, 1] and "tqdm" not in sys.modules
            f()
            assert sm.evaluate(progress=True) == [1] and "tqdm" in sys.modules
    """
    done = run_script(textwrap.dedent(script))
    assert "1/1" in done.stderr


def test_keep_cleanup_on_exit() -> None:
    """Workers and arrays are gone with the block, also if it fails."""
    array = ndshare.share(np.ones(200_000))
    gone = weakref.ref(array)
    with pytest.raises(ZeroDivisionError), shared.SharedMemory({"a": array}, nworkers=1) as sm:
        pid = sm.register(os.getpid)
        pid()
        [worker] = sm.evaluate()
        raise ZeroDivisionError
    del array, sm, pid
    assert gone() is None
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{worker}")


def test_gone_1_nothing_is_shared(sm) -> None:
    """All workers see the same memory: what one call writes, a later one reads."""

    def write(value):
        D[0, 0] = value  # noqa: F821

    before = sm._workspace["D"]
    sm.register(write)(77.0)
    sm.evaluate()
    assert ndshare.is_shared(before)
    assert before[0, 0] == 77.0
    sm.register(write)(0.0)
    sm.evaluate()


def test_gone_2_import_sets_the_global_start_method(run_script: RunScript) -> None:
    """Importing patches nothing."""
    run_script(
        "import multiprocessing as mp\nfrom ndshare.compat import contextshare\n"
        "assert mp.get_start_method(allow_none=True) is None"
    )
    assert multiprocessing.get_start_method(allow_none=True) in (None, "fork", "forkserver", "spawn")


def test_gone_3_workers_start_on_entering_and_stay() -> None:
    """They are there before the first evaluation, and the same ones for the second."""
    with shared.SharedMemory({"a": np.ones(3)}, nworkers=2) as sm:
        pid = sm.register(os.getpid)
        seen = set()
        for _ in range(2):
            for _ in range(20):
                pid()
            seen |= set(sm.evaluate())
        assert len(seen) <= 2
        assert os.getpid() not in seen


def test_gone_4_segments_leak(run_script: RunScript) -> None:
    """No name appears in /dev/shm, after many evaluations and a failing block."""
    script = """
        import os
        import numpy as np
        from ndshare.compat import contextshare as shared
        before = set(os.listdir("/dev/shm"))
        with shared.SharedMemory({"a": np.ones(100_000)}, nworkers=1) as sm:
            f = sm.register(lambda: a.sum())
            for _ in range(5):
                f()
                sm.evaluate()
            mine = [n for n in set(os.listdir("/dev/shm")) - before if "ndshare" in n or "psm" in n]
            assert not mine, mine
        try:
            shared.SharedMemory({"a": np.array([{}])}, nworkers=1).__enter__()
        except TypeError:
            pass
    """
    assert run_script(textwrap.dedent(script)).stderr == ""


def test_gone_5_failing_task_leaves_the_queue(sm) -> None:
    """The error comes once; the next evaluation has only its own calls."""
    bad, good = sm.register(lambda: 1 / 0), sm.register(lambda: 5)
    bad()
    with pytest.raises(ZeroDivisionError):
        sm.evaluate()
    good()
    assert sm.evaluate() == [5]


def test_gone_6_arrays_of_no_dimensions_and_no_elements() -> None:
    """They are arrays like others."""
    with shared.SharedMemory({"zero": np.array(4.5), "none": np.zeros((0, 3))}, nworkers=1) as sm:
        sm.register(lambda: (zero.item(), none.shape, zero.shape))()  # noqa: F821
        assert sm.evaluate() == [(4.5, (0, 3), ())]


def test_gone_7_array_named_functions() -> None:
    """Any name of a variable will do."""
    with shared.SharedMemory({"FUNCTIONS": np.arange(3)}, nworkers=1) as sm:
        sm.register(lambda: FUNCTIONS.tolist())()  # noqa: F821
        assert sm.evaluate() == [[0, 1, 2]]


def test_gone_8_dead_worker_hangs(sm) -> None:
    """It is an error that says so, and the next evaluation works."""
    sm.register(lambda: os.kill(os.getpid(), signal.SIGKILL))()
    with pytest.raises(ndshare.WorkerDiedError):
        sm.evaluate()
    sm.register(lambda: D.shape)()  # noqa: F821
    assert sm.evaluate() == [(2, 3)]


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 1_000_003])
def test_gone_9_sizes_off_the_page(count: int) -> None:
    """Bytes arrive as they are, whatever the size of a page."""
    values = np.arange(count, dtype=np.uint32).view(np.uint8)[:count]
    with shared.SharedMemory({"values": values}, nworkers=1) as sm:
        sm.register(lambda: (values.nbytes, int(values.sum())))()
        assert sm.evaluate() == [(count, int(values.sum()))]


def test_gone_10_mapped_array_dangles() -> None:
    """The shared array outlives the block, for whoever kept it."""
    with shared.SharedMemory({"a": np.arange(100_000)}, nworkers=1) as sm:
        kept = sm._workspace["a"]
        sm.register(lambda: a)()  # noqa: F821
        [result] = sm.evaluate()
    del sm
    assert kept.sum() == result.sum() == 4_999_950_000


def test_gone_11_dependencies_are_listed() -> None:
    """What it needs came with ndshare."""
    import importlib.metadata

    if "ndshare" not in {dist.name for dist in importlib.metadata.distributions()}:
        pytest.skip("ndshare runs from its source folder")
    wanted = " ".join(importlib.metadata.requires("ndshare") or ())
    assert all(name in wanted for name in ("cloudpickle", "numpy", "tqdm")), sys.path
