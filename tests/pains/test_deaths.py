"""Deaths, hangs and what is left behind, which users of other libraries get: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import ndshare
from tests import jobs, kernel, misdeeds

pytestmark = pytest.mark.once


def _entries() -> set[str]:
    return set(os.listdir("/dev/shm"))


_BUSY = """
import os, sys, time
import numpy as np, ndshare
d = ndshare.SharedDict({"a": np.zeros(100_000)}, sys.argv[1])
q = ndshare.Queue()
ex = ndshare.ProcessPoolExecutor(2)
pids = [f.result() for f in [ex.submit(os.getpid) for _ in range(8)]]
arrays = [ndshare.ones(100_000) for _ in range(10)]
f = ex.submit(time.sleep, 60); q.put(arrays)
zygote = [int(p) for t in os.listdir("/proc/self/task") for p in open(f"/proc/self/task/{t}/children").read().split()]
print(*{*pids, *zygote}, flush=True)
time.sleep(60)
"""


def test_04_nothing_survives_kill_9() -> None:
    """After `kill -9` of a whole tree no process and no name is left, but that of its SharedDict, which `prune` removes."""
    before = _entries()
    with ndshare.SharedDict({"a": np.zeros(3)}, "pains-04-alive"):
        victim = subprocess.Popen(
            [sys.executable, "-c", _BUSY, "pains-04-dead"], stdout=subprocess.PIPE, text=True
        )
        assert victim.stdout is not None
        pids = list(map(int, victim.stdout.readline().split()))
        for pid in (victim.pid, *pids):
            os.kill(pid, signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
        jobs.wait_for(lambda: all(map(kernel.gone, pids)))
        left = _entries() - before
        assert all("pains-04" in name for name in left), left
        assert ndshare.prune() == ["pains-04-dead"]
        with ndshare.SharedDict.attach("pains-04-alive") as alive:
            assert alive["a"].sum() == 0
    assert _entries() <= before


def test_05_one_dead_worker_costs_one_item() -> None:
    """Of 100 items item 37 kills its worker: 99 results and one error with index and signal; the next call works."""
    out = ndshare.alloc(100, fill=-1)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        if index == 37:
            os.kill(os.getpid(), signal.SIGKILL)
        out[index] = value

    context = ndshare.ProcessContext(2)
    report = context.map(kernel, range(100), on_error="collect")
    [(index, error)] = report.errors
    assert index == 37
    assert isinstance(error, ndshare.WorkerDiedError)
    assert error.signal_number == signal.SIGKILL
    assert (np.delete(out, 37) == np.delete(np.arange(100), 37)).all()
    assert context.map(lambda *_: None, range(10)).errors == []


class Unpicklable:
    """Cannot be sent."""

    def __reduce__(self) -> Any:
        raise TypeError("never")


def _result() -> Any:
    return Unpicklable()


def _throw(what: Any) -> None:
    raise what


@pytest.mark.parametrize(
    ("function", "argument", "kind"),
    [
        (jobs.identity, Unpicklable(), TypeError),
        (lambda _: _result(), None, Exception),
        (_throw, SystemExit(3), (SystemExit, ndshare.NdshareError)),
        (_throw, KeyboardInterrupt(), (KeyboardInterrupt, ndshare.NdshareError)),
        (_throw, misdeeds.NoTextError(), Exception),
        (misdeeds.leave, 3, ndshare.WorkerDiedError),
    ],
    ids=["argument", "result", "SystemExit", "KeyboardInterrupt", "no text", "exit"],
)
def test_06_what_cannot_travel_is_an_error(function: Any, argument: Any, kind: Any) -> None:
    """Arguments, results and exceptions that cannot travel reach the caller as errors, and the pool goes on."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        error = executor.submit(function, argument).exception(60)
        assert isinstance(error, kind), repr(error)
        assert executor.submit(jobs.identity, 5).result(60) == 5


def test_06_failing_initializer() -> None:
    """The tasks that wait for it fail, with its text."""
    with ndshare.ProcessPoolExecutor(1, initializer=jobs.failing_initializer) as executor:
        error = executor.submit(jobs.identity, 5).exception(60)
    assert isinstance(error, ndshare.InitializerError)
    assert "no model" in str(error)


def test_07_views_outlive_everything(run_script: Any) -> None:
    """10,000 random creations, views and deletions under faulthandler: no crash, no text, no descriptor kept."""
    done = run_script(
        """
import gc, os, random
import numpy as np, ndshare
rng = random.Random(7)
ndshare.zeros(10**6); before = len(os.listdir("/proc/self/fd"))
alive = []
for step in range(10_000):
    deed = rng.randrange(4)
    if deed == 0 or not alive:
        alive.append(ndshare.zeros(rng.choice((3, 1000, 100_000))))
    elif deed == 1:
        alive.append(rng.choice(alive)[:: rng.choice((1, 2, -1))])
    elif deed == 2:
        alive.pop(rng.randrange(len(alive)))
    elif step % 100 == 0:
        gc.collect()
    if len(alive) > 100:
        del alive[:50]
    alive[-1:] and alive[-1][:1].fill(1)
del alive; gc.collect(); ndshare.trim()
assert len(os.listdir("/proc/self/fd")) <= before
""",
        interpreter_args=("-X", "faulthandler"),
    )
    assert done.stderr == ""


def test_14_the_lock_of_the_dead_is_free() -> None:
    """`kill -9` of the holder of a key: the next one gets it at once; a lock says that its owner died."""
    with ndshare.SharedDict({"a": np.zeros(3)}, "pains-14") as d:
        pid = os.fork()
        if pid == 0:
            with ndshare.SharedDict.attach("pains-14") as mine, mine.locked("a"):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        with d.locked("a", timeout=5) as a:
            a[:] = 1
    lock = ndshare.lock(report_death=True)
    pid = os.fork()
    if pid == 0:
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(ndshare.OwnerDiedError):
        lock.acquire(timeout=5)


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.3, 1.0])
def test_17_workers_end_with_their_parent(pause: float) -> None:
    """`kill -9` of the caller at any moment, also in C code: its workers are gone soon."""
    source = (
        "import os, sys, ndshare, time, numpy as np\n"
        "ex = ndshare.ProcessPoolExecutor(2)\n"
        "def endless(): sum(iter(int, 1))\n"
        "fs = [ex.submit(endless) for _ in range(2)]\n"
        "print(1, flush=True); time.sleep(60)\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    victim.stdout.readline()
    time.sleep(pause)
    pids = kernel.descendants(victim.pid)
    victim.kill()
    victim.wait()
    victim.stdout.close()
    jobs.wait_for(lambda: all(map(kernel.gone, pids)))


def test_18_one_ctrl_c_one_traceback() -> None:
    """Ctrl-C to the whole group in the middle of a map: one traceback, no worker's text, the next map works."""
    source = """
import time, ndshare
context = ndshare.ProcessContext(2)
def nap(worker_id, index, value):
    time.sleep(0.05)
context.map(nap, range(4))
try:
    print("ready", flush=True)
    context.map(nap, range(10_000))
except KeyboardInterrupt:
    context.map(nap, range(4))
    print("next", flush=True)
    raise
"""
    program = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert out == "next\n"
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_19_what_was_sent_outlives_its_sender() -> None:
    """A producer puts 100 arrays and ends at once; they are read later."""
    queue = ndshare.Queue()
    pid = os.fork()
    if pid == 0:
        for i in range(100):
            queue.put(np.full(20_000, i))
        queue.close()
        queue.join_thread()
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(1)
    assert [int(queue.get(timeout=20)[0]) for _ in range(100)] == list(range(100))
    queue.close()


@pytest.mark.chaos
def test_21_many_tasks_cancels_and_abrupt_ends(chaos_rng: Any, chaos_rounds: int) -> None:
    """Thousands of tiny tasks, random cancels, recycled workers, abrupt shutdown: nothing ever waits for ever."""
    for _ in range(5 * chaos_rounds):
        executor = ndshare.ProcessPoolExecutor(2, max_tasks_per_child=chaos_rng.choice((None, 7, 100)))
        futures = [executor.submit(misdeeds.same, i) for i in range(3000)]
        for future in chaos_rng.sample(futures, 300):
            future.cancel()
        executor.shutdown(wait=True, cancel_futures=chaos_rng.random() < 0.5)
        for i, future in enumerate(futures):
            assert future.done()
            assert future.cancelled() or future.result() == i


def test_28_an_endless_item_is_ended() -> None:
    """An endless loop in C with `timeout=1`: TimeoutError for that item, its neighbours unharmed."""
    out = ndshare.alloc(10)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        if index == 4:
            sum(iter(int, 1))
        out[index] = value + 1

    report = ndshare.ProcessContext(2).map(kernel, range(10), timeout=1.0, on_error="collect")
    [(index, error)] = report.errors
    assert (index, type(error)) == (4, TimeoutError)
    assert (np.delete(out, 4) == np.delete(np.arange(1, 11), 4)).all()
