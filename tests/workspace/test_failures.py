"""Workspace: errors, deaths, Ctrl-C, the wrong moment; and contextshare's faults, one by one."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from tests import leaks, seed_programs
from tests.workspace import workspace_tasks as tasks
from tests.workspace.workspace_places import make_workspace, two_processes  # noqa: F401 - fixtures

pytestmark = pytest.mark.once

RunScript = Callable[..., Any]
Make = Callable[..., ndshare.Workspace]
_ROOT = Path(__file__).parents[2]


def _pids(ws: ndshare.Workspace) -> set[int]:
    assert ws._staff is not None
    return {worker.pid for worker in ws._staff.pool.workers}


# ------------------------------------------------------------------ what contextshare's users want gone


def test_gone_1_nothing_is_shared() -> None:
    """Arrays are in memory once, and a call carries none of them."""
    data = np.zeros(4_000_000)
    with ndshare.Workspace({"D": data}, 2) as ws:

        @ws.register
        def write(index: int) -> None:
            D[index] = index  # noqa: F821

        for index in range(10):
            write(index)
        ws.evaluate()
        assert ndshare.is_shared(ws["D"])
        assert ws["D"][:10].tolist() == list(range(10))
        delivery = ws._staff.pool.delivery
        assert delivery.bytes_copied + delivery.bytes_sent < 100_000


def test_gone_2_import_sets_the_start_method(run_script: RunScript) -> None:
    """Neither the import nor the use does."""
    run_script("""
import multiprocessing
import ndshare
from ndshare import Workspace
with Workspace({"x": 1}, 1) as ws:
    ws.register(lambda: x)()
    assert ws.evaluate() == [1]
assert multiprocessing.get_start_method(allow_none=True) is None
""")


def test_gone_3_workers_start_in_evaluate() -> None:
    """They are there when the body begins, the same in every evaluation, and gone after it."""
    before = leaks.pictures()
    with ndshare.Workspace({"D": np.zeros(3)}, 3) as ws:
        pids = _pids(ws)
        assert len(pids) == 3
        for pid in pids:
            os.kill(pid, 0)
        lived = ws.register(tasks.lived)
        for _ in range(5):
            [lived() for _ in range(6)]
            assert set(ws.evaluate()) <= pids
        assert _pids(ws) == pids
    for pid in pids:
        while any(key[0] == pid for key in leaks.Children().picture()):  # type: ignore[index]
            pass
    ndshare.shutdown()
    assert leaks.left_behind(before) == {}


def test_gone_4_evaluations_and_failing_entries_leak() -> None:
    """Memory in use stays the same; an entry that fails takes everything down again."""
    with ndshare.Workspace({"D": np.zeros(100_000)}, 1) as ws:
        work = ws.register(lambda: D + 1)  # noqa: F821
        in_use = []
        for _ in range(12):
            work()
            ws.evaluate()
            in_use.append(len(os.listdir("/proc/self/fd")))
        assert max(in_use[4:]) <= max(in_use[:4])

    before = leaks.pictures()
    for values, options, error in [
        ({"D": np.zeros(100_000), "lock": threading.Lock()}, {}, TypeError),
        ({"D": np.zeros(100_000)}, {"initializer": tasks.fail, "initargs": (3,)}, ndshare.InitializerError),
        ({"D": np.zeros(100_000)}, {"initializer": tasks.die}, ndshare.InitializerError),
        ({"D": np.zeros(100_000)}, {"env": lambda number: {"A": 1 / (1 - number)}}, ZeroDivisionError),
        ({"D": np.zeros(100_000)}, {"preload": ["no_such_module"]}, ndshare.InitializerError),
    ]:
        ws = ndshare.Workspace(values, 2, **options)
        with pytest.raises(error) as caught, ws:
            raise AssertionError("the body was entered")
        if "initializer" in options:
            assert f"workspace_tasks.{options['initializer'].__name__}" in str(caught.value)
        if error is TypeError:
            assert "'lock'" in "\n".join(caught.value.__notes__)
        with pytest.raises(RuntimeError, match="before it is entered"):
            ws.evaluate()
        del caught, ws
    assert leaks.left_behind(before) == {}


def test_gone_4_memory_is_given_back_on_leaving() -> None:
    """At once, not when the garbage collector comes by."""
    before = ndshare.stats().shared_bytes
    gc.disable()
    try:
        with ndshare.Workspace({"D": np.zeros(1_000_000)}, 2) as ws:
            ws.register(tasks.helper)()
            ws.evaluate()
            assert ndshare.stats().shared_bytes >= before + 8_000_000
        while ndshare.stats().shared_bytes > before:  # the I/O thread may just be at it
            time.sleep(0.01)
    finally:
        gc.enable()


def test_gone_5_failing_call_leaves_the_queue_uncleared(workspace: Make) -> None:
    """The first error in the order of calls is raised, with the worker's traceback; then all is clean."""
    with workspace({"D": np.arange(3.0)}, 2) as ws:
        nap, fail = ws.register(tasks.nap), ws.register(tasks.fail)
        handles = [nap(0.1, "a"), nap(0.2, "b"), fail("first"), fail("second"), nap(0.1, "c")]
        with pytest.raises(ValueError, match="first") as caught:
            ws.evaluate()
        assert "in fail" in str(caught.value.__cause__)
        assert "call 2 of 5" in "\n".join(caught.value.__notes__)
        assert ws.evaluate() == []
        assert [handles[index].result() for index in (0, 1, 4)] == ["a", "b", "c"]
        assert type(handles[3].exception()) is ValueError
        nap(0, "next")
        assert ws.evaluate() == ["next"]


def test_gone_6_0d_and_empty_arrays_fail(workspace: Make) -> None:
    """They arrive as they are."""
    values = {"zero": np.array(1.5), "empty": np.empty((2, 0, 3), np.int8), "none": np.empty(0, "M8[s]")}
    with workspace(values, 1) as ws:
        ws.register(lambda: (float(zero), zero.shape, empty.shape, empty.dtype, none.dtype))()  # noqa: F821
        assert ws.evaluate() == [(1.5, (), (2, 0, 3), np.dtype(np.int8), np.dtype("M8[s]"))]


def test_gone_7_array_named_functions_collides(workspace: Make) -> None:
    """It is a name like others."""
    with workspace({"FUNCTIONS": np.arange(3)}, 1) as ws:
        ws.register(lambda: FUNCTIONS.tolist())()  # noqa: F821
        assert ws.evaluate() == [[0, 1, 2]]


def test_gone_8_dead_worker_hangs(workspace: Make) -> None:
    """It costs its own call, wherever in the queue; its successor knows the names."""
    with workspace({"D": np.arange(4.0)}, 2) as ws:
        helper, die = ws.register(tasks.helper), ws.register(tasks.die)
        for _ in range(3):
            for number in range(20):
                (die if number in (0, 7, 19) else helper)()
            results = ws.evaluate(on_error="collect")
            assert [n for n, r in enumerate(results) if isinstance(r, ndshare.WorkerDiedError)] == [0, 7, 19]
            assert results[7].signal_number == signal.SIGKILL
            assert [r for r in results if not isinstance(r, Exception)] == [6.0] * 17
        die()
        with pytest.raises(ndshare.WorkerDiedError, match=r"workspace_tasks\.die"):
            ws.evaluate()
        helper()
        assert ws.evaluate() == [6.0]


@pytest.mark.parametrize("size", [1, 511, 4095, 4096, 4097, 100_001])
def test_gone_9_sizes_must_be_exact(workspace: Make, size: int) -> None:
    """Sizes that are no whole number of pages."""
    with workspace({"x": np.arange(size, dtype=np.uint8)}, 1) as ws:
        ws.register(lambda: (len(x), int(x[-1])))()  # noqa: F821
        assert ws.evaluate() == [(size, (size - 1) % 256)]


def test_gone_10_workers_drop_what_keeps_the_memory() -> None:
    """The arrays stay valid, however much is collected and allocated meanwhile, and after leaving."""
    data = np.arange(300_000.0)
    with ndshare.Workspace({"D": data}, 1) as ws:

        @ws.register
        def churn(number: int) -> float:
            import gc

            gc.collect()
            np.ones(400_000 + number).sum()
            return float(D.sum())  # noqa: F821

        for number in range(10):
            churn(number)
        assert ws.evaluate() == [data.sum()] * 10
        kept = ws["D"]
        view = ws.register(lambda: D[1:])()  # noqa: F821
        ws.evaluate()
    assert kept.sum() == data.sum()
    assert np.shares_memory(view.result(), kept)


def test_gone_11_package_lacks_readme_and_dependencies() -> None:
    """What is imported is listed, and the README is there."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    assert (_ROOT / project["readme"]).exists()
    assert {"cloudpickle", "numpy", "tqdm"} <= {d.partition(">")[0] for d in project["dependencies"]}


# ------------------------------------------------------------------ what they want kept


def test_keep_quick_guide_runs(run_script: RunScript) -> None:
    """Contextshare's own example, without a main guard; one BLAS thread, so that all bits are the same."""
    names = {
        "import contextshare as shared": "import ndshare as shared",
        "shared.SharedMemory(": "shared.Workspace(",
        "nworkers=": "num_workers=",
    }
    guide = seed_programs.changed(seed_programs.CONTEXTSHARE, names)
    guide += "assert all(np.array_equal(one, other) for one, other in zip(s, p, strict=True))\n"
    done = run_script(guide, OPENBLAS_NUM_THREADS="1", interpreter_args=("-W", "error"))
    assert done.stderr.count("11/11") == 1


def test_keep_the_rest() -> None:
    """Bare names, one queue for several functions, keywords, closures, repeatable, [] for nothing."""
    with ndshare.Workspace({"D": np.arange(3.0)}, 2) as ws:
        factor = 2

        def scaled(power: int, *, shift: float = 0) -> float:
            return float((factor * D**power).sum() + shift)  # noqa: F821

        scaled, helper = ws.register(scaled), ws.register(tasks.helper)
        for _ in range(2):
            assert ws.evaluate() == []
            scaled(1, shift=1)
            helper()
            scaled(power=2)
            assert ws.evaluate() == [7.0, 3.0, 10.0]


# ------------------------------------------------------------------ the wrong moment


def test_use_outside_the_block_is_refused() -> None:
    """Before and after; a workspace may be entered again, and then works."""
    ws = ndshare.Workspace({"D": np.arange(3.0)}, 1)
    helper = ws.register(tasks.helper)
    for when in ("before it is entered", "after its with block was left"):
        for use in (helper, ws.evaluate, lambda: ws["D"]):
            with pytest.raises(RuntimeError, match=when):
                use()
        with ws:
            helper()
            with pytest.raises(RuntimeError, match="entered already"):
                ws.__enter__()
            assert ws.evaluate() == [3.0]
            helper()  # nobody evaluates it
    with ws:
        assert ws.evaluate() == []


def test_leaving_finishes_what_was_called() -> None:
    """Handles are done, unless an exception leaves the block: then what has not begun is cancelled."""
    with ndshare.Workspace({"D": np.zeros(1)}, 1) as ws:
        handles = [ws.register(tasks.nap)(0.05, number) for number in range(4)]
    assert [handle.result() for handle in handles] == [0, 1, 2, 3]
    with pytest.raises(KeyError), ndshare.Workspace({"D": np.zeros(1)}, 1) as ws:
        handles = [ws.register(tasks.nap)(0.2, number) for number in range(4)]
        handles[0].result()
        raise KeyError
    assert all(handle.done() for handle in handles)
    assert handles[0].result() == 0
    assert handles[3].cancelled() or type(handles[3].exception()) is concurrent.futures.CancelledError


def test_cancelled_call_is_an_error_in_its_place() -> None:
    """A handle that the user has cancelled."""
    with ndshare.Workspace({"D": np.zeros(1)}, 1) as ws:
        nap = ws.register(tasks.nap)
        handles = [nap(0.2, number) for number in range(4)]
        assert handles[3].cancel()
        results = ws.evaluate(on_error="collect")
        assert results[:3] == [0, 1, 2]
        assert type(results[3]) is concurrent.futures.CancelledError


def test_arguments_and_results_that_cannot_be_sent(workspace: Make) -> None:
    """Arguments: the call itself raises and is not in the queue; results: an error of that call."""
    with workspace({"D": np.zeros(1)}, 1) as ws:
        nap = ws.register(tasks.nap)
        with pytest.raises(TypeError, match="lock"):
            nap(0, threading.Lock())
        nap(0, 1)
        assert ws.evaluate() == [1]
        ws.register(lambda: (n for n in range(3)))()
        nap(0, 2)
        first, second = ws.evaluate(on_error="collect")
        assert isinstance(first, TypeError)
        assert second == 2


def test_workspace_cannot_be_sent(workspace: Make) -> None:
    """Its workers belong to this process."""
    with workspace({"D": np.zeros(1)}, 1) as ws:
        with pytest.raises(TypeError, match="Workspace cannot be sent"):
            ws.register(lambda: ws.evaluate())()
        assert ws.evaluate() == []


def _in_child(ws: ndshare.Workspace, work: Any, answers: Any) -> None:
    for use in (work, ws.evaluate):
        try:
            use()
        except ndshare.InheritedError:
            answers.send("refused")


def test_forked_child_is_refused(workspace: Make) -> None:
    """And the parent's workspace goes on."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    with workspace({"D": np.arange(3.0)}, 1) as ws, receive, send:
        helper = ws.register(tasks.helper)
        child = context.Process(target=_in_child, args=(ws, helper, send))
        child.start()
        child.join()
        assert [receive.recv(), receive.recv()] == ["refused", "refused"]
        helper()
        assert ws.evaluate() == [3.0]
        child.close()


def test_shutdown_of_ndshare_ends_a_workspace() -> None:
    """With a word; leaving works."""
    with ndshare.Workspace({"D": np.zeros(1)}, 1) as ws:
        handle = ws.register(tasks.nap)(0.1, 1)
        ndshare.shutdown()
        assert handle.result() == 1
        with pytest.raises(RuntimeError, match=r"ndshare\.shutdown\(\) has ended"):
            ws.register(tasks.nap)(0)


def test_forgotten_workspace_gives_its_workers_back() -> None:
    """One that nobody leaves: a generator that is dropped (the fixture looks)."""
    ws = ndshare.Workspace({"D": np.zeros(1)}, 1).__enter__()
    ws.register(tasks.nap)(0)
    del ws


# ------------------------------------------------------------------ Ctrl-C


_INTERRUPTED = """
import os, sys, time
import numpy as np, ndshare

def nap(seconds):
    time.sleep(seconds)
    return float(D.sum())

def in_c(n):
    return sum(range(n))

with ndshare.Workspace({"D": np.arange(3.0)}, 2) as ws:
    nap, in_c = ws.register(nap), ws.register(in_c)
    nap(0)
    ws.evaluate()
    handles = [WORK for _ in range(6)]
    os.write(1, b"r")
    BODY
"""


def _interrupt(tmp_path: Path, source: str) -> tuple[int, str, str]:
    path = tmp_path / "program.py"
    path.write_text(source)
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-W", "error", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"r", process.communicate(timeout=10)
        try:
            process.communicate(timeout=0.3)
        except subprocess.TimeoutExpired:
            pass
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("still there 20 s after Ctrl-C", pytrace=False)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("work", ["nap(60)", "in_c(10**11)"])
@pytest.mark.parametrize("progress", ["False", "lambda *_: None"])
def test_interrupt_leaves_the_workspace_usable(tmp_path: Path, work: str, progress: str) -> None:
    """Caught inside the block: what was enqueued is dropped, the next evaluation works."""
    body = f"""
    try:
        ws.evaluate(progress={progress})
    except KeyboardInterrupt:
        print("struck", flush=True)
    [nap(0) for _ in range(5)]
    assert ws.evaluate() == [3.0] * 5
    assert all(handle.done() for handle in handles), handles
    print("usable", flush=True)
"""
    code, out, err = _interrupt(tmp_path, _INTERRUPTED.replace("WORK", work).replace("BODY", body.strip()))
    assert (code, out.split(), err) == (0, ["struck", "usable"], "")


@pytest.mark.parametrize("work", ["nap(60)", "in_c(10**11)"])
def test_interrupt_that_nobody_catches_gives_one_traceback(tmp_path: Path, work: str) -> None:
    """And ends the program."""
    source = _INTERRUPTED.replace("WORK", work).replace("BODY", "ws.evaluate()")
    code, out, err = _interrupt(tmp_path, source)
    assert code in {-signal.SIGINT, 130}
    assert out == ""
    assert err.count("Traceback (most recent call last)") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_interrupt_while_entering_leaves_nothing(tmp_path: Path) -> None:
    """Workers that hang in their initializer."""
    code, _, err = _interrupt(
        tmp_path,
        """
import os, time
import ndshare

def init():
    time.sleep(60)

os.write(1, b"r")
with ndshare.Workspace({"x": 1}, 2, initializer=init) as ws:
    pass
""",
    )
    assert code in {-signal.SIGINT, 130}
    assert err.count("Traceback (most recent call last)") == 1, err
