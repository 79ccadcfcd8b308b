"""Where workers come from in programs that are not a plain Python: embedded, frozen, patched, in no directory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ndshare

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

_WORK = """
import os, sys, threading, numpy as np, ndshare
offset = 3.0
def work(x): return float(x.sum()) + offset
def use():
    with ndshare.ProcessPoolExecutor(2) as executor:
        assert list(executor.map(work, [np.ones(100_000), ndshare.ones(10)])) == [100_003.0, 13.0]
        died = executor.submit(os._exit, 3)
        assert isinstance(died.exception(), ndshare.WorkerDiedError) and died.exception().exit_code == 3
        result = executor.submit(np.ones, 200_000).result()
        assert result.sum() == 200_000
    out = ndshare.alloc(10)
    def kernel(worker_id, index, value): out[index] = value
    ndshare.ProcessContext(2, start="pool").map(kernel, np.arange(10.0))
    assert out.sum() == 45.0
"""


@pytest.mark.parametrize("program", ["/bin/true", "", "/nowhere/python3", "None"])
def test_executable_that_is_no_python_is_not_started(run_script: RunScript, program: str) -> None:
    """As in programs that embed Python: the interpreter is found where its library is."""
    value = None if program == "None" else program
    done = run_script(f"import sys\nsys.executable = {value!r}\n{_WORK}\nuse()\nprint('fine')\n")
    assert (done.stdout, done.stderr) == ("fine\n", "")


_LOST = """
import sys
sys.executable = "/usr/bin/qgis-like"
sys.exec_prefix = sys.base_exec_prefix = "/nowhere"
"""


def test_where_there_is_no_interpreter_the_program_is_forked(run_script: RunScript) -> None:
    """Its exit handlers, signal handlers and log handlers stay its own."""
    done = run_script(
        _LOST
        + _WORK
        + """
import atexit, logging, signal
atexit.register(print, "the program ends", flush=True)
signal.signal(signal.SIGTERM, lambda *_: print("told to end"))
logging.basicConfig(format="%(message)s", stream=sys.stdout)
use()
def log(): logging.warning("once"); return repr(signal.getsignal(signal.SIGTERM))
with ndshare.ProcessPoolExecutor(1) as executor:
    print(executor.submit(log).result())
"""
    )
    assert done.stdout == "once\nHandlers.SIG_DFL\nthe program ends\n".replace("Handlers.SIG_DFL", _default())
    assert done.stderr == ""


def _default() -> str:
    import signal

    return repr(signal.SIG_DFL)


def test_where_neither_is_possible_one_sentence_says_so(run_script: RunScript) -> None:
    """It names what was found, the threads that forbid a fork, and what to do."""
    done = run_script(
        _LOST
        + _WORK
        + """
threading.Thread(target=lambda: threading.Event().wait(), name="mine", daemon=True).start()
for _ in range(2):
    try:
        use()
    except ndshare.WorkerError as error:
        assert "qgis-like" in str(error) and "(thread 'mine')" in str(error) and "set_executable" in str(error), error
    else:
        raise AssertionError
import multiprocessing
multiprocessing.set_executable(sys.orig_argv[0])
use()
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_program_that_puts_its_executable_right_is_not_started(run_script: RunScript, tmp_path: Path) -> None:
    """`multiprocessing` may have noted the path of the program that embeds Python before."""
    program = tmp_path / "embedder"
    program.symlink_to(sys.executable)
    done = run_script(
        f"""
import sys
right, sys.executable = sys.executable, {str(program)!r}
import multiprocessing.spawn
sys.executable = right
from ndshare._processes import launcher
assert launcher._interpreter() == right
multiprocessing.set_executable("/bin/echo")
assert launcher._interpreter() == "/bin/echo"
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_interpreter_that_does_not_start_is_named(run_script: RunScript, tmp_path: Path) -> None:
    """With its exit status; an executor asked later tries again."""
    broken = tmp_path / "python3-broken"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    done = run_script(
        f"""
import multiprocessing, ndshare, sys
multiprocessing.set_executable({str(broken)!r})
with ndshare.ProcessPoolExecutor(2) as executor:
    futures = [executor.submit(abs, -1) for _ in range(20)]
    errors = [future.exception() for future in futures]
assert all(isinstance(error, ndshare.WorkerError) for error in errors)
assert any("exit status 7" in str(error) and "python3-broken" in str(error) for error in errors), errors
multiprocessing.set_executable(sys.executable)
import time
time.sleep(5.1)
with ndshare.ProcessPoolExecutor(2) as executor:
    assert executor.submit(abs, -1).result() == 1
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_frozen_program_is_forked_if_it_has_no_threads(run_script: RunScript) -> None:
    """It is never started once more unless it says that it notices."""
    done = run_script(
        f"""
import sys
sys.frozen = True
{_WORK}
print("main")
use()
ndshare.shutdown()
threading.Thread(target=lambda: threading.Event().wait(), name="mine", daemon=True).start()
try:
    use()
except ndshare.WorkerError as error:
    assert "ndshare.freeze_support()" in str(error)
"""
    )
    assert (done.stdout, done.stderr) == ("main\n", "")


_APP = (
    """
import sys, threading, time
"""
    + _WORK
    + """
def main():
    print("main")
    if len(sys.argv) > 1:
        threading.Thread(target=time.sleep, args=(2,), name="mine").start()
    use()
    print("fine")
if __name__ == "__main__":
    SUPPORT
    main()
"""
)


@pytest.mark.once
@pytest.mark.skipif(importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed")
@pytest.mark.parametrize("support", ["ndshare.freeze_support()", "pass"], ids=["with support", "without"])
def test_pyinstaller_program_has_workers(tmp_path: Path, support: str) -> None:
    """A folder with a program and its libraries, started where no Python is found."""
    (tmp_path / "app.py").write_text(_APP.replace("SUPPORT", support))
    source = Path(ndshare.__file__).parents[1]
    subprocess.run(
        [
            sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR", f"--paths={source}",
            "--collect-submodules=ndshare._processes", "--collect-submodules=ndshare._map",
            "--collect-submodules=ndshare._pool", "--collect-submodules=ndshare._transport",
            "--hidden-import=ndshare.default_context", "app.py",
        ],
        cwd=tmp_path, timeout=300, check=True, capture_output=True,
    )  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for arguments in ([], ["threads"]):
        done = subprocess.run(
            [tmp_path / "dist/app/app", *arguments],
            env=environment, timeout=100, check=False, capture_output=True, text=True,
        )  # fmt: skip
        if arguments and support == "pass":
            assert done.stdout == "main\n"
            assert "ndshare.freeze_support()" in done.stderr
        else:
            assert (done.stdout, done.stderr) == ("main\nfine\n", "")
    shutil.rmtree(tmp_path / "build")


@pytest.mark.parametrize(
    "patch", ["from gevent import monkey; monkey.patch_all()", "import eventlet; eventlet.monkey_patch()"]
)
@pytest.mark.parametrize("when", ["before", "after", "in use"])
def test_patched_threads_are_refused_with_a_sentence(run_script: RunScript, patch: str, when: str) -> None:
    """Before or after the import; a program that has patched them later still ends."""
    if importlib.util.find_spec("gevent" if "gevent" in patch else "eventlet") is None:
        pytest.skip("the library is not installed")
    steps = ["import ndshare", patch]
    if when == "before":
        steps.reverse()
    if when == "in use":
        steps.insert(1, "with ndshare.ProcessPoolExecutor(1) as executor: executor.submit(abs, 1).result()")
    done = run_script(
        "\n".join(steps)
        + """
for use in (ndshare.ProcessPoolExecutor, ndshare.ProcessContext().pool):
    try:
        use()
    except ndshare.WorkerError as error:
        assert "has its own" in str(error) and "socket" in str(error)
    else:
        assert IN_USE
print("fine")
""".replace("IN_USE", str(when == "in use")),
        interpreter_args=("-W", "ignore"),
        timeout=60,
    )
    assert done.stdout == "fine\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", ["relative", None])
def test_directory_that_is_gone_before_the_first_worker_stops_nobody(
    run_script: RunScript, path: str | None
) -> None:
    """As in the standard library under fork; what was found below it is found no more."""
    environment = {"PYTHONPATH": os.pathsep.join([path, os.environ["PYTHONPATH"]])} if path else {}
    done = run_script(
        f"""
import os, sys
{_WORK}
os.makedirs("gone"); os.chdir("gone"); os.rmdir("../gone")
sys.path.insert(0, "")
use()
def path(): return sys.path
with ndshare.ProcessPoolExecutor(1) as executor:
    found = executor.submit(path).result()
assert all(os.path.isabs(entry) for entry in found) and "/" not in found, found
print("fine")
""",
        **environment,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
