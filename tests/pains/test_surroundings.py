"""What surrounds a program: start methods, threads, BLAS, notebooks, bars, logs, nesting, other interpreters."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.once

_LAMBDA = "import ndshare\nout = ndshare.alloc(5)\nndshare.map(lambda w, i, v: out.__setitem__(i, v * k), range(5))\n"


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_08_every_start_method(run_script: Any, start: str) -> None:
    """Closures, lambdas and globals of a script work under each start method, without a main guard."""
    out = run_script(
        f"import multiprocessing\nmultiprocessing.set_start_method({start!r})\nk = 3\n{_LAMBDA}"
        "def f(x): return x * k\n"
        "with ndshare.ProcessPoolExecutor(1) as ex: print(out.tolist(), ex.submit(f, 2).result())"
    ).stdout
    assert out == "[0.0, 3.0, 6.0, 9.0, 12.0] 6\n"


def test_09_threads_and_open_files(run_script: Any, tmp_path: Any) -> None:
    """With a live thread and an open HDF5 file, and warnings as errors, a map runs clean."""
    pytest.importorskip("h5py")
    done = run_script(
        f"""
import threading, h5py, numpy as np, ndshare
stop = threading.Event(); threading.Thread(target=stop.wait).start()
with h5py.File({str(tmp_path / "x.h5")!r}, "w") as file:
    file["x"] = np.arange(8.0); file.flush()
    out = ndshare.alloc(8)
    ndshare.map(lambda w, i, v: out.__setitem__(i, v), np.arange(8.0))
    assert (out == file["x"][:]).all()
stop.set()
""",
        interpreter_args=("-W", "error"),
    )
    assert done.stderr == ""


def test_13_threads_of_blas_are_shared_out(run_script: Any) -> None:
    """Each of n workers has cores / n threads of BLAS, at least one; `threads_per_worker` is honoured."""
    run_script(
        """
import os, threadpoolctl, numpy as np, ndshare
def threads(_):
    np.ones((300, 300)) @ np.ones((300, 300))
    return max((p["num_threads"] for p in threadpoolctl.threadpool_info()), default=1)
cores = len(os.sched_getaffinity(0))
with ndshare.ProcessPoolExecutor(cores) as ex:
    assert set(ex.map(threads, range(8))) == {1}
with ndshare.ProcessPoolExecutor(1, threads_per_worker=2) as ex:
    assert ex.submit(threads, 0).result() == 2
"""
    )


@pytest.mark.parametrize("how", ["script", "-c", "stdin"])
def test_16_without_a_main_guard(how: str, tmp_path: Any) -> None:
    """A script without guard, `python -c` and lines read from standard input each run a map of a lambda."""
    source = f"k = 2\n{_LAMBDA}print(out.tolist())\n"
    (tmp_path / "program.py").write_text(source)
    words = {"script": [str(tmp_path / "program.py")], "-c": ["-c", source], "stdin": ["-"]}[how]
    done = subprocess.run(
        [sys.executable, *words],
        input=source if how == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[0.0, 2.0, 4.0, 6.0, 8.0]\n", "")


def test_22_import_brings_nothing_heavy(run_script: Any) -> None:
    """`import ndshare` loads neither multiprocessing's nor others' heavy modules, and workers stay warm."""
    out = run_script(
        """
import numpy, sys
before = set(sys.modules)
import ndshare
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = {"cloudpickle", "tqdm", "threadpoolctl", "multiprocessing", "concurrent", "asyncio", "scipy", "pandas"}
assert not new & heavy, new & heavy
import os
with ndshare.ProcessPoolExecutor(1) as ex: first = ex.submit(os.getpid).result()
with ndshare.ProcessPoolExecutor(1) as ex: second = ex.submit(os.getpid).result()
print(first == second)
"""
    ).stdout
    assert out == "True\n"


def test_23_memory_is_used_again(run_script: Any) -> None:
    """A second array of the same size lies in pages that are there already: next to no page faults."""
    run_script(
        """
import resource, numpy as np, ndshare
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
a = ndshare.empty(1 << 24); a[:] = 1; del a
before = faults()
b = ndshare.empty(1 << 24); b[:] = 2
assert faults() - before < (1 << 27) // 4096 // 10, faults() - before
"""
    )


@pytest.mark.parametrize("context", ["SerialContext()", "ThreadContext(2)", "ProcessContext(2)"])
def test_26_progress_counts_what_is_finished(run_script: Any, context: str) -> None:
    """`progress=callable` gets counts that never fall and reach n of n once."""
    run_script(
        f"""
import time, ndshare
seen = []
ndshare.{context}.map(lambda w, i, v: time.sleep(0.01), range(30), progress=lambda done, of: seen.append((done, of)))
counts = [done for done, of in seen]
assert counts == sorted(counts) and counts.count(30) == 1 and {{of for _, of in seen}} == {{30}}, seen
"""
    )


def test_30_subinterpreters(run_script: Any) -> None:
    """Ndshare works in a program with subinterpreters, and refuses import in others with one readable error."""
    out = run_script(
        """
try: import _interpreters as interpreters
except ImportError: import _xxsubinterpreters as interpreters
import ndshare
one = interpreters.create()
try:
    said = interpreters.run_string(one, "import ndshare")
except Exception as error:
    said = error
print(said is not None and "interpreter" in str(said), float(ndshare.ones(10**6).sum()))
"""
    ).stdout
    assert out == "True 1000000.0\n"


def test_35_logs_and_error_state(run_script: Any) -> None:
    """Records of workers reach the caller's handlers, and `np.errstate` goes with the task."""
    run_script(
        """
import io, logging, numpy as np, ndshare
stream = io.StringIO()
logging.basicConfig(stream=stream, level=logging.INFO, format="%(name)s %(message)s")
def talk(x):
    logging.getLogger("worker").info("item %d", x)
    return float(np.float64(1) / np.float64(x))
with ndshare.ProcessPoolExecutor(1) as ex:
    ex.submit(talk, 1).result()
    with np.errstate(all="raise"):
        assert isinstance(ex.submit(talk, 0).exception(), FloatingPointError)
assert "worker item 1" in stream.getvalue(), stream.getvalue()
"""
    )


def test_37_three_levels_of_maps(run_script: Any) -> None:
    """A map in a map in a map ends, and starts no processes beyond those of the first."""
    run_script(
        """
import os, numpy as np, ndshare
def count(path="/proc"):
    return len([pid for pid in os.listdir(path) if pid.isdigit()])
out = ndshare.alloc(4)
def level3(w, i, v, out): out[i] = v
def level2(w, i, v):
    inner = ndshare.alloc(3); ndshare.map(lambda w, i, v: level3(w, i, v, inner), range(3)); return inner.sum()
def level1(w, i, v):
    inner = ndshare.alloc(3)
    ndshare.map(lambda w2, i2, v2: inner.__setitem__(i2, level2(w2, i2, v2)), range(3)); out[i] = inner.sum()
ndshare.map(level1, range(4))
assert (out == 9).all(), out
"""
    )
