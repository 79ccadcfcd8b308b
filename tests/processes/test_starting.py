"""Programs that start workers: every way to run Python, as real processes without a main guard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel import gone

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90

_PROGRAM = """
import os
import numpy as np
import ndshare

offset = 10

def work(x):
    return x + offset

class Thing:
    def __init__(self, n):
        self.n = n

    def double(self):
        return Thing(2 * self.n)

executor = ndshare.ProcessPoolExecutor(2)
assert executor.submit(work, 1).result() == 11
assert executor.submit(lambda x: work(x) + 1, 1).result() == 12
assert list(executor.map(work, range(5))) == [10, 11, 12, 13, 14]
thing = executor.submit(Thing(4).double).result()
assert type(thing) is Thing and thing.n == 8
assert executor.submit(os.getpid).result() != os.getpid()
assert executor.submit(np.sum, ndshare.ones(100_000)).result() == 100_000
print("works")
"""


def _python(
    *arguments: str, cwd: Path, stdin: str | None = None, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        timeout=_TIMEOUT_S,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_script_without_main_guard_works(run_script: RunScript) -> None:
    """A plain script starts workers and does not run again in them."""
    done = run_script(_PROGRAM, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_script_with_every_warning_an_error_works(run_script: RunScript) -> None:
    """``-W error`` and ``-X dev`` find nothing to complain about, here or in the workers."""
    done = run_script(_PROGRAM, interpreter_args=("-W", "error", "-X", "dev"), timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")
    done = run_script(_PROGRAM, timeout=_TIMEOUT_S, PYTHONWARNINGS="error")
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_python_dash_c_works(tmp_path: Path) -> None:
    """``python -c``."""
    done = _python("-c", _PROGRAM, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_python_from_standard_input_works(tmp_path: Path) -> None:
    """``python - < program``."""
    done = _python("-", cwd=tmp_path, stdin=_PROGRAM)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_python_interactive_works(tmp_path: Path) -> None:
    """``python -i``: functions typed at the prompt, changed, and typed again."""
    typed = """
import ndshare
executor = ndshare.ProcessPoolExecutor(2)
def work(x):
    return x + offset

offset = 10
print("got", executor.submit(work, 1).result())
offset = 20
print("got", executor.submit(work, 1).result())
def work(x):
    return -x

print("got", list(executor.map(work, range(3))))
print("got", executor.submit(undefined))
"""
    done = _python("-i", "-q", cwd=tmp_path, stdin=typed)
    assert [line for line in done.stdout.splitlines() if "got" in line] == [
        "got 11",
        "got 21",
        "got [0, -1, -2]",
    ]
    assert done.stderr.count("Traceback") == 1
    assert "name 'undefined' is not defined" in done.stderr


def test_python_dash_m_works(tmp_path: Path) -> None:
    """``python -m package``, with relative imports of the package."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def triple(x):\n    return 3 * x\n")
    (package / "__main__.py").write_text(
        _PROGRAM
        + """
from .helper import triple
def use(x):
    from . import helper
    return triple(x), helper.triple(x)
assert executor.submit(triple, 2).result() == 6
assert executor.submit(use, 2).result() == (6, 6)
"""
    )
    done = _python("-m", "package", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_zip_application_works(tmp_path: Path) -> None:
    """``python program.pyz``: modules beside the program come out of the archive in workers, too."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "program.pyz", "w") as archive:
        archive.writestr("helper.py", "def triple(x):\n    return 3 * x\n")
        archive.writestr(
            "__main__.py",
            _PROGRAM + "import helper\nassert executor.submit(helper.triple, 2).result() == 6\n",
        )
    done = _python("program.pyz", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_script_beside_modules_named_like_ours_works(tmp_path: Path) -> None:
    """A user's own ``tasks.py`` or ``pool.py`` is not taken for ndshare's."""
    directory = tmp_path / "project"
    directory.mkdir()
    for name in ("hub", "pool", "tasks", "errors", "workers", "_worker", "_zygote", "_heap", "_frames"):
        (directory / f"{name}.py").write_text(f"raise ImportError('the wrong {name}')\n")
    (directory / "program.py").write_text(_PROGRAM)
    done = _python("program.py", cwd=directory)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_thread_starts_an_executor_and_ends(run_script: RunScript) -> None:
    """Workers started from a thread that has ended go on working."""
    done = run_script(
        """
import threading, time
import ndshare

def work(x):
    return x + 1

made = []
def start():
    executor = ndshare.ProcessPoolExecutor(1)
    assert executor.submit(work, 1).result() == 2
    made.append(executor)

thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(0.2)
print(made[0].submit(work, 2).result())
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_open_h5py_file_is_not_disturbed(run_script: RunScript) -> None:
    """A file open for writing stays usable, is not open in workers, and its data travel."""
    pytest.importorskip("h5py")
    done = run_script(
        """
import os
import h5py
import numpy as np
import ndshare

def open_files():
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")]

with h5py.File("data.h5", "w") as file:
    data = file.create_dataset("x", data=np.arange(1000.0))
    with ndshare.ProcessPoolExecutor(2) as executor:
        assert not [name for name in executor.submit(open_files).result() if name.endswith("data.h5")]
        assert executor.submit(np.sum, data[:]).result() == 499500
        data[:10] = executor.submit(np.multiply, data[:10], 2).result()
        assert list(executor.map(np.sum, data[:].reshape(10, 100)))[9] == 94950
with h5py.File("data.h5") as file:
    print(file["x"][9])
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("18.0\n", "")


def test_standard_streams_closed_or_full_do_not_matter(tmp_path: Path) -> None:
    """A daemon that has closed its standard streams can start workers."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.replace('print("works")', 'open("ok", "w").close()')],
        timeout=_TIMEOUT_S,
        cwd=tmp_path,
        env=dict(os.environ),
        check=False,
        close_fds=True,
        preexec_fn=lambda: (os.close(0), os.close(1), os.close(2)),
    )
    assert done.returncode == 0
    assert (tmp_path / "ok").exists()


def test_worker_output_reaches_the_terminal(run_script: RunScript) -> None:
    """What a worker prints, with Python or without, comes out where the script's own output does."""
    done = run_script(
        """
import os, sys
import ndshare
def talk():
    print("from python")
    print("to stderr", file=sys.stderr)
    os.write(1, b"from C\\n")
with ndshare.ProcessPoolExecutor(1) as executor:
    executor.submit(talk).result()
""",
        timeout=_TIMEOUT_S,
    )
    assert sorted(done.stdout.split("\n")) == ["", "from C", "from python"]
    assert done.stderr == "to stderr\n"


def test_pytest_xdist_runs_executors_in_parallel(tmp_path: Path) -> None:
    """Tests under ``pytest -n 2`` can use executors, helper functions in the test file included."""
    (tmp_path / "test_sample.py").write_text(
        """
import os
import ndshare
import pytest

def work(x):
    return x + 1

@pytest.mark.parametrize("n", range(4))
def test_work(n):
    with ndshare.ProcessPoolExecutor(2) as executor:
        assert executor.submit(work, n).result() == n + 1
        assert list(executor.map(work, range(20))) == list(range(1, 21))
        assert executor.submit(lambda: os.getcwd()).result() == os.getcwd()
"""
    )
    done = _python("-m", "pytest", "-q", "-n", "2", "-W", "error", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "4 passed" in done.stdout


_NOTEBOOK = """
import json, sys
import nbclient, nbformat
cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(open("cells.json"))]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[0]["text"], end="")
"""


def test_jupyter_notebook_works(run_script: RunScript, tmp_path: Path) -> None:
    """A notebook: functions, globals and classes of cells, changed and run again."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "import numpy as np, ndshare, enum, dataclasses\nexecutor = ndshare.ProcessPoolExecutor(2)",
        "offset = 10\ndef work(x):\n    return x + offset",
        "assert executor.submit(work, 1).result() == 11",
        "offset = 20\nassert executor.submit(work, 1).result() == 21",
        "def work(x):\n    return -x\nassert list(executor.map(work, range(3))) == [0, -1, -2]",
        (
            "@dataclasses.dataclass\nclass Point:\n    x: int\n"
            "    def mirrored(self):\n        return Point(-self.x)"
        ),
        "p = executor.submit(Point(3).mirrored).result()\nassert isinstance(p, Point) and p == Point(-3)",
        (
            "class Color(enum.Enum):\n    RED = 1\n"
            "assert executor.submit(lambda: Color.RED).result() is Color.RED"
        ),
        (
            "def init(v):\n    global model\n    model = v\ndef use(x):\n    return model + x\n"
            "with ndshare.ProcessPoolExecutor(2, initializer=init, initargs=(5,)) as other:\n"
            "    assert list(other.map(use, range(4))) == [5, 6, 7, 8]"
        ),
        (
            "cache = []\ndef remember(x):\n    cache.append(x)\n    return len(cache)\n"
            "with ndshare.ProcessPoolExecutor(1) as one:\n"
            "    assert [one.submit(remember, n).result() for n in range(3)] == [1, 2, 3]\nassert cache == []"
        ),
        "import asyncio\nassert await asyncio.wrap_future(executor.submit(work, 1)) == -1",
        (
            "class Point:\n    y = 1\n    def get(self):\n        return self.y\n"
            "assert executor.submit(Point().get).result() == 1"
        ),
        (
            "try:\n    executor.submit(lambda: 1 / 0).result()\n"
            "except ZeroDivisionError as e:\n    print('caught', e)"
        ),
        "executor.shutdown()\nprint('works')",
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    assert run_script(_NOTEBOOK, timeout=_TIMEOUT_S).stdout == "works\n"


# ---------------------------------------------------------------------- inside workers

_NESTED = """
import os, sys, time
import numpy as np
import ndshare

def leaf(n):
    return n, os.getpid()

def branch(n):
    with ndshare.ProcessPoolExecutor() as executor:
        return [value for value, _ in executor.map(leaf, range(n))], executor._max_workers

def deep(levels):
    if levels == 0:
        return os.getpid()
    with ndshare.ProcessPoolExecutor(1) as executor:
        return executor.submit(deep, levels - 1).result()

def children():
    mine = os.getpid()
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found[int(entry)] = int(open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[1])
            except OSError:
                pass
    def below(pid):
        while pid in found:
            pid = found[pid]
            if pid == mine:
                return True
    return [pid for pid in found if below(pid)]
"""


def test_nested_executors_work_with_a_bounded_number_of_processes(run_script: RunScript) -> None:
    """A worker may use an executor; by default it has the threads that the worker was given."""
    done = run_script(
        _NESTED
        + """
with ndshare.ProcessPoolExecutor(4) as executor:
    futures = [executor.submit(branch, 5) for _ in range(8)]
    for future in futures:
        values, inner = future.result()
        assert values == [0, 1, 2, 3, 4]
        assert inner == max(1, len(os.sched_getaffinity(0)) // 4), inner
    most = len(children())
    # zygote + 4 workers, each with a zygote and its workers
    assert most <= 1 + 4 * (1 + 1 + inner), most
ndshare.shutdown()
assert not children()
print("works")
""",
        timeout=_TIMEOUT_S,
        NDSHARE_X="1",
    )
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_nested_executors_work_three_levels_deep(run_script: RunScript) -> None:
    """Workers of workers of workers; all of them end with the program, also when it is killed."""
    done = run_script(
        _NESTED
        + """
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(deep, 2).result() not in (None, os.getpid())
print(*children(), flush=True)
os.kill(os.getpid(), 9)
""",
        check=False,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == -9, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 4
    from tests import jobs

    jobs.wait_for(lambda: all(map(gone, pids)))


def test_worker_may_use_multiprocessing(run_script: RunScript) -> None:
    """A task may start processes of the standard library, by any method."""
    done = run_script(
        """
import multiprocessing
import ndshare

def use(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.apply(abs, (-3,))

with ndshare.ProcessPoolExecutor(1) as executor:
    print([executor.submit(use, method).result() for method in ("fork", "spawn", "forkserver")])
""",
        timeout=_TIMEOUT_S,
    )
    assert done.stdout == "[3, 3, 3]\n", done.stderr
