"""A workspace on a cluster: what travels, when what calls have written arrives, what failures cost."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._transport.freight import CHUNK_BYTES
from tests.workspace import workspace_tasks as tasks
from tests.workspace.workspace_places import ON_A_CLUSTER, two_processes  # noqa: F401 - a fixture

pytestmark = [pytest.mark.once, ON_A_CLUSTER]

_BIG = 300_000  # items: 2.4 MB, an image of its own


class _Noting:
    """An engine that notes its tasks, and which contents they carry."""

    _max_workers = 2

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.contents: list[int] = []
        self.bytes: list[int] = []

    def submit(self, function: Any, task: Any) -> Any:
        self.contents += [content.nbytes for content in task.contents.values() if content.nbytes > 100_000]
        self.bytes.append(task.nbytes())
        return self.executor.submit(function, task)


# ------------------------------------------------------------------ what travels


def test_values_go_to_each_machine_once(engine: Any) -> None:
    """However many calls, rounds and processes; variables of these names in the caller do not go at all."""
    noting = _Noting(engine)
    D = np.random.default_rng().normal(size=_BIG)
    ordinary = np.full(_BIG, -1.0)
    inner = tasks.make(ordinary)  # a closure with a variable of the name
    with ndshare.Workspace({"D": D, "b": np.arange(3)}, engine=noting) as ws:
        helper, inner = ws.register(tasks.helper), ws.register(inner)
        for _ in range(3):
            for _ in range(20):
                helper()
                inner(1.0)
            assert ws.evaluate() == [D.sum(), D.sum() + 1.0] * 20
    assert len(noting.contents) == 1
    assert sorted(noting.bytes)[-2] < 20_000


def test_values_that_change_go_again_and_others_do_not(engine: Any) -> None:
    """By the first call of the next round, also what the caller itself has written."""
    noting = _Noting(engine)
    values = {"still": np.arange(_BIG), "moved": np.zeros(_BIG), "small": np.zeros(3)}
    with ndshare.Workspace(values, engine=noting) as ws:

        @ws.register
        def move(index: int) -> tuple[float, float, int]:
            before = float(moved.sum()), float(small.sum()), int(still[-1])  # noqa: F821
            moved[index] = small[index] = 1  # noqa: F821
            return before

        for index in range(3):
            move(index)
        assert ws.evaluate() == [(0.0, 0.0, _BIG - 1)] * 3
        assert ws["moved"][:4].tolist() == [1, 1, 1, 0]
        assert len(noting.contents) == 1  # zeros are not sent
        ws["moved"][-1] = 5
        for index in range(4):
            move(index % 3)
        assert ws.evaluate() == [(8.0, 3.0, _BIG - 1)] * 4
        assert len(noting.contents) == 2
        ws["moved"][:] = 0
        move(0)
        assert ws.evaluate() == [(0.0, 3.0, _BIG - 1)]
        assert len(noting.contents) == 2


def test_of_a_large_value_only_the_chunk_that_has_changed_goes_again(engine: Any) -> None:
    """72 MB in one piece; what it was before is forgotten on both sides."""
    noting = _Noting(engine)
    D = np.random.default_rng().random(9_000_000)
    with ndshare.Workspace({"D": D}, engine=noting) as ws:

        @ws.register
        def total() -> float:
            time.sleep(0.02)  # both processes get calls
            return float(D.sum())

        for changed in (False, True, True):
            noting.contents.clear()
            D[3_000_000] += changed
            ws["D"][3_000_000] += changed
            for _ in range(8):
                total()
            assert ws.evaluate() == [D.sum()] * 8
            assert noting.contents == [CHUNK_BYTES] or (not changed and sum(noting.contents) >= D.nbytes)


def test_objects_stay_the_same_from_round_to_round(engine: Any) -> None:
    """A view that a worker has kept shows what the values are now; a worker is not started anew for that."""
    with ndshare.Workspace({"D": np.zeros(_BIG)}, engine=engine) as ws:

        @ws.register
        def look() -> tuple[float, int]:
            if not hasattr(look, "kept"):
                look.kept = True
            if "kept" not in cache:  # noqa: F821
                cache["kept"] = D[:10]  # noqa: F821
            return float(cache["kept"].sum()), os.getpid()  # noqa: F821

        pids = set()
        with ndshare.Workspace({"D": np.zeros(_BIG), "cache": {}}, engine=engine) as own:
            look = own.register(look.function)
            for number in range(5):
                own["D"][:10] = number
                for _ in range(4):
                    look()
                results = own.evaluate()
                assert [value for value, _ in results] == [10.0 * number] * 4
                pids |= {pid for _, pid in results}
        assert len(pids) <= 2


# ------------------------------------------------------------------ what calls write


def test_what_calls_write_is_there_when_they_are_done(engine: Any) -> None:
    """Every way of writing, in large and small arrays, of zeros and not, and single bytes side by side."""
    record = np.dtype([("n", "i4"), ("flag", "?")])
    values = {
        "large": np.arange(float(_BIG)).reshape(-1, 3),
        "zeros": np.zeros((3, _BIG), np.float32, order="F"),
        "labels": np.full(64, 255, np.uint8),
        "table": np.zeros(64, record),
        "parts": {"left": np.arange(64), "whole": ndshare.zeros(64)},
    }
    values["parts"]["right"] = values["parts"]["whole"][32:]

    def write(k: int) -> None:
        large[k::64, 1] = k  # type: ignore[name-defined]  # noqa: F821
        zeros[[0, 2], k] += 1  # type: ignore[name-defined]  # noqa: F821
        labels[k] = k  # type: ignore[name-defined]  # noqa: F821
        table[k]["flag"] = True  # type: ignore[name-defined]  # noqa: F821
        np.add(parts["left"][k], 1, out=parts["left"][k : k + 1])  # type: ignore[name-defined]  # noqa: F821
        if k < 32:
            parts["right"][k] = k  # type: ignore[name-defined]  # noqa: F821
            assert parts["whole"][32 + k] == k  # type: ignore[name-defined]  # noqa: F821

    found = []
    for options in ({"engine": engine}, {"num_workers": 1}):
        with ndshare.Workspace({**values, "parts": ndshare.share(values["parts"])}, **options) as ws:
            registered = ws.register(write)
            for k in range(64):
                registered(k)
            assert ws.evaluate() == [None] * 64
            arrays = [ws[name] for name in ("large", "zeros", "labels", "table")]
            found.append([array.tobytes() for array in (*arrays, ws["parts"]["left"], ws["parts"]["whole"])])
        values["parts"]["whole"][:] = 0
    assert found[0] == found[1]


def test_calls_of_a_round_do_not_see_each_other(engine: Any) -> None:
    """What they see does not depend on timing; those of the next round see it."""
    with ndshare.Workspace({"D": np.zeros(4)}, engine=engine) as ws:

        @ws.register
        def add(index: int) -> float:
            before = float(D.sum())  # noqa: F821
            D[index] += 1  # noqa: F821
            return before

        for index in (0, 1, 2, 3, 0, 1):
            assert add(index).result() == 0.0
        assert ws["D"].tolist() == [1, 1, 1, 1]
        ws.evaluate()
        add(0)
        assert ws.evaluate() == [4.0]
        assert ws["D"].tolist() == [2, 1, 1, 1]


def test_writes_of_a_call_that_fails_arrive_and_of_a_worker_that_dies_do_not(engine: Any) -> None:
    """As far as it got; what is killed has no time to tell."""
    with ndshare.Workspace({"D": np.zeros(3)}, engine=engine) as ws:

        @ws.register
        def write(index: int, end: str) -> None:
            D[index] = 1  # noqa: F821
            if end == "raise":
                raise ValueError
            if end == "die":
                os.kill(os.getpid(), signal.SIGKILL)

        for index, end in enumerate(("", "raise", "die")):
            write(index, end)
        _, raised, died = ws.evaluate(on_error="collect")
        assert type(raised) is ValueError
        assert type(died) is ndshare.WorkerDiedError
        assert ".write()" in str(died)
        assert ws["D"].tolist() == [1, 1, 0]


def test_shared_arrays_beside_the_values(engine: Any) -> None:
    """As arguments and in closures; the array of a name is that of the name."""
    mine = ndshare.zeros(10)
    with ndshare.Workspace({"D": np.zeros(10)}, engine=engine) as ws:

        def write(index: int, array: Any) -> bool:
            mine[index] = array[index] = index
            return bool(D[index] == index)  # type: ignore[name-defined]  # noqa: F821

        registered = ws.register(write)
        for index in range(10):
            registered(index, ws["D"][:])
        assert all(ws.evaluate())
        assert mine.tolist() == ws["D"].tolist() == list(range(10))


def test_initializer_finds_the_names(engine: Any) -> None:
    """What it writes into values stays out of them; its failure is the failure of each call."""

    def init(n: int) -> None:
        tasks.ready = float(D.sum()) + n  # type: ignore[name-defined, attr-defined]  # noqa: F821
        D[0] = 100  # type: ignore[name-defined]  # noqa: F821

    values = {"D": np.arange(4.0)}
    with ndshare.Workspace(values, engine=engine, initializer=init, initargs=(10,)) as ws:
        for _ in range(4):
            ws.register(lambda: (tasks.ready, float(D[0])))()  # type: ignore[name-defined, attr-defined]  # noqa: F821
        assert ws.evaluate() == [(16.0, 0.0)] * 4
        assert ws["D"].tolist() == [0, 1, 2, 3]
    with ndshare.Workspace(values, engine=engine, initializer=tasks.fail, initargs=(3,)) as ws:
        ws.register(tasks.helper)()
        with pytest.raises(ndshare.InitializerError, match=r"workspace_tasks\.fail"):
            ws.evaluate()


# ------------------------------------------------------------------ failures


class _Twice:
    """An engine that runs every task twice and gives the second result; every third it loses once."""

    _max_workers = 2

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.tasks: list[Any] = []

    def submit(self, function: Callable[..., Any], task: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        known = any(task is one for one in self.tasks)
        self.tasks.append(task)
        lost = not known and len(self.tasks) % 3 == 0

        def run() -> None:
            try:
                self.executor.submit(function, task).result()
                result = self.executor.submit(function, task).result()
                if lost:
                    raise ConnectionError("the node is gone")
                future.set_result(result)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run).start()
        return future


def test_a_call_counts_once_whatever_the_engine_does(engine: Any) -> None:
    """Over several rounds."""
    with ndshare.Workspace({"D": np.zeros(40), "big": np.ones(_BIG)}, engine=_Twice(engine)) as ws:

        @ws.register
        def add(index: int) -> int:
            D[index] += index  # noqa: F821
            big[index::40] += 1  # noqa: F821
            return index

        for number in (1, 2, 3):
            for index in range(40):
                add(index)
            assert ws.evaluate() == list(range(40))
            assert ws["D"].tolist() == [number * index for index in range(40)]
            assert (ws["big"] == 1 + number).all()


_BROKEN = """
import concurrent.futures, multiprocessing, os, signal, time
import numpy as np, ndshare

with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as engine:
    pid = engine.submit(os.getpid).result()
    with ndshare.Workspace({"D": np.zeros(3)}, engine=engine) as ws:
        nap = ws.register(time.sleep)
        nap(0)
        assert ws.evaluate() == [None]
        nap(20)
        nap(20)
        os.kill(pid, signal.SIGKILL)
        results = ws.evaluate(on_error="collect")
        print([isinstance(error, concurrent.futures.BrokenExecutor) for error in results])
"""


def test_engine_that_is_broken_fails_its_calls(run_script: Callable[..., Any]) -> None:
    """With the engine's error; leaving works."""
    assert run_script(_BROKEN).stdout == "[True, True]\n"


def test_more_workspaces_than_a_node_keeps(engine: Any) -> None:
    """At the same time, with equal contents; each goes on."""
    spaces = [ndshare.Workspace({"D": np.arange(float(_BIG)), "n": n}, engine=engine) for n in range(4)]
    for ws in spaces:
        ws.__enter__()
    for _ in range(2):
        for ws in spaces:
            for _ in range(3):
                ws.register(lambda: (float(D[5]), n))()  # type: ignore[name-defined]  # noqa: F821
        for number, ws in enumerate(spaces):
            assert ws.evaluate() == [(5.0, number)] * 3
    for ws in spaces:
        ws.__exit__(None, None, None)


def test_cancelled_call_is_as_if_it_had_never_been(engine: Any) -> None:
    """One that has not begun cannot be seen; one that runs is not cancelled."""
    with ndshare.Workspace({"D": np.zeros(30)}, engine=engine) as ws:

        @ws.register
        def slow(index: int) -> int:
            import time

            D[index] = 1  # noqa: F821
            time.sleep(0.1)
            return index

        handles = [slow(index) for index in range(10)]
        assert handles[-1].cancel()
        assert handles[-1].cancelled()
        assert handles[0].result() == 0
        assert not handles[0].cancel()
        results = ws.evaluate(on_error="collect")
        assert results[:9] == list(range(9))
        assert type(results[9]) is concurrent.futures.CancelledError
        assert ws["D"].sum() == 9
        with pytest.raises(ZeroDivisionError):
            leave_by_error(engine)


def leave_by_error(engine: Any) -> None:
    """Calls that have not begun do not run."""
    began = time.monotonic()
    with ndshare.Workspace({"D": np.zeros(3)}, engine=engine) as ws:
        for _ in range(200):
            ws.register(tasks.nap)(0.5)
        raise ZeroDivisionError(str(time.monotonic() - began))


def test_ctrl_c_gives_the_calls_up(engine: Any) -> None:
    """What has begun runs on, and is not heard of; the workspace is usable."""
    with ndshare.Workspace({"D": np.zeros(3)}, engine=engine) as ws:

        @ws.register
        def write(seconds: float) -> float:
            import time

            time.sleep(seconds)
            D[:] = 1  # noqa: F821
            return seconds

        handles = [write(0.4) for _ in range(20)]
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ws.evaluate()
        timer.join()
        assert all(handle.done() for handle in handles)
        assert not ws["D"].any()
        write(0)
        assert ws.evaluate() == [0]
        assert ws["D"].all()


# ------------------------------------------------------------------ refused


def test_what_makes_no_sense_with_an_engine_is_refused(engine: Any) -> None:
    """With a word about what to do."""
    values = {"D": np.zeros(3)}
    with pytest.raises(ValueError, match="num_workers is 2, but with an engine"):
        ndshare.Workspace(values, 2, engine=engine)
    with pytest.raises(ValueError, match="arguments are read at the call"):
        ndshare.Workspace(values, snapshot="start", engine=engine)
    with pytest.raises(TypeError, match="one mapping"):
        ndshare.Workspace(values, env=lambda _number: {}, engine=engine)
    ws = ndshare.Workspace(values, engine=engine)
    with pytest.raises(RuntimeError, match="before it is entered"):
        _ = ws.num_workers
    with ws:
        assert ws.num_workers == 2
        lock = ndshare.lock()
        with pytest.raises(TypeError, match="does not span machines"):
            ws.register(lambda: lock)()
        assert ws.evaluate() == []
    with pytest.raises(TypeError, match="engine is 3"), ndshare.Workspace(values, engine=3):
        pass


_SCRIPT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
import numpy as np, ndshare

D = np.full(1_000_000, -1.0)  # nobody shall send it
scale = 2

def helper():
    return scale * float(D.sum())

def main():
    engine = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    with engine, ndshare.Workspace({"D": np.arange(4.0)}, engine=engine) as ws:

        @ws.register
        def use(x):
            return helper() + x, os.getpid()

        for x in range(10):
            use(x)
        results = ws.evaluate()
        assert [value for value, _ in results] == [12.0 + x for x in range(10)]
    pids = {pid for _, pid in results}
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    print([pid for pid in pids if os.path.exists(f"/proc/{pid}")])

main()
"""


def test_names_in_a_script_and_nothing_left(run_script: Callable[..., Any]) -> None:
    """Without main guard, as the engine forks; the nodes' workers end with it."""
    assert run_script(_SCRIPT).stdout == "[]\n"
