"""What only maps in processes have to do: deaths, things that cannot be pickled, the state of the program."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import default_context
from tests import seed_programs

_DEATHS = {
    "os._exit": (lambda: os._exit(3), None, 3),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), signal.SIGKILL, None),
    "SIGSEGV": (lambda: _crash(), signal.SIGSEGV, None),
}


def _crash() -> None:
    faulthandler.disable()  # a forked child inherits it
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize("start", ["pool", "fork"])
@pytest.mark.parametrize("how", sorted(_DEATHS))
def test_kernel_that_dies_at_item_37_costs_that_item(start: str, how: str) -> None:
    """99 of 100 outputs are right; the error knows the index and the signal; the next map works."""
    die, signal_number, exit_code = _DEATHS[how]
    context = ndshare.ProcessContext(2, start=start)
    out = context.alloc(100)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        if index == 37:
            die()
        out[index] = value + 1

    report = context.map(kernel, range(100), on_error="collect")
    ((index, error),) = report.errors
    assert index == 37
    assert isinstance(error, ndshare.WorkerDiedError)
    assert (error.signal_number, error.exit_code) == (signal_number, exit_code)
    assert np.flatnonzero(out != np.arange(1, 101)).tolist() == [37]
    assert np.flatnonzero(~report.done).tolist() == [37]
    with pytest.raises(ndshare.WorkerDiedError) as caught:
        context.map(kernel, range(100))
    assert caught.value.__notes__ == ["ndshare.map: item 37 of 100"]
    report = context.map(lambda _worker_id, index, _value: out.__setitem__(index, -1), range(100))
    assert report.done.all()
    assert (out == -1).all()


@pytest.mark.parametrize("start", ["pool", "fork"])
def test_items_of_dead_workers_are_tried_again(start: str, tmp_path: Path) -> None:
    """With retries an item whose worker died runs once more; one that raises does not."""
    context = ndshare.ProcessContext(2, start=start)
    out = context.alloc(50, int)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        out[index] += 1
        if index == 20 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 30:
            raise ValueError

    report = context.map(kernel, range(50), retries=1, on_error="collect")
    assert [(index, type(error)) for index, error in report.errors] == [(30, ValueError)]
    assert out.tolist() == [2 if index == 20 else 1 for index in range(50)]


@pytest.mark.parametrize("start", ["pool", "fork"])
def test_errors_of_a_worker_that_dies_later_are_not_forgotten(start: str) -> None:
    """Their text is lost with the worker, their index is not."""
    context = ndshare.ProcessContext(1, start=start)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 3:
            raise ValueError
        if index == 7:
            os._exit(1)

    report = context.map(kernel, range(10), on_error="collect")
    assert [(index, type(error)) for index, error in report.errors] == [
        (3, ndshare.RemoteError),
        (7, ndshare.WorkerDiedError),
    ]
    assert np.flatnonzero(~report.done).tolist() == [3, 7]


@pytest.mark.chaos
@pytest.mark.parametrize("start", ["pool", "fork"])
def test_random_kills_lose_no_other_item(start: str, chaos_seed: int, chaos_rounds: int) -> None:
    """Workers are killed at random moments: every item is done exactly once, or is an error."""
    rng = random.Random(chaos_seed)
    context = ndshare.ProcessContext(3, start=start)
    out = context.alloc(400, int)
    pids = context.alloc(3, int)
    kills = 0

    def kernel(worker_id: int, index: int, _value: int) -> None:
        pids[worker_id] = os.getpid()
        time.sleep(0.0005)
        out[index] += 1

    while kills < 13 * chaos_rounds:
        out[:] = pids[:] = 0
        over = threading.Event()

        def killer() -> None:
            nonlocal kills
            while not over.wait(rng.random() * 0.03):
                victim = int(pids[rng.randrange(3)])
                if victim:
                    pids[pids == victim] = 0
                    try:
                        os.kill(victim, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    kills += 1

        thread = threading.Thread(target=killer)
        thread.start()
        try:
            report = context.map(kernel, range(400), on_error="collect")
        finally:
            over.set()
            thread.join()
        failed = [index for index, error in report.errors if isinstance(error, ndshare.WorkerDiedError)]
        assert len(failed) == len(report.errors)
        assert np.flatnonzero(~report.done).tolist() == failed
        others = np.delete(out, failed)
        assert (others == 1).all(), np.unique(others, return_counts=True)


def test_globals_are_what_they_are_when_map_is_called(run_script) -> None:
    """Arrays, lists and numbers of the script, changed in place or bound anew between two maps."""
    run_script("""
import numpy as np, ndshare
out = ndshare.alloc(4)
table = np.arange(100_000.0)
settings = {"scale": 1.0}
offset = 0

def helper(value):
    return table[value] * settings["scale"] + offset

def kernel(worker_id, index, value):
    out[index] = helper(value)

context = ndshare.ProcessContext(2)
context.map(kernel, range(4))
assert out.tolist() == [0, 1, 2, 3], out
table[:4] = 10
settings["scale"] = 2.0
offset = 1
context.map(kernel, range(4))
assert out.tolist() == [21, 21, 21, 21], out
table = np.zeros(4)
context.map(kernel, range(4))
assert out.tolist() == [1, 1, 1, 1], out
with ndshare.ProcessPoolExecutor(2) as executor:  # nothing of it stays in the workers
    assert executor.submit(helper, 3).result() == 1
""")


def test_memory_of_captured_arrays_is_free_after_the_map() -> None:
    """Workers keep nothing of a map: the next one finds its memory again."""
    context = ndshare.ProcessContext(2)
    table = np.ones(3_000_000)
    out = context.alloc(4)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        out[index] = table.sum()

    for _ in range(6):
        context.map(kernel, range(4))
    assert (out == 3e6).all()
    assert ndshare.stats().own_bytes < 3 * table.nbytes
    report = context.map(kernel, range(4))
    assert report.captured["table"] == (0, table.nbytes, pytest.approx(0, abs=1000))
    assert report.captured["out"][:2] == (out.nbytes, 0)


def test_what_cannot_be_pickled_is_inherited_by_fork() -> None:
    """A lock, an open file, a generator's functor: forked workers have them; the report says why."""
    lock = threading.Lock()
    out = ndshare.alloc(10)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        with lock:
            out[index] = value

    context = ndshare.ProcessContext(2)
    report = context.map(kernel, range(10))
    assert out.tolist() == list(range(10))
    assert report.start_method == "fork"
    assert "'lock'" in report.reason
    ended = threading.Event()

    def work() -> None:  # whoever waits in code of the program may hold locks
        ended.wait()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(TypeError, match=r"'lock'.*threads"):
            context.map(kernel, range(10))
        out[:] = 0
        ndshare.ProcessContext(2, start="fork").map(kernel, range(10))  # asked for
    finally:
        ended.set()
        thread.join()
    assert out.tolist() == list(range(10))


def test_forked_workers_have_the_state_of_the_moment() -> None:
    """Everything the caller has, unpickled; they draw different random numbers."""

    class Counter:
        value = 0

        def __reduce__(self) -> str:
            raise AssertionError("pickled")

    counter = Counter()
    out, drawn = ndshare.alloc(100), ndshare.alloc(2, per_worker=True)
    context = ndshare.ProcessContext(2, start="fork")

    def kernel(worker_id: int, index: int, _value: int) -> None:
        out[index] = counter.value
        drawn[worker_id] = np.random.random(), random.random()  # noqa: NPY002 - that stream is the point
        time.sleep(0.001)

    for value in (1, 2):
        counter.value = value
        report = context.map(kernel, range(100))
        assert (out == value).all()
    assert len(report.workers) == 2
    assert len(np.unique(drawn)) == 4


@pytest.mark.parametrize("kind", ["serial", "threads", "pool", "fork"])
def test_iterators_of_unknown_length(kind: str) -> None:
    """Read as far as needed, mapped in batches; indices go on; an error of the iterator is raised."""
    contexts = {
        "serial": ndshare.SerialContext,
        "threads": lambda: ndshare.ThreadContext(2),
        "pool": lambda: ndshare.ProcessContext(2),
        "fork": lambda: ndshare.ProcessContext(2, start="fork"),
    }
    context = contexts[kind]()
    out = context.alloc(1000, int)
    heard: list[tuple[int, int]] = []

    def kernel(_worker_id: int, index: int, value: int) -> None:
        if value == 2 * 77:
            raise ValueError
        out[index] = value

    report = context.map(
        kernel,
        (2 * k for k in range(1000)),
        on_error="collect",
        progress=lambda done, total: heard.append((done, total)),
    )
    assert [index for index, _ in report.errors] == [77]
    assert np.flatnonzero(out != 2 * np.arange(1000)).tolist() == [77]
    assert report.items == 1000
    assert np.flatnonzero(~report.done).tolist() == [77]
    assert heard[-1] == (1000, 1000)
    assert [pair for pair in heard if pair[0] == pair[1]] == [(1000, 1000)]
    assert context.map(kernel, iter(())).items == 0

    def broken() -> object:
        yield 1
        raise OSError("end of tape")

    with pytest.raises(OSError, match="end of tape"):
        context.map(lambda *_: None, broken())


def test_few_batches_where_workers_take_long_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large process, or a busy machine: batches of an iterator do not become the smaller for it."""
    from ndshare._map.workers.forked import Forked

    counts, start = [], Forked.start

    def slow_start(self: Forked, count: int, ranges: Any = ()) -> None:
        time.sleep(0.3)
        counts.append(count)
        start(self, count, ranges)

    monkeypatch.setattr(Forked, "start", slow_start)
    report = ndshare.ProcessContext(2, start="fork").map(lambda *_: None, iter(range(300)))
    assert report.items == 300
    assert len(counts) <= 8


def test_more_workers_than_processors() -> None:
    """8 workers add to rows of their own and, under a lock, to one array: exact sums."""
    context = ndshare.ProcessContext(8)
    counts = context.alloc(4, int, per_worker=True)
    total, lock = context.alloc((), int), ndshare.lock()

    def kernel(worker_id: int, _index: int, value: int) -> None:
        counts[worker_id, value % 4] += value
        with lock:
            total[()] += value

    report = context.map(kernel, range(10_000), shares=500)
    assert counts.sum(axis=0).tolist() == [sum(range(k, 10_000, 4)) for k in range(4)]
    assert total == sum(range(10_000))
    assert len(report.workers) == 8


def test_one_cpu_affinity_gives_one_worker(run_script) -> None:
    """At least one, and it works."""
    run_script("""
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import ndshare
out = ndshare.alloc(10)
report = ndshare.map(lambda worker_id, index, value: out.__setitem__(index, value), range(10))
assert out.tolist() == list(range(10))
assert report.num_workers == ndshare.get_default_context().num_workers == 1
""")


def test_kernel_of_a_module_that_workers_cannot_import(run_script) -> None:
    """It goes by value, for all workers of the map."""
    run_script("""
import sys, types
import ndshare
module = types.ModuleType("nowhere")
exec('def twice(x): return 2 * x', module.__dict__)
exec('def kernel(worker_id, index, value): OUT[index] = twice(value)', module.__dict__)
sys.modules["nowhere"] = module
module.OUT = ndshare.alloc(20)
report = ndshare.ProcessContext(2).map(module.kernel, range(20))
assert module.OUT.tolist() == [2 * k for k in range(20)], module.OUT
assert report.start_method == "pool"
""")


def test_context_lives_on_after_shutdown() -> None:
    """`ndshare.shutdown` ends the workers; the next map starts others."""
    context = ndshare.ProcessContext(2)
    out = context.alloc(10)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        out[index] = value

    context.map(kernel, range(10))
    ndshare.shutdown()
    out[:] = 0
    context.map(kernel, range(10))
    assert out.tolist() == list(range(10))


def test_maps_inside_forked_kernels_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a context keeps from map to map belongs to one process."""
    context = ndshare.ProcessContext(2, start="fork")
    monkeypatch.setattr(default_context, "_default", context)
    out = context.alloc((40, 30))

    def outer(_worker_id: int, i: int, _value: int) -> None:
        ndshare.map(lambda _worker_id, j, _value: out.__setitem__((i, j), 100 * i + j), range(30))
        time.sleep(0.001)

    for _ in range(5):
        out[:] = 0
        context.map(outer, range(40))
        assert np.array_equal(out, np.add.outer(100 * np.arange(40), np.arange(30)))


@pytest.mark.parametrize("start", ["pool", "fork"])
def test_child_that_comes_back_from_a_kernel_ends(start: str) -> None:
    """A kernel that forks and does not end its child: the child takes no further share."""
    context = ndshare.ProcessContext(2, start=start)
    pids = context.alloc((50, 2), int)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 7 and os.fork() == 0:
            return
        pids[index] = os.getpid(), os.getppid()

    report = context.map(kernel, range(50), shares=50)
    assert report.done.all()
    assert {int(pid) for pid, _ in pids} <= {worker.pid for worker in report.workers}


def test_context_is_usable_in_a_forked_child() -> None:
    """The child starts workers of its own."""
    context = ndshare.ProcessContext(2)
    out = context.alloc(10)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        out[index] = value

    context.map(kernel, range(10))
    out[:] = 0
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            context.map(kernel, range(10))
            ndshare.shutdown()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert out.tolist() == list(range(10))


_INTERRUPTED = """
import os, signal, threading, time, sys
import numpy as np, ndshare
kind = sys.argv[1]
context = {"serial": ndshare.SerialContext, "threads": lambda: ndshare.ThreadContext(2),
           "pool": lambda: ndshare.ProcessContext(2), "fork": lambda: ndshare.ProcessContext(2, start="fork")}[kind]()
out = context.alloc(1000)
def kernel(worker_id, index, value):
    time.sleep(0.01)
    out[index] = 1
def strike():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
pid = os.fork()
if pid == 0:
    time.sleep(0.5)
    os.kill(os.getppid(), signal.SIGINT)
    os._exit(0)
try:
    context.map(kernel, range(1000))
except KeyboardInterrupt:
    began = time.monotonic()
else:
    raise AssertionError("not interrupted")
done = out.sum()
assert done < 900
out[:] = 0
report = context.map(lambda w, i, v: out.__setitem__(i, v), range(10))
assert out[:10].tolist() == list(range(10)), out[:10]
assert time.monotonic() - began < 2
os.waitpid(pid, 0)
print("ok")
"""


@pytest.mark.parametrize("kind", ["serial", "threads", "pool", "fork"])
def test_interrupt_ends_the_map_and_the_context_goes_on(kind: str, run_script) -> None:
    """One KeyboardInterrupt, nothing printed, the next map works."""
    done = run_script(_INTERRUPTED, kind)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_quick_guide_of_pasha_runs_with_another_import(run_script) -> None:
    """As a plain script: default context, then threads, then one of its own."""
    line = {"import pasha as psh": "import ndshare as psh"}
    done = run_script(
        seed_programs.changed(seed_programs.PASHA, line)
        + """
psh.set_default_context('serial')
outp[:] = 0
psh.map(triple_it, inp)
np.testing.assert_allclose(outp, inp*3)

context = psh.ProcessContext(2)
outp[:] = 0
context.map(triple_it, inp)
np.testing.assert_allclose(outp, inp*3)
print("ok")
"""
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_blocks_of_a_stream_are_not_split() -> None:
    """Batches end where blocks do: no two workers ever add into the same row."""
    context = ndshare.ProcessContext(2)
    sums = context.alloc(2000, int, per_block=64)
    writers = context.alloc((len(sums), 2), int)

    def kernel(worker_id: int, index: int, _value: int) -> None:
        row = index // 64
        writers[row, worker_id] = 1
        before = int(sums[row])
        time.sleep(0.0002)
        sums[row] = before + 1

    report = context.map(kernel, iter(range(2000)))
    assert report.done.all()
    assert (writers.sum(axis=1) == 1).all()
    assert context.reduce(sums) == 2000


def test_arrays_of_imported_modules_are_the_callers_own(run_script, tmp_path: Path) -> None:
    """A kernel at the top level of a module writes to what the module has allocated, also through helpers."""
    (tmp_path / "storage.py").write_text(
        "import ndshare\ntotal = ndshare.alloc(())\nlock = ndshare.lock()\n"
        "def add(value):\n    with lock:\n        total[()] += value\n"
    )
    (tmp_path / "study.py").write_text(
        "import ndshare, numpy as np\nfrom storage import add\nout = ndshare.alloc(4)\ntable = np.arange(4.0)\n"
        "def kernel(worker_id, index, value):\n    out[index] = table[value] + 1\n    add(value)\n"
    )
    run_script("""
import ndshare, storage, study
context = ndshare.ProcessContext(2)
context.map(study.kernel, range(4))
assert study.out.tolist() == [1, 2, 3, 4], study.out
study.table += 10
context.map(study.kernel, range(4))
assert study.out.tolist() == [11, 12, 13, 14], study.out
context.map(lambda worker_id, index, value: study.kernel(0, index % 4, value % 4), range(10_000))
assert storage.total == 12 + 15_000, storage.total
""")


def test_map_that_waits_for_workers_ends_when_they_are_killed() -> None:
    """Two maps share the workers of one context: the second one has not begun when they are killed."""
    context = ndshare.ProcessContext(1)
    out = context.alloc(2)
    began = context.alloc(1)
    outcomes: list[BaseException] = []

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        began[0] = 1
        time.sleep(60)
        out[index] = 1

    def run() -> None:
        try:
            context.map(kernel, range(2))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not began[0] or context._executor._pool.pending < 2:  # type: ignore[union-attr]
        time.sleep(0.01)
    context._executor.kill_workers()  # type: ignore[union-attr]
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 2, outcomes
    assert not any(isinstance(error, NotImplementedError) for error in outcomes), outcomes
    assert out.tolist() == [0, 0]


def test_map_that_is_slow_today_has_all_its_workers() -> None:
    """It was over before a second worker could help, so far; now each item takes its time."""
    slow, out = ndshare.zeros(1), ndshare.zeros(20)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        if slow[0]:
            time.sleep(0.02)
        out[index] = value

    context = ndshare.ProcessContext(2)
    for _ in range(3):
        context.map(kernel, range(20))
    slow[0] = 1
    report = context.map(kernel, range(20))
    assert min(worker.items for worker in report.workers) >= 5
    assert out.tolist() == list(range(20))
