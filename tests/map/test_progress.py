"""Progress: calls and bars, in a terminal, a file and a notebook; nothing of them stays."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ndshare
from ndshare._system.board import Board

pytestmark = pytest.mark.once

_CONTEXTS: dict[str, Callable[[], ndshare.MapContext]] = {
    "serial": ndshare.SerialContext,
    "threads": lambda: ndshare.ThreadContext(2),
    "pool": lambda: ndshare.ProcessContext(2),
    "fork": lambda: ndshare.ProcessContext(2, start="fork"),
}

_SCRIPT_CONTEXTS = """
import sys, threading, time
import ndshare
context = {
    "serial": ndshare.SerialContext,
    "threads": lambda: ndshare.ThreadContext(2),
    "pool": lambda: ndshare.ProcessContext(2),
    "fork": lambda: ndshare.ProcessContext(2, start="fork"),
}[sys.argv[1]]()
def work(worker_id, index, value):
    time.sleep(0.002)
    if value == 170:
        raise ValueError("at 170")
"""

kinds = pytest.mark.parametrize("kind", _CONTEXTS)


def _frames(text: str) -> list[str]:
    """What a bar has shown, in order."""
    return [frame for frame in re.split(r"[\r\n]+", text) if frame.strip()]


# ---------------------------------------------------------------------- a function


@kinds
def test_function_hears_of_every_item_and_of_the_end_once(kind: str) -> None:
    """(done, total), growing; n of n once; failed items count."""
    heard: list[tuple[int, int]] = []

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        time.sleep(0.003)
        if index == 11:
            raise ValueError

    def progress(done: int, total: int) -> None:
        heard.append((done, total))

    _CONTEXTS[kind]().map(kernel, range(200), on_error="collect", progress=progress)
    assert heard == sorted(set(heard))
    assert heard[0][0] == 0
    assert heard[-1] == (200, 200)
    assert len(heard) > 3
    assert {total for _, total in heard} == {200}


@kinds
def test_function_never_hears_of_an_end_that_an_error_prevented(kind: str) -> None:
    """Of a range and of a stream."""

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 30:
            raise ValueError
        time.sleep(0.001)

    for collection in (range(1000), iter(range(1000))):
        heard: list[tuple[int, int]] = []
        with pytest.raises(ValueError):
            _CONTEXTS[kind]().map(kernel, collection, progress=lambda *pair, heard=heard: heard.append(pair))
        assert all(done < total for done, total in heard)


@kinds
def test_function_hears_of_the_end_although_a_count_is_short(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the death of a worker that had noted its item as done, but not yet counted it."""
    monkeypatch.setattr(Board, "finished", lambda board, count=Board.finished: max(0, count(board) - 1))
    heard: list[tuple[int, int]] = []
    _CONTEXTS[kind]().map(lambda *_: None, range(50), progress=lambda *pair: heard.append(pair))
    assert heard[-1] == (50, 50)
    assert heard.count((50, 50)) == 1


@kinds
def test_function_that_raises_ends_the_map(kind: str) -> None:
    """Its error is the caller's; the context goes on."""
    context = _CONTEXTS[kind]()
    out = context.alloc(200)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        time.sleep(0.001)
        out[index] = value

    def progress(done: int, _total: int) -> None:
        if done:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        context.map(kernel, range(200), progress=progress)
    context.map(kernel, range(200))
    assert out.tolist() == list(range(200))


@pytest.mark.parametrize("wrong", ["yes", 1, 2.5])
def test_progress_that_is_neither_true_nor_callable_is_refused(wrong: object) -> None:
    """At the call."""
    with pytest.raises(TypeError, match="progress"):
        ndshare.SerialContext().map(print, range(3), progress=wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- bars


@kinds
def test_bar_in_a_file_ends_at_n_of_n_once(kind: str, run_script) -> None:
    """Redirected output has frames of text, the last one of all items, and a line break."""
    done = run_script(
        _SCRIPT_CONTEXTS + "context.map(work, range(150), progress=True)\nprint(threading.enumerate())", kind
    )
    frames = _frames(done.stderr)
    assert frames[0].startswith("  0%")
    assert "| 150/150 [" in frames[-1]
    assert len([frame for frame in frames if "150/150" in frame]) == 1
    assert done.stderr.endswith("\n")
    assert "Monitor" not in done.stdout
    assert done.stdout.count("started") <= 2  # the main thread, and that of the pool


@kinds
def test_bar_of_a_stream_has_no_total(kind: str, run_script) -> None:
    """Only how many; also if there is nothing at all."""
    done = run_script(
        _SCRIPT_CONTEXTS + "context.map(work, iter(range(150)), progress=True)\n"
        "print('---', file=sys.stderr, flush=True)\ncontext.map(work, iter(()), progress=True)",
        kind,
    )
    some, none = done.stderr.split("---\n")
    frames = _frames(some)
    assert frames[-1].startswith("150item [")
    assert "%" not in some
    assert some.endswith("\n")
    assert _frames(none)[-1].startswith("0item [")
    assert none.endswith("\n")


@kinds
@pytest.mark.parametrize("collection", ["range(200)", "iter(range(200))"])
def test_bar_is_closed_before_an_error_is_shown(kind: str, collection: str, run_script) -> None:
    """The traceback begins on a line of its own, and the bar is where it was."""
    done = run_script(_SCRIPT_CONTEXTS + f"context.map(work, {collection}, progress=True)", kind, check=False)
    assert done.returncode == 1
    lines = re.split(r"[\r\n]+", done.stderr)
    bars = [number for number, line in enumerate(lines) if "item/s]" in line]
    others = [number for number, line in enumerate(lines) if line.strip() and "item/s]" not in line]
    assert max(bars) < min(others)
    assert "200/200" not in done.stderr
    assert "ValueError: at 170" in lines


@kinds
@pytest.mark.parametrize("collection", ["range(10_000)", "iter(range(10_000))"])
def test_bar_is_closed_after_an_interrupt(kind: str, collection: str, run_script) -> None:
    """No bar is left over, the next one is drawn in the first line."""
    done = run_script(
        _SCRIPT_CONTEXTS
        + f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
def slow(worker_id, index, value):
    time.sleep(0.002)
    if index == 100 and worker_id >= 0:
        os.kill(parent, signal.SIGINT)
parent = os.getpid()
try:
    context.map(slow, {collection}, progress=True)
except KeyboardInterrupt:
    print("\\ninterrupted", file=sys.stderr, flush=True)
from tqdm.auto import tqdm
assert not [bar for bar in getattr(tqdm, "_instances", ()) if not bar.disable], list(tqdm._instances)
context.map(work, range(50), progress=True)
""",
        kind,
    )
    before, after = done.stderr.split("interrupted\n")
    assert before.endswith("\n\n")  # one of close, one of the script
    assert "10000/10000" not in before
    assert "50/50" in _frames(after)[-1]
    assert "\x1b[A" not in after  # nothing is above it


def test_bar_in_a_terminal(tmp_path: Path) -> None:
    """Drawn over itself in one line, as wide as the terminal."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT_CONTEXTS + "context.map(work, range(150), progress=True)")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 60))
    environment = dict(os.environ)
    environment["PYTHONPATH"] = str(Path(ndshare.__file__).parent.parent)
    process = subprocess.Popen([sys.executable, str(script), "pool"], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        shown += data
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert text.count("\n") == 1
    assert "150/150" in _frames(text)[-1]
    assert max(map(len, _frames(text))) <= 60


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_bar_starts_no_process_and_changes_no_other_bar(method: str, run_script) -> None:
    """The lock of tqdm would start one under these methods; bars of the user keep their monitor."""
    run_script(f"""
import multiprocessing, os
multiprocessing.set_start_method({method!r})
import ndshare
from tqdm.auto import tqdm
before = tqdm.monitor_interval
ndshare.SerialContext().map(lambda *_: None, range(5), progress=True)
assert tqdm.monitor_interval == before
assert tqdm.monitor is None
children = open(f"/proc/self/task/{{os.getpid()}}/children").read().split()
assert not children, children
""")


def test_map_with_a_bar_may_fork_afterwards() -> None:
    """A bar leaves no thread, so what cannot be pickled is still inherited."""
    lock = threading.Lock()
    report = ndshare.ProcessContext(2).map(lambda *_: lock.locked(), range(5), progress=True)
    again = ndshare.ProcessContext(2).map(lambda *_: lock.locked(), range(5), progress=True)
    assert report.start_method == again.start_method == "fork"


# ---------------------------------------------------------------------- notebooks

_NOTEBOOK = """
import json, sys
import nbclient, nbformat
cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(open("cells.json"))]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
print(json.dumps(notebook))
"""

_CELLS = [
    """
import time, ndshare
context = ndshare.ProcessContext(2)
out = context.alloc(200)
def kernel(worker_id, index, value):
    time.sleep(0.001)
    out[index] = 2 * value
    if value > 1000:
        raise ValueError(value)
""",
    "report = context.map(kernel, range(200), progress=True, trace=True)\nreport",
    "axes = report.plot()",
    """
report.to_chrome_trace("trace.json")
try:
    context.map(kernel, [*range(100), *[2000] * 10], progress=True)
except ValueError as error:
    print(error.__notes__)
""",
    """
import threading
assert not [thread for thread in threading.enumerate() if "onitor" in type(thread).__name__]
assert out[:100].tolist() == list(range(0, 200, 2))
print("works")
""",
]


def _run_notebook(run_script: Callable[..., Any], tmp_path: Path, first: str = "") -> Any:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib_inline")
    (tmp_path / "cells.json").write_text(json.dumps([first + _CELLS[0], *_CELLS[1:]]))
    # The other tests want figures without windows, this one those of notebooks.
    backend = "module://matplotlib_inline.backend_inline"
    notebook = json.loads(run_script(_NOTEBOOK, MPLBACKEND=backend).stdout)
    cells = [cell["outputs"] for cell in notebook["cells"]]
    assert cells[-1][0]["text"] == "works\n"
    (result,) = [output for output in cells[1] if output["output_type"] == "execute_result"]
    assert "MapReport: 200 items in" in result["data"]["text/plain"]
    assert "<table>" in result["data"]["text/html"]
    assert any("image/png" in output.get("data", {}) for output in cells[2])
    assert any("of 110" in output.get("text", "") for output in cells[3])
    return notebook


def test_notebook_with_bar_report_and_plot(run_script, tmp_path: Path) -> None:
    """Bars are widgets: one full and green, one short and red."""
    pytest.importorskip("ipywidgets")
    notebook = _run_notebook(run_script, tmp_path)
    for cell in (1, 3):
        outputs = notebook["cells"][cell]["outputs"]
        assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    ((_, saved),) = notebook["metadata"]["widgets"].items()
    bars = [w["state"] for w in saved["state"].values() if w["model_name"] == "FloatProgressModel"]
    full, short = sorted(bars, key=lambda bar: -bar["max"])
    assert (full["value"], full["max"], full["bar_style"]) == (200, 200, "success")
    assert short["value"] < short["max"] == 110
    assert short["bar_style"] == "danger"


def test_notebook_without_widgets_has_bars_of_text(run_script, tmp_path: Path) -> None:
    """As in a file."""
    notebook = _run_notebook(run_script, tmp_path, "import sys; sys.modules['ipywidgets'] = None\n")
    text = "".join(output.get("text", "") for output in notebook["cells"][1]["outputs"])
    assert "200/200" in text
