"""ndshare.compat.contextshare keeps what callers of contextshare rely on, and has not its faults."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import textwrap
import time
import tomllib
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ndshare
from ndshare.bench.memory import tree
from ndshare.compat import contextshare as shared
from tests import seed_programs

pytestmark = pytest.mark.once

_ROOT = Path(__file__).parents[2]
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


def test_keep_functions_are_closures_and_classes_of_anywhere(sm) -> None:
    """What the standard pickle refuses: a closure over a local class, a partial of a lambda, a method."""

    class Scale:
        def __init__(self, factor):
            self.factor = factor

        def total(self):
            return self.factor * D.sum()  # noqa: F821

    scale = Scale(2.0)
    sm.register(lambda: scale.factor)()
    sm.register(functools.partial(lambda x, y: x + y * int(k), 1))(y=5)  # noqa: F821
    sm.register(scale.total)()
    assert sm.evaluate() == [2.0, 16, 30.0]


def test_keep_notebook_cells_work(run_script: RunScript, tmp_path: Path) -> None:
    """A function of one cell, called in another; defined anew with the same name; a bar."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from tests.processes.test_starting import _NOTEBOOK

    cells = [
        "import numpy as np\nfrom ndshare.compat import contextshare as shared",
        "sm = shared.SharedMemory({'x': np.arange(3)}, 2).__enter__()",
        "@sm.register\ndef power(n):\n    return (x**n).tolist()",
        "for n in (1, 2):\n    power(n)\nassert sm.evaluate(progress=True) == [[0, 1, 2], [0, 1, 4]]",
        "@sm.register\ndef power(n):\n    return int(-x.sum())",
        "power(1)\nassert sm.evaluate() == [-3]\nsm.__exit__(None, None, None)\nprint('works')",
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    assert run_script(_NOTEBOOK).stdout == "works\n"


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
    """Neither importing nor running it: the program's own choice can still be made, and holds."""
    script = """
        import multiprocessing as mp
        import numpy as np
        from ndshare.compat import contextshare as shared
        with shared.SharedMemory({"a": np.ones(1)}, nworkers=1) as sm:
            sm.register(lambda: a.sum())()
            assert sm.evaluate() == [1.0]
        assert mp.get_start_method(allow_none=True) is None
        mp.set_start_method("spawn")
        with shared.SharedMemory({"a": np.ones(1)}, nworkers=1) as sm:
            sm.register(lambda: a.sum())()
            assert sm.evaluate() == [1.0]
        assert mp.get_start_method() == "spawn"
    """
    run_script(textwrap.dedent(script))


def test_gone_3_workers_start_on_entering_and_stay() -> None:
    """They are there before the first evaluation, and the same ones for the second."""
    with shared.SharedMemory({"a": np.ones(3)}, nworkers=2) as sm:
        there = set(tree(os.getpid()))
        pid = sm.register(lambda: (time.sleep(0.02), os.getpid())[1])
        for _ in range(2):
            for _ in range(20):
                pid()
            seen = set(sm.evaluate())
            assert len(seen) == 2
            assert seen < there
            assert os.getpid() not in seen


def test_gone_4_segments_leak(run_script: RunScript) -> None:
    """Neither names nor descriptors nor memory, after many evaluations and failing blocks."""
    script = """
        import gc, os, time
        import numpy as np
        import ndshare
        from ndshare.compat import contextshare as shared

        def there():
            gc.collect()
            stats = ndshare.stats()
            return len(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd")), stats.own_segments, stats.own_bytes

        def no_more_than(before):
            deadline = time.monotonic() + 20  # the last message of a worker that ends may be on its way
            while any(now > then for now, then in zip(there(), before)):
                assert time.monotonic() < deadline, (before, there())
                time.sleep(0.01)

        outside = there()
        with shared.SharedMemory({"a": np.ones(100_000)}, nworkers=1) as sm:
            f = sm.register(lambda x: a.sum() + x.size)
            for number in range(20):
                f(np.ones(100_000))
                assert sm.evaluate() == [200_000]
                if number == 4:
                    early = there()
            no_more_than(early)
            assert there()[0] == outside[0]
        for bad in (np.array([{}]), np.ones(3, dtype=object)):
            before = there()
            try:
                shared.SharedMemory({"good": np.ones(100_000), "bad": bad}, nworkers=1).__enter__()
            except TypeError:
                no_more_than(before)
            else:
                raise AssertionError("entered")
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
    """Bytes arrive as they are, whatever the size of a page; so do functions of any size."""
    values = np.arange(count, dtype=np.uint32).astype(np.uint8)
    ballast = bytes(count)
    with shared.SharedMemory({"vector": values}, nworkers=1) as sm:
        sm.register(lambda: (vector.nbytes, int(vector.sum()), len(ballast)))()  # noqa: F821
        assert sm.evaluate() == [(count, int(values.sum()), count)]


def test_gone_10_mapped_array_dangles() -> None:
    """The shared array outlives the block, for whoever kept it."""
    with shared.SharedMemory({"a": np.arange(100_000)}, nworkers=1) as sm:
        kept = sm._workspace["a"]
        sm.register(lambda: a)()  # noqa: F821
        [result] = sm.evaluate()
    del sm
    assert kept.sum() == result.sum() == 4_999_950_000


_IN_USE = """
import sys

def installed():
    "Top-level modules that are loaded from where packages are installed."
    names = set()
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if "site-packages" in path or "dist-packages" in path:
            names.add(name.partition(".")[0])
    return names

before = installed()  # what the environment has every interpreter import
from ndshare.compat import contextshare as shared

with shared.SharedMemory({"a": [1.0]}, nworkers=1) as sm:
    class Local:
        "Needs cloudpickle."

    sm.register(lambda: (Local(), installed())[1])()
    [there] = sm.evaluate(progress=True)
print(*sorted((installed() | there) - before - {"ndshare"}))
"""


def _required(project: dict[str, list[str]]) -> set[str]:
    """Return the names of the distributions that pip installs with a project."""
    wanted, found = list(project["dependencies"]), set()
    while wanted:
        text, _, condition = wanted.pop().partition(";")
        name = re.split(r"[^\w.-]", text.strip())[0].lower().replace("_", "-")
        if "extra ==" not in condition and name not in found:
            found.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # such as colorama on Windows
                wanted += importlib.metadata.requires(name) or ()
    return found


def test_gone_11_files_and_dependencies_are_listed(run_script: RunScript) -> None:
    """The files that the build reads are there, and whatever a program with a bar imports is a dependency."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    for file in (project["readme"], *project["license-files"]):
        assert (_ROOT / file).stat().st_size > 0
    of_module = importlib.metadata.packages_distributions()
    in_use = run_script(_IN_USE).stdout.split()
    used = {name.lower().replace("_", "-") for module in in_use for name in of_module.get(module, [])}
    assert {"numpy", "tqdm"} <= used
    assert used <= _required(project)
    fewer = [text for text in project["dependencies"] if not text.startswith("numpy")]
    assert not used <= _required({"dependencies": fewer})  # one missing is noticed
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it runs from its source folder
        stated = importlib.metadata.requires("ndshare") or ()
        assert {re.sub(r"\s", "", text) for text in project["dependencies"]} <= {
            re.sub(r"\s", "", text) for text in stated
        }
