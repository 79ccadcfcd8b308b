"""Workspace: names in functions wherever these are defined, queue, results, options."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")

import pandas as pd

import ndshare
from ndshare._pool import TaskFuture
from ndshare._transport import transport
from tests.workspace import workspace_tasks as tasks
from tests.workspace.workspace_places import make_workspace, two_processes  # noqa: F401 - fixtures

RunScript = Callable[..., Any]
Make = Callable[..., ndshare.Workspace]

_BIG = 1_000_000  # items: 8 MB that must stay where they are


# ------------------------------------------------------------------ names, in modules and closures


def test_names_in_an_imported_module_are_there_for_the_call_only() -> None:
    """Helpers of the module see them; afterwards the module has what it had, also after an error."""
    with ndshare.Workspace({"D": np.arange(4.0), "b": np.ones(3)}, 2) as ws:
        total, spoil = ws.register(tasks.total), ws.register(tasks.spoil)
        for factor in range(10):
            total(factor, shift=0.5)
            spoil(factor)
        results = ws.evaluate(on_error="collect")
        assert results[::2] == [6.0 * factor + 3.5 for factor in range(10)]
        assert all(type(error) is ValueError for error in results[1::2])
        # The same workers, asked without the names.
        plain = [TaskFuture(ws._staff.pool, tasks.names_here, (), {}) for _ in range(6)]
        for future in plain:
            ws._staff.pool.submit(future)
        assert {future.result() for future in plain} == {(False, "the module's own")}
        assert tasks.names_here() == (False, "the module's own")


def test_closure_variable_is_the_shared_array_and_stays_behind() -> None:
    """A variable of that name, in a function here or of a module, is not sent; others are."""
    ordinary = np.full(_BIG, -1.0)
    with ndshare.Workspace({"D": np.arange(4.0)}, 1) as ws:
        offset = np.arange(3.0)
        inner = tasks.make(ordinary)

        def outer(x: float) -> float:
            return inner(x) + float(D[1]) + float(offset.sum())

        D = ordinary
        ws.register(inner)(1.0)
        ws.register(outer)(1.0)
        assert ws.evaluate() == [7.0, 11.0]
        assert ws._staff.pool.delivery.bytes_copied < ordinary.nbytes / 100


def test_closure_variable_that_is_code_stays_what_it_is(workspace: Make) -> None:
    """The `function` of a decorator is not the value of that name."""
    with workspace({"D": np.arange(4.0), "function": 7}, 1) as ws:
        ws.register(tasks.decorated)()
        ws.register(tasks.decorate(lambda: (function, float(D[2]))))()  # noqa: F821
        assert ws.evaluate() == [("wrapped", 1.0), ("wrapped", (7, 2.0))]


def test_lambda_partial_method_and_callable_object_find_the_names(workspace: Make) -> None:
    """Whatever can be called."""
    model = tasks.Model(2)
    with workspace({"D": np.arange(4.0), "b": 1}, 2) as ws:
        ws.register(lambda x: x + D[0] + b)(2)  # noqa: F821
        ws.register(tasks.unnamed)(1)
        ws.register(functools.partial(tasks.total, 2))(shift=1)
        ws.register(model.apply)(1)
        ws.register(model)(1)
        ws.register(np.add)(1, 2)
        assert ws.evaluate() == [3, 7, 14, 3, -3, 3]


_PROGRAM = """
import sys
import numpy as np, ndshare

D = np.full(1_000_000, -1.0)  # 8 MB that nobody shall send
scale = 2

class Tool:
    def apply(self, x):
        return float(D[1]) + x

def helper():
    return float(D.sum())

def use(x):
    return scale * helper() + x

def closure(D):
    def inner(x):
        return float(D.sum()) + x
    return inner

closed = closure(D)

def use_closed(x):
    return closed(x)

def init(n):
    global ready
    ready = float(D.sum()) + n

def use_ready():
    return ready

def b():
    return "a function of the name of a value"

def use_b(x):
    return b.sum() + x

def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)

def program():
    global factorial
    with ndshare.Workspace({"D": np.arange(4.0), "b": np.ones(3)}, 2, initializer=init, initargs=(10,)) as ws:
        plain, factorial = factorial, ws.register(factorial)
        calls = [
            (use, 1, 13), (use_closed, 1, 7), (closed, 2, 8), (use_b, 1, 4), (lambda x: D[x] + b[0], 2, 3),
            (Tool().apply, 1, 2), (b, None, "a function of the name of a value"),
        ]
        for function, argument, _ in calls:
            ws.register(function)(*(() if argument is None else (argument,)))
        ws.register(use_ready)()
        factorial(5)

        @ws.register
        def decorated(x, *, y=0):
            return helper() + x + y

        decorated(1, y=2)
        results = ws.evaluate()
        assert results == [*(result for *_, result in calls), 16, 120, 9], results
        copied = ws._staff.pool.delivery.bytes_copied + ws._staff.pool.delivery.bytes_sent
        assert copied < 100_000, copied
        factorial = plain
    assert D.shape == (1_000_000,) and "ready" not in globals()
"""
_RUN = "program()\nprint('works', flush=True)\n"


def test_names_in_a_script(run_script: RunScript) -> None:
    """The workspace's win over the script's own, which are not sent; helpers and closures see them too."""
    done = run_script(_PROGRAM + _RUN, interpreter_args=("-W", "error"))
    assert (done.stdout, done.stderr) == ("works\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_names_under_each_start_method(run_script: RunScript, method: str) -> None:
    """Whatever `multiprocessing.set_start_method` says, and in a process started that way."""
    done = run_script(f"""
import multiprocessing
{_PROGRAM}
def everything():
    program()
    print("works", flush=True)

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    everything()
    child = multiprocessing.Process(target=everything)
    child.start()
    child.join()
    sys.exit(child.exitcode)
""")
    assert done.stdout == "works\nworks\n", done.stderr


def test_names_in_a_notebook(run_script: RunScript, tmp_path: Path) -> None:
    """In cells, with a progress bar; a function of an earlier cell, defined anew."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from tests.processes.test_starting import _NOTEBOOK

    cells = [
        _PROGRAM,
        "ws = ndshare.Workspace({'x': np.arange(3)}, 2).__enter__()",
        "@ws.register\ndef power(n):\n    return (x**n).tolist()",
        "[power(n) for n in (1, 2)]\nassert ws.evaluate(progress=True) == [[0, 1, 2], [0, 1, 4]]",
        "@ws.register\ndef power(n):\n    return -x.sum()",
        "power(1)\nassert ws.evaluate() == [-3]\nws.__exit__(None, None, None)",
        _RUN,
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    assert run_script(_NOTEBOOK).stdout == "works\n"


# ------------------------------------------------------------------ values


def test_values_of_any_kind_are_shared_once(workspace: Make) -> None:
    """DataFrame, dict of arrays, 0-d and empty arrays, plain objects; what is one object stays one."""
    large = np.arange(100_000.0)
    values = {
        "frame": pd.DataFrame({"x": np.arange(5), "y": list("abcde")}),
        "parts": {"left": large, "right": [large]},
        "large": large,
        "scalar": np.array(2.5),
        "nothing": np.empty((0, 3), np.int16),
        "number": 3,
        "words": ["a", "b"],
    }
    with workspace(values, 2) as ws:
        assert ws["large"] is ws["parts"]["left"] is ws["parts"]["right"][0]
        assert ndshare.is_shared(ws["large"])
        assert not ndshare.is_shared(large)

        @ws.register
        def look() -> tuple[Any, ...]:
            same = parts["left"] is large  # noqa: F821
            return frame.x.sum(), frame.y[4], same, float(scalar), nothing.shape, number, words  # noqa: F821

        del large
        look()
        assert ws.evaluate() == [(10, "e", True, 2.5, (0, 3), 3, ["a", "b"])]


def test_values_written_by_workers_are_seen_by_all(workspace: Make) -> None:
    """`ws[name]` shows what workers wrote; an array that was shared before is that very array."""
    mine = ndshare.zeros(8)
    ordinary = np.zeros(8)
    for values in (mine, ordinary):
        with workspace({"D": values}, 2) as ws:
            add_to = ws.register(tasks.add_to)
            for index in range(8):
                add_to(index)
            ws.evaluate()
            assert ws["D"].tolist() == [1.0] * 8
    assert mine.tolist() == [1.0] * 8
    assert ordinary.tolist() == [0.0] * 8


@pytest.mark.parametrize(
    "name", ["FUNCTIONS", "_", "match", "self", "args", "function", "given", "name", "values"]
)
def test_values_user_names_are_just_names(name: str) -> None:
    """No name clashes with one of ndshare's own."""
    with ndshare.Workspace({name: np.arange(3)}, 1) as ws:
        scope: dict[str, Any] = {}
        exec(f"def f(): return int({name}.sum())", scope)
        ws.register(scope["f"])()
        assert ws.evaluate() == [3]


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"a b": 1}, ValueError, "'a b'"),
        ({"1a": 1}, ValueError, "'1a'"),
        ({"": 1}, ValueError, "''"),
        ({"lambda": 1}, ValueError, "'lambda'"),
        ({"__name__": 1}, ValueError, "'__name__'.*Python"),
        ({3: 1}, TypeError, "strings, got 3"),
        ([1], TypeError, r"mapping of names to arrays, got \[1\]"),
        ({"x": np.array([None])}, TypeError, "'x'.*Python objects"),
    ],
)
def test_values_that_cannot_be_are_refused(values: Any, error: type[Exception], text: str) -> None:
    """At once, with what was got."""
    with pytest.raises(error, match=text):
        ndshare.Workspace(values)


# ------------------------------------------------------------------ queue and results


def test_evaluate_returns_results_in_the_order_of_calls(workspace: Make) -> None:
    """Several functions share one queue; evaluation is repeatable; an empty queue gives []."""
    with workspace({"D": np.arange(3.0)}, 2) as ws:
        nap, total = ws.register(tasks.nap), ws.register(tasks.helper)
        assert ws.evaluate() == []
        for number in range(5):
            nap(0.02 * (5 - number), number)
            total()
        assert ws.evaluate() == [0, 3.0, 1, 3.0, 2, 3.0, 3, 3.0, 4, 3.0]
        assert ws.evaluate() == []
        nap(0, "again")
        assert ws.evaluate() == ["again"]


def test_handle_is_a_future_that_needs_no_evaluation(workspace: Make) -> None:
    """Work starts at the call."""
    with workspace({"D": np.arange(3.0)}, 2) as ws:
        handles = [ws.register(tasks.nap)(0, number) for number in range(4)]
        assert [handle.index for handle in handles] == [0, 1, 2, 3]
        assert [handle.result() for handle in concurrent.futures.as_completed(handles)]
        assert handles[2].result() == 2
        assert handles[2].done()
        assert handles[2].exception() is None
        assert ws.evaluate() == [0, 1, 2, 3]
        assert ws.register(tasks.nap)(0).index == 0


def test_arguments_are_what_they_were_at_the_call(workspace: Make) -> None:
    """A buffer that is filled anew for each call."""
    buffer, shift = np.zeros(1000), [0]
    with (
        workspace({"D": np.ones(2)}, 1, retries=1) as again,
        workspace({"D": np.ones(2)}, 1) as ws,
    ):
        for one in (ws, again):
            work = one.register(lambda x: float(x[0]) + shift[0] + D[0])  # noqa: F821
            for number in range(20):
                buffer[:] = number
                shift[0] = 100 * number
                work(buffer)
            assert one.evaluate() == [101.0 * number + 1 for number in range(20)]


def test_arguments_are_read_late_if_that_is_asked_for() -> None:
    """`snapshot="start"`: what waits is not copied yet."""
    buffer = np.zeros(1000)
    with ndshare.Workspace({"D": np.ones(2)}, 1, snapshot="start") as ws:
        nap = ws.register(tasks.nap)
        nap(0.3)
        late = nap(0, buffer)
        buffer[:] = 7
        ws.evaluate()
        assert late.result()[0] == 7


def test_module_that_workers_cannot_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions go by value, their arguments read at the call; its own `D` does not go at all."""
    module = types.ModuleType("made_by_hand")
    source = (
        "D = ordinary\ndef helper(): return float(D.sum())\ndef work(x): return helper() + float(x.sum())"
    )
    module.__dict__["ordinary"] = np.full(_BIG, -1.0)
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "made_by_hand", module)
    x = np.ones(10_000)
    try:
        with ndshare.Workspace({"D": np.ones(3)}, 1) as ws:
            work = ws.register(module.work)
            for _ in range(3):
                work(x)
                x += 1
            assert ws.evaluate() == [10_003.0, 20_003.0, 30_003.0]
            assert ws._staff.pool.delivery.bytes_copied < 1_000_000
        transport.by_value_modules.discard("made_by_hand")
        with ndshare.ProcessPoolExecutor(1, snapshot="submit") as executor:
            module.D = np.zeros(1)
            assert executor.submit(module.work, x).result() == 40_000.0
    finally:
        transport.by_value_modules.discard("made_by_hand")


def test_register_is_a_decorator_or_a_call(workspace: Make) -> None:
    """Both give something that has the function's name; in a class it becomes a method."""
    with workspace({"D": np.arange(3.0)}, 1) as ws:

        @ws.register
        def twice(x: float) -> float:
            """Say so."""
            return 2 * x

        class Thing:
            factor = 3

            @ws.register
            def work(self, x: float) -> float:
                return self.factor * x * float(D[1])  # noqa: F821

        assert (twice.__name__, twice.__doc__) == ("twice", "Say so.")
        assert "twice" in repr(twice)
        assert ws.register(twice).function is twice.function
        twice(1)
        Thing().work(2)
        assert ws.evaluate() == [2, 6]
        with pytest.raises(TypeError, match="callable, got 3"):
            ws.register(3)  # type: ignore[arg-type]


def test_calls_from_many_threads_lose_nothing(workspace: Make) -> None:
    """Threads call, one evaluates."""
    with workspace({"D": np.zeros(1)}, 2) as ws:
        work = ws.register(lambda x: x)
        threads = [threading.Thread(target=lambda: [work(n) for n in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        results = []
        while any(thread.is_alive() for thread in threads):
            results += ws.evaluate()
        results += ws.evaluate()
        assert sorted(results) == sorted([*range(50)] * 4)


# ------------------------------------------------------------------ progress


def test_progress_function_reaches_the_end_once(workspace: Make) -> None:
    """Rising numbers of finished calls, in the caller's thread; n of n comes once, nothing for nothing."""
    seen: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.current_thread())

    with workspace({"D": np.zeros(1)}, 2) as ws:
        nap = ws.register(tasks.nap)
        for _ in range(8):
            nap(0.08)
        ws.evaluate(progress=progress)
        assert seen[-1] == (8, 8)
        assert len(seen) > 1
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert threads == {threading.current_thread()}
        seen.clear()
        assert ws.evaluate(progress=progress) == []
        assert seen == []
        with pytest.raises(TypeError, match=r"progress.*got 'yes'"):
            ws.evaluate(progress="yes")  # type: ignore[arg-type]


def test_progress_bar_reaches_the_end(workspace: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Tqdm only if asked for; no thread of it stays (the fixture looks)."""
    with workspace({"D": np.zeros(1)}, 2) as ws:
        nap = ws.register(tasks.nap)
        for _ in range(5):
            nap(0.01)
        ws.evaluate(progress=True)
        assert capsys.readouterr().err.count("5/5") == 1
        nap(0)
        ws.evaluate()
        assert capsys.readouterr().err == ""


def test_progress_bar_leaves_multiprocessing_alone(run_script: RunScript) -> None:
    """The start method can still be set afterwards; without a bar tqdm is not even imported."""
    run_script("""
import sys, multiprocessing
import ndshare
with ndshare.Workspace({"x": 1}, 1) as ws:
    f = ws.register(lambda: x)
    f()
    assert ws.evaluate() == [1]
    assert "tqdm" not in sys.modules
    f()
    assert ws.evaluate(progress=True) == [1]
multiprocessing.set_start_method("spawn")
""")


# ------------------------------------------------------------------ options


def test_options_are_those_of_the_executor(workspace: Make) -> None:
    """Environment, threads, preload, task limit."""
    with workspace(
        {"D": np.arange(3.0)},
        2,
        env={"WORKSPACE_TEST": 5},
        threads_per_worker=1,
        preload=["fractions"],
        max_tasks_per_child=2,
    ) as ws:
        assert ws.num_workers == 2

        @ws.register
        def look() -> tuple[str, str, bool, int]:
            import sys

            return (
                os.environ["WORKSPACE_TEST"],
                os.environ["OMP_NUM_THREADS"],
                "fractions" in sys.modules,
                os.getpid(),
            )

        for _ in range(6):
            look()
        found = ws.evaluate()
        assert {facts[:3] for facts in found} == {("5", "1", True)}
        pids = [facts[3] for facts in found]
        assert max(pids.count(pid) for pid in pids) <= 2


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_workers": 0}, ValueError, "num_workers must be at least 1, got 0"),
        ({"num_workers": "2"}, TypeError, "num_workers must be an integer, got '2'"),
        ({"snapshot": "late"}, ValueError, "snapshot.*'late'"),
        ({"retries": -1}, ValueError, "retries"),
        ({"initializer": 3}, TypeError, "initializer must be callable, got 3"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """When the workspace is made."""
    with pytest.raises(error, match=text):
        ndshare.Workspace({"D": 1}, **options)


def test_on_error_that_cannot_be_is_refused(workspace: Make) -> None:
    """And the queue stays."""
    with workspace({"D": np.zeros(1)}, 1) as ws:
        ws.register(tasks.nap)(0, 1)
        with pytest.raises(ValueError, match="on_error must be 'raise' or 'collect', got 'ignore'"):
            ws.evaluate(on_error="ignore")  # type: ignore[arg-type]
        assert ws.evaluate() == [1]


def test_repeated_copies_are_warned_about_at_the_call() -> None:
    """A large ordinary argument, three times: the warning points to the user's line."""
    data = np.zeros(200_000)
    with ndshare.Workspace({"D": np.zeros(1)}, 1) as ws:
        work = ws.register(np.sum)
        with pytest.warns(ndshare.RepeatedCopyWarning) as found:
            [work(data) for _ in range(4)]
        assert [Path(warning.filename).name for warning in found] == ["test_workspace.py"]
        ws.evaluate()


def test_calls_have_time_limits_tries_and_an_end() -> None:
    """As the tasks of an executor, with the options inside or around the registration."""
    with ndshare.Workspace({"D": np.zeros(1)}, 1, task_timeout=30) as ws:

        def count(seconds: float) -> float:
            D[0] += 1  # noqa: F821
            time.sleep(seconds)
            return float(D[0])  # noqa: F821

        inside = ws.register(ndshare.options(count, timeout=0.2, retries=1))
        around = ndshare.options(ws.register(count), timeout=0.2)
        plain = ws.register(count)
        inside(60), around(60), inside(0)
        late, alone, last = ws.evaluate(on_error="collect")
        assert isinstance(late, ndshare.TaskTimeoutError)
        assert late.attempts == 2
        assert isinstance(alone, ndshare.TaskTimeoutError)
        assert last == 4.0
        handle = plain(60)
        while not handle.running():
            time.sleep(0.005)
        assert handle.kill()  # type: ignore[attr-defined]
        assert isinstance(handle.exception(), ndshare.TaskKilledError)
        assert plain(0).result() == 6.0
