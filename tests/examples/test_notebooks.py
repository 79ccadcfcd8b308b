"""The notebooks of examples/: they run with real kernels, show what they are to show, and can be interrupted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for _name in ("nbclient", "ipykernel", "ipywidgets", "matplotlib"):
    pytest.importorskip(_name)

pytestmark = pytest.mark.once

_TOP = Path(__file__).parents[2]
_NOTEBOOKS = sorted((_TOP / "examples").glob("*.ipynb"))
_NEEDS = {"cluster": "distributed", "from_joblib": "joblib"}
#: Those that draw bars, and how many.
_BARS = {"cluster": 1, "executor": 1, "from_joblib": 2, "map": 1, "workspace": 1}

notebooks = pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)


def _code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def _shown(path: Path) -> list[dict[str, Any]]:
    return [output for cell in _code(path) for output in cell["outputs"]]


def _kinds(path: Path) -> list[list[str]]:
    """Of what is shown, streams excepted, which come in as many parts as they please."""
    return [sorted(output["data"]) for output in _shown(path) if "data" in output]


def _bars(path: Path) -> list[str]:
    """What stands at the right of each bar: ``480/480 [00:01<00:00, …]``."""
    widgets = json.loads(path.read_text())["metadata"].get("widgets", {})
    states = widgets.get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    values = [state["state"].get("value", "") for state in states.values()]
    return [value.strip() for value in values if isinstance(value, str) and re.search(r"\d/\d", value)]


def _check(path: Path) -> None:
    """A notebook that has run: every cell, no error, a picture, bars that came to their end."""
    assert [cell["execution_count"] for cell in _code(path)] == list(range(1, len(_code(path)) + 1))
    assert [output for output in _shown(path) if output["output_type"] == "error"] == []
    assert any("image/png" in output.get("data", {}) for output in _shown(path))
    bars = [re.match(r"(\d+)/(\d+)", bar) for bar in _bars(path)]
    assert len(bars) == _BARS.get(path.stem, 0)
    for bar in bars:
        assert bar is not None
        assert bar[1] == bar[2]


def test_there_is_one_for_each_face() -> None:
    """And one for those who come from joblib."""
    faces = {"cluster", "executor", "from_joblib", "map", "queue", "shared_dict", "workspace"}
    assert {path.stem for path in _NOTEBOOKS} == faces
    for path in _NOTEBOOKS:
        assert f"`docs/{path.stem}.md`" in path.read_text() or path.stem == "from_joblib"


@notebooks
def test_what_is_kept_has_outputs_and_pictures(path: Path) -> None:
    """As they are read without being run; small, and without a machine's paths."""
    _check(path)
    assert path.stat().st_size < 300_000
    text = json.dumps(_shown(path))
    assert re.findall(r"/(?:home|root|tmp|usr)/", text) == []


@notebooks
def test_notebook_runs_with_a_real_kernel(path: Path, tmp_path: Path) -> None:
    """Its own assertions hold, and it shows the same kinds of things."""
    pytest.importorskip(_NEEDS.get(path.stem, "ndshare"))
    environment = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    done = subprocess.run(
        [sys.executable, _TOP / "scripts" / "notebooks", "--out", tmp_path, path.stem],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / path.name
    _check(made)
    assert _kinds(made) == _kinds(path)


#: Each cell says "begun" and waits; it is interrupted, ends with one KeyboardInterrupt, and what comes after works.
_INTERRUPT = """
import sys, time
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="python3")

def run(cell, interrupt):
    tracebacks = []
    def hear(message):
        content = message["content"]
        if message["msg_type"] == "stream" and "begun" in content["text"] and interrupt:
            time.sleep(0.4)
            manager.interrupt_kernel()
        elif message["msg_type"] == "error":
            tracebacks.append(content["ename"])
    reply = client.execute_interactive(cell, timeout=90, output_hook=hear, allow_stdin=False)
    return reply["content"]["status"], tracebacks

try:
    for cell, interrupt in CELLS:
        told = run(cell, interrupt)
        if told != (("error", ["KeyboardInterrupt"]) if interrupt else ("ok", [])):
            sys.exit(f"{cell}\\n{told}")
finally:
    client.stop_channels()
    manager.shutdown_kernel()  # not by a signal: semaphores of its own would stay
"""

_BEGIN = """
import time
import numpy as np
import ndshare
def slow(worker_id, index, value):
    time.sleep(0.2)
def quick(worker_id, index, value):
    out[index] = value
out = ndshare.alloc(20)
d = ndshare.SharedDict({"x": np.zeros(3)})
q = ndshare.Queue()
executor = ndshare.ProcessPoolExecutor(2)
workspace = ndshare.Workspace({"y": np.ones(3)}, 2).__enter__()
@workspace.register
def wait(seconds):
    time.sleep(seconds)
    return float(y.sum())
"""

_WAITING = {
    "map": (
        "ndshare.map(slow, range(1000), progress=True)",
        "ndshare.map(quick, range(20)); assert out[19] == 19",
    ),
    "executor": (
        "executor.submit(time.sleep, 30).result()",
        "assert executor.submit(pow, 2, 3).result() == 8",
    ),
    "executor.map": (
        "list(executor.map(time.sleep, [0.2] * 500, progress=True))",
        "assert list(executor.map(abs, [-1])) == [1]",
    ),
    "queue": ("q.get()", "q.put(np.ones(5)); assert q.get().sum() == 5"),
    "dict": ("d.wait('x', d.version('x'))", "d['x'] = 2; assert (d['x'] == 2).all()"),
    "workspace": (
        "wait(30); workspace.evaluate(progress=True)",
        "wait(0); assert workspace.evaluate()[-1] == 3.0",
    ),
}

_END = "workspace.__exit__(None, None, None); executor.shutdown(); q.close(); d.close()"


def test_interrupt_of_a_cell_ends_it_once_and_what_comes_after_works(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The stop button, in each face."""
    cells: list[tuple[str, bool]] = [(_BEGIN, False)]
    for waiting, after in _WAITING.values():
        cells += [(f"print('begun', flush=True)\n{waiting}", True), (after, False)]
    cells.append((_END, False))
    done = run_script(f"CELLS = {cells!r}\n{_INTERRUPT}", check=False, PYDEVD_DISABLE_FILE_VALIDATION="1")
    assert done.returncode == 0, done.stdout + done.stderr
