"""Maps on several engine processes: what arrives, what travels, what failures cost."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._node.node import run_task
from ndshare._transport import transport
from ndshare._transport.freight import CHUNK_BYTES

# Nodes keep their workers warm from test to test; `test_nothing_is_left_when_the_engine_ends` looks at the end.
pytestmark = pytest.mark.leaves("child process", "open descriptor", "thread")

_engine: Any = None


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    """Two processes of the standard library."""
    global _engine
    with concurrent.futures.ProcessPoolExecutor(2) as _engine:
        list(_engine.map(time.sleep, [0.1, 0.1]))
        yield


def _context(**options: Any) -> ndshare.ClusterContext:
    return ndshare.ClusterContext(_engine, **options)


# ---------------------------------------------------------------------- what kernels write


def _write_everything(context: ndshare.MapContext) -> list[bytes]:
    values = np.random.default_rng(3).normal(size=(60, 16))
    record = np.dtype([("n", "i4"), ("x", "f8", (3,)), ("flag", "?")])
    slices = context.alloc((60, 16))
    fancy = context.alloc((16, 60), order="F", fill=np.nan)
    ufunc = context.alloc((60, 16), np.float32, fill=7)
    table = context.alloc(60, record)
    single = context.alloc(60, np.uint8, fill=255)
    counts = context.alloc(16, int, per_worker=True)
    overwritten = context.alloc(60, int, fill=np.arange(60))
    untouched = context.alloc(1000, fill=np.arange(1000.0))

    def kernel(worker_id: int, index: int, value: Any) -> None:
        slices[index, 3:9] = value[3:9]
        fancy[[1, 5, 7], index] = value[:3]
        np.add(value, ufunc[index], out=ufunc[index], casting="unsafe")
        table["n"][index] = index
        table["x"][index, 1] = value[0]
        if index % 7 == 3:
            return
        table[index]["flag"] = True
        single[index] = index
        counts[worker_id, index % 16] += 1
        overwritten[index] = 0

    context.map(kernel, values)
    arrays = (slices, fancy, ufunc, table, single, context.reduce(counts), overwritten, untouched)
    return [array.tobytes() for array in arrays]


def test_every_way_of_writing_gives_the_bits_of_the_serial_context() -> None:
    """Slices, fancy indexing, out=, fields, neighbouring bytes, zeros over something, early return."""
    expected = _write_everything(ndshare.SerialContext())
    for options in ({}, {"workers_per_node": 2}):
        assert _write_everything(_context(**options)) == expected


def test_items_of_a_shared_array_are_changed_in_place() -> None:
    """As on one machine; what the kernel does not touch stays."""
    for order in ("C", "F"):
        values = ndshare.zeros((200, 5), order=order)
        values[:] = np.arange(1000).reshape(200, 5)
        expected = values.copy()
        expected[::2] *= 2

        def kernel(_worker_id: int, index: int, value: Any) -> None:
            if index % 2 == 0:
                value *= 2

        _context().map(kernel, values)
        assert np.array_equal(values, expected)


def test_neighbours_of_a_mapped_shared_array_can_be_read() -> None:
    """The kernel refers to the whole array as well: all nodes have it."""
    values = ndshare.array(np.arange(100.0))
    out = ndshare.zeros(100)

    def kernel(_worker_id: int, index: int, value: float) -> None:
        out[index] = value + values[(index + 1) % 100]

    _context().map(kernel, values)
    assert np.array_equal(out, values + np.roll(values, -1))


def test_rows_per_worker_keep_what_they_had() -> None:
    """Three maps into one accumulator."""
    context = _context(workers_per_node=2)
    counts = context.alloc((), int, per_worker=True)

    def kernel(worker_id: int, _index: int, value: int) -> None:
        counts[worker_id] += value

    for number in (1, 2, 3):
        context.map(kernel, range(100), shares=20)
        assert counts.sum() == number * sum(range(100))


def test_rows_of_one_element_in_either_order() -> None:
    """Their axis cannot be seen from the memory layout."""
    for order in ("C", "F"):
        context = _context()
        sums = context.alloc((1,), int, order=order, per_worker=True)

        def kernel(worker_id: int, _index: int, value: int) -> None:
            (sums[worker_id] if order == "C" else sums[..., worker_id])[...] += value

        for number in (1, 2):
            context.map(kernel, range(100), shares=20)
            assert context.reduce(sums).tolist() == [number * 4950]


def test_arrays_of_a_mapped_list_of_shared_arrays_are_written_to() -> None:
    """Each comes with its share, and goes back."""
    values = [ndshare.full(3000, float(k)) for k in range(20)]

    def kernel(_worker_id: int, index: int, value: Any) -> None:
        value[index] += 0.5

    _context().map(kernel, values)
    expected = np.repeat(np.arange(20.0)[:, None], 3000, 1)
    expected[np.arange(20), np.arange(20)] += 0.5
    assert np.array_equal(values, expected)


def test_a_lock_is_refused_with_the_way_out() -> None:
    """It does not span machines."""
    lock = ndshare.lock()

    def kernel(*_entry: object) -> None:
        with lock:
            pass

    with pytest.raises(TypeError, match=r"does not span machines.*per_worker"):
        _context().map(kernel, range(3))


def test_writes_to_ordinary_arrays_are_warned_about_in_the_caller() -> None:
    """By name, as on one machine."""
    mine = np.zeros(20_000)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        mine[index] = 1

    with pytest.warns(ndshare.SilentWriteWarning, match="mine"):
        _context().map(kernel, range(10))


# ---------------------------------------------------------------------- what travels


class _Counting:
    """An engine that counts the bytes of its tasks, and runs them in processes."""

    _max_workers = 2

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.contents: list[int] = []

    def submit(self, function: Any, task: Any) -> Any:
        self.contents += [content.nbytes for content in task.contents.values() if content.nbytes > 100_000]
        return self.executor.submit(function, task)


def test_inputs_are_sent_once_and_not_again_in_the_next_map() -> None:
    """By their content, whatever object holds it."""
    context = ndshare.ClusterContext(counting := _Counting(_engine))
    table = np.random.default_rng().normal(size=200_000)
    out = context.alloc(50)

    def make_kernel(table: Any) -> Any:
        def kernel(_worker_id: int, index: int, value: int) -> None:
            out[index] = table[value]

        return kernel

    context.map(make_kernel(table), range(50), shares=10)
    assert counting.contents
    assert len(counting.contents) == 1  # both processes are on one machine
    counting.contents.clear()
    context.map(make_kernel(table.copy()), range(50), shares=10)
    assert counting.contents == []
    assert np.array_equal(out, table[:50])


def test_report_says_what_travelled() -> None:
    """Nothing by reference: large inputs to machines that lack them, items and rows with their shares."""
    context = _context()
    table = np.random.default_rng().normal(size=200_000)
    large = ndshare.array(np.random.default_rng().normal(size=200_000))
    small = np.zeros(1000)  # 8 kB
    out, rows = context.alloc(300_000), context.alloc(1000, per_worker=True)
    values = np.arange(50.0)

    def kernel(worker_id: int, index: int, value: Any) -> None:
        out[index] = table[index] + large[index] + small[index] + value.sum()
        rows[worker_id] += 1

    for again in (False, True):
        report = context.map(kernel, values, shares=10)
        sent = report.captured
        assert all(traffic.shared == 0 for traffic in sent.values())
        assert sent["table"].copied == (0 if again else table.nbytes)
        assert (sent["large"].copied >= large.nbytes) is not again
        assert sent["out"].copied == (sent["out"].copied >= 8 * 300_000) * sent["out"].copied
        assert (sent["out"].copied > 0) is again  # zeros are not sent
        assert sent["small"].copied == 0
        assert sent["small"].pickled >= small.nbytes
        assert sent["rows"].copied == 0
        assert sent["rows"].pickled >= rows[0].nbytes
        assert values.nbytes <= sent["the collection"].pickled <= 10_000
        assert "by reference" not in repr(report)
        assert "to machines, " in repr(report)
        assert "with shares" in repr(report)


def test_of_a_large_input_only_the_chunk_that_has_changed_is_sent() -> None:
    """200 MB, one element of them; nodes read all of it, in one piece."""
    context = ndshare.ClusterContext(counting := _Counting(_engine))
    table = np.random.default_rng().random(25_000_000)
    out = context.alloc(40)

    def run() -> list[int]:
        counting.contents.clear()

        def kernel(_worker_id: int, index: int, value: int) -> None:
            time.sleep(0.01)  # both processes get shares
            out[index] = table[value::4000].sum() + table[-1]

        report = context.map(kernel, range(40), shares=20)
        assert np.array_equal(out, [table[k::4000].sum() + table[-1] for k in range(40)])
        out[:] = 0
        assert report.captured["table"].copied == sum(counting.contents)
        return counting.contents

    first = run()
    assert sum(first) == table.nbytes
    assert max(first) == CHUNK_BYTES
    table[12_000_000] = 2
    assert run() == [CHUNK_BYTES]
    table[-1] = 3
    assert run() == [table.nbytes % CHUNK_BYTES]


# ---------------------------------------------------------------------- failures


class _Twice:
    """An engine that runs every share twice, one after the other, and gives the second result."""

    _max_workers = 2

    def __init__(self, executor: Any) -> None:
        self.executor = executor

    def submit(self, function: Any, task: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                self.executor.submit(function, task).result()
                future.set_result(self.executor.submit(function, task).result())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run).start()
        return future


class _Losing(_Twice):
    """An engine that loses every third share after it has run."""

    number = 0

    def submit(self, function: Any, task: Any) -> Any:
        self.number += 1
        future = self.executor.submit(function, task)
        if self.number % 3:
            return future
        future.result()
        lost: concurrent.futures.Future[Any] = concurrent.futures.Future()
        lost.set_exception(ConnectionError("the node is gone"))
        return lost


@pytest.mark.parametrize("kind", [_Twice, _Losing])
def test_a_share_counts_once_whatever_the_engine_does(kind: type[_Twice]) -> None:
    """Accumulators too."""
    context = ndshare.ClusterContext(kind(_engine))
    counts = context.alloc(7, int, per_worker=True)
    out = context.alloc(300, int, fill=1)

    def kernel(worker_id: int, index: int, value: int) -> None:
        counts[worker_id, value % 7] += value
        out[index] += value

    report = context.map(kernel, range(300), shares=30)
    assert report.done.all()
    assert context.reduce(counts).tolist() == [sum(range(k, 300, 7)) for k in range(7)]
    assert out.tolist() == list(range(1, 301))


def test_an_engine_that_is_broken_ends_the_map_with_its_error() -> None:
    """And says which items."""

    def kernel(*_entry: object) -> None:
        time.sleep(0.05)

    with concurrent.futures.ProcessPoolExecutor(1) as engine:
        pid = engine.submit(os.getpid).result()
        context = ndshare.ClusterContext(engine)
        with pytest.raises(concurrent.futures.BrokenExecutor) as caught:
            context.map(kernel, range(1000), progress=lambda *_: os.kill(pid, signal.SIGKILL))
    assert "items" in "".join(getattr(caught.value, "__notes__", []))


def test_retries_and_deaths_are_those_of_the_node() -> None:
    """An item whose worker died is tried again there."""
    context = _context()
    tries = context.alloc((), int)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 5:
            tries[()] += 1
            if tries[()] < 3:
                os.kill(os.getpid(), signal.SIGKILL)

    report = context.map(kernel, range(10), retries=2)
    assert tries == 3
    assert report.done.all()
    assert [death.index for death in report.deaths] == [5, 5]
    with pytest.raises(ndshare.WorkerDiedError):
        context.map(lambda *_: os.kill(os.getpid(), signal.SIGKILL), range(1))


def test_ctrl_c_ends_the_map_and_the_engine_goes_on() -> None:
    """Shares that have not begun do not run."""
    context = _context()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        context.map(lambda *_: time.sleep(0.1), range(1000))
    timer.join()
    assert context.map(lambda *_: None, range(10)).done.all()


def test_calls_on_a_cluster() -> None:
    """Results, errors, shared arrays that arrive and come back changed."""
    shared, table = ndshare.zeros(1000), np.random.default_rng(1).normal(size=100_000)

    class Mine:
        pass

    def write(start: int) -> Any:
        shared[start : start + 10] = start
        return Mine(), table[start]

    with ndshare.ClusterExecutor(_engine) as executor:
        futures = [executor.submit(write, start) for start in range(0, 1000, 10)]
        results = [future.result() for future in futures]
        assert all(type(mine) is Mine for mine, _ in results)
        assert [value for _, value in results] == [table[k] for k in range(0, 1000, 10)]
        assert np.array_equal(shared, np.arange(1000) // 10 * 10)
        assert isinstance(executor.submit(int, "x").exception(), ValueError)
        large = executor.submit(np.arange, 300_000).result()
        assert large.flags.writeable
        assert np.array_equal(large, np.arange(300_000))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_generators_that_calls_use_up_are_named_once() -> None:
    """In the caller, of tasks, of items and of a workspace's functions; those that are arguments are not."""
    rng = np.random.default_rng(1)

    def told(act: Callable[[], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            act()
        return [
            warning.message.name for warning in seen if type(warning.message) is ndshare.SilentWriteWarning
        ]

    def draw(_: object) -> float:
        return float(rng.normal())

    with ndshare.ClusterExecutor(_engine) as executor:
        assert told(lambda: [future.result() for future in map(executor.submit, [draw] * 3, range(3))]) == [
            "rng"
        ]
        assert told(lambda: executor.submit(lambda given: float(given.normal()), rng).result()) == []
    with ndshare.ClusterExecutor(_engine) as executor:
        assert told(lambda: list(executor.map(draw, range(9)))) == ["rng"]
    with ndshare.Workspace({"other": 1}, engine=_engine) as workspace:
        draw = workspace.register(draw)
        assert told(lambda: (draw(1), workspace.evaluate())) == ["rng"]


class _Tasks:
    """An engine that notes the kinds of its tasks."""

    _max_workers = 2

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.tasks: list[Any] = []

    def submit(self, function: Any, task: Any) -> Any:
        self.tasks.append(task)
        return self.executor.submit(function, task)


def test_map_of_calls_sends_several_items_at_a_time() -> None:
    """A chunk is a task; by default they are as large as they may be; what is captured is packed once."""
    table, out = np.arange(100_000.0), ndshare.zeros(2000)

    class Mine:
        def __init__(self, number: int) -> None:
            self.number = number

    def look(item: Mine, shift: float) -> float:
        out[item.number] = shift
        return float(table[item.number] + shift)

    items, shifts = [Mine(k) for k in range(2000)], np.arange(1.0, 2001.0)
    expected = [k + k + 1.0 for k in range(2000)]
    with ndshare.ClusterExecutor(engine := _Tasks(_engine)) as executor:
        assert list(executor.map(look, items[:20], shifts, chunksize=7)) == expected[:20]
        assert len({id(task) for task in engine.tasks}) == 3
        assert out[:20].tolist() == shifts[:20].tolist()
        engine.tasks.clear()
        waiting = executor.map(look, items, shifts)
    assert list(waiting) == expected
    assert np.array_equal(out, shifts)
    assert len(engine.tasks) < 200
    assert list(ndshare.ClusterExecutor(_engine).map(look, [], [])) == []


@pytest.mark.parametrize("chunksize", [None, 1, 30])
def test_map_of_calls_raises_errors_where_results_would_be(chunksize: int | None) -> None:
    """Whatever is before comes first: an exception, a death, what cannot be sent there or back."""

    def fall(item: Any) -> Any:
        if item == "raise":
            raise ValueError(item)
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return (n for n in ()) if item == "generator" else item

    for bad, error in (
        ("raise", ValueError),
        ("die", ndshare.WorkerDiedError),
        ("generator", TypeError),
        (threading.Lock(), TypeError),
    ):
        with ndshare.ClusterExecutor(_engine) as executor:
            results = executor.map(fall, [*range(20), bad, *range(20)], chunksize=chunksize)
            assert [next(results) for _ in range(20)] == list(range(20))
            with pytest.raises(error):
                next(results)
    with ndshare.ClusterExecutor(_engine) as executor:
        with pytest.raises(TimeoutError):
            next(executor.map(time.sleep, [0.5], timeout=0.1))
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(fall, [1], chunksize=0)


@pytest.mark.parametrize("kind", [_Twice, _Losing])
def test_a_call_counts_once_whatever_the_engine_does(kind: type[_Twice]) -> None:
    """What it has written arrives once; calls of a node that is lost run again."""
    out = ndshare.zeros(60)
    with ndshare.ClusterExecutor(kind(_engine)) as executor:

        def add(index: int) -> int:
            out[index] += index
            return index

        assert list(executor.map(add, range(60), chunksize=4)) == list(range(60))
        assert [executor.submit(add, index).result() for index in range(9)] == list(range(9))
    assert out.tolist() == [*range(0, 18, 2), *range(9, 60)]


def test_large_inputs_of_calls_are_sent_once() -> None:
    """However many calls that are under way lack them."""
    table = np.random.default_rng().normal(size=200_000)
    with ndshare.ClusterExecutor(counting := _Counting(_engine)) as executor:
        futures = [executor.submit(lambda index: table[index], index) for index in range(40)]
        assert [future.result() for future in futures] == table[:40].tolist()
    assert len(counting.contents) == 1


def test_functions_of_a_module_that_nodes_cannot_import_go_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in workers of this machine."""
    module = types.ModuleType("only_at_home")
    exec("def helper(x): return 2 * x\ndef work(x): return helper(x) + 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_at_home", module)
    try:
        with ndshare.ClusterExecutor(_engine) as executor:
            assert executor.submit(module.work, 3).result() == 7
            transport.by_value_modules.discard("only_at_home")
            assert list(executor.map(module.work, range(5))) == [1, 3, 5, 7, 9]
    finally:
        transport.by_value_modules.discard("only_at_home")


def test_engines_are_checked() -> None:
    """What was given, what is allowed."""
    with pytest.raises(TypeError, match=r"engine is 3.*Dask client"):
        ndshare.ClusterContext(3)
    with pytest.raises(ValueError, match="workers_per_node"):
        _context(workers_per_node=0)

    class Silent:
        submit = staticmethod(run_task)

    with pytest.raises(ValueError, match="processes=n"):
        ndshare.ClusterContext(Silent())
    assert ndshare.ClusterContext(Silent(), processes=3).num_workers == 3


_SCRIPT = """
import concurrent.futures, os, subprocess, time
import ndshare
def main():
    with concurrent.futures.ProcessPoolExecutor(2) as engine:
        context = ndshare.ClusterContext(engine)
        out = context.alloc(100)
        def kernel(_worker_id, index, value):
            out[index] = os.getpid()
        context.map(kernel, range(100), shares=10)
        pids = sorted({int(pid) for pid in out})
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    print(len(pids) >= 1, [pid for pid in pids if os.path.exists(f"/proc/{pid}")])
if __name__ == "__main__":
    main()
"""


def test_nothing_is_left_when_the_engine_ends(run_script: Any) -> None:
    """The nodes' workers end with the engine's processes; the main guard is for those."""
    assert run_script(_SCRIPT).stdout == "True []\n"


def test_queue_does_not_leave_its_machine() -> None:
    """It joins processes by open files."""
    q = ndshare.Queue()

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        q.put(index)

    with pytest.raises(TypeError, match="one machine"):
        _context().map(kernel, range(3))
    q.close()


def _keep_little() -> None:
    """Begin an engine process whose machine keeps a megabyte of what is not needed."""
    from ndshare._node.node import this_node

    this_node().store.limit = 1 << 20


def _held_bytes(_: int) -> int:
    from ndshare._node.node import this_node

    return sum(memory.size for memory in this_node().store._held.values())


def test_node_does_not_keep_the_arguments_of_all_calls() -> None:
    """The oldest go when there are too many; the call at hand has its own."""
    with concurrent.futures.ProcessPoolExecutor(1, initializer=_keep_little) as engine:
        with ndshare.ClusterExecutor(engine) as executor:
            for number in range(6):
                array = np.full(1 << 18, float(number))
                assert executor.submit(np.sum, array).result() == number * array.size
            assert array.nbytes <= engine.submit(_held_bytes, 0).result() <= (1 << 20) + array.nbytes
        assert engine.submit(_held_bytes, 0).result() == 0  # the executor has ended


class _Held:
    """Holds the first shares back, all but one of each group's, until one more is sent."""

    def __init__(self, groups: int) -> None:
        self.num_workers = groups
        self.sent = 0
        self.in_time = False
        self._go = threading.Event()

    def submit(self, function: Any, task: Any) -> Any:
        self.sent += 1
        answer = _engine.submit(function, task)
        if self.sent > self.num_workers:
            self.in_time = self.in_time or not self._go.is_set()
            self._go.set()
        if self.sent >= self.num_workers:
            return answer
        held: Any = concurrent.futures.Future()
        threading.Thread(target=self._hand_out, args=(answer, held)).start()
        return held

    def _hand_out(self, answer: Any, held: Any) -> None:
        self._go.wait(20)
        self._go.set()
        held.set_result(answer.result())


def test_a_group_that_is_free_gets_the_next_share_at_once() -> None:
    """Where each group runs one share at a time, none waits for others to be free as well."""
    held = _Held(8)
    context = ndshare.ClusterContext(held)
    rows = context.alloc(1, int, per_worker=True)

    def kernel(worker_id: int, _index: int, value: int) -> None:
        rows[worker_id] += value

    context.map(kernel, range(20), shares=20)
    assert held.in_time
    assert context.reduce(rows).tolist() == [sum(range(20))]


def test_calls_have_time_limits_that_their_machine_keeps() -> None:
    """The worker there is killed, as here; what the engine cannot do is refused."""
    runs = ndshare.zeros(3)

    def count(index: int, seconds: float) -> int:
        runs[index] += 1
        time.sleep(seconds)
        return index

    with ndshare.ClusterExecutor(_engine) as executor:
        limited = ndshare.options(count, timeout=0.3)
        late = executor.submit(limited, 0, 60.0)
        assert executor.submit(limited, 1, 0.0).result() == 1
        assert isinstance(late.exception(), ndshare.TaskTimeoutError)
        results = executor.map(limited, [2, 2], [0.0, 60.0], chunksize=2)
        assert next(results) == 2
        with pytest.raises(ndshare.TaskTimeoutError):
            next(results)
        with pytest.raises(ValueError, match=r"priority=3 was refused: .* in an order of its own"):
            executor.submit(ndshare.options(count, priority=3), 0, 0.0)
        with pytest.raises(NotImplementedError, match=r"kill\(\) was refused"):
            executor.submit(int).kill()  # type: ignore[attr-defined]
    assert runs.tolist() == [0.0, 1.0, 1.0]
