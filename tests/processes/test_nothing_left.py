"""Whatever dies, nothing is left: no process, no /dev/shm entry, no descriptor, no mapping."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._processes import crew
from tests import leaks, misdeeds

pytestmark = pytest.mark.once

_GONE_S = 2.0

# Busy in all ways: tiny tasks, arrays both ways, tasks in C code, recycled workers, shared arrays, nested pools.
_BUSY = """
import random, sys, threading, time
import os
print("r", end="", flush=True)
import numpy as np
from tests import misdeeds
import ndshare
rng = random.Random({seed})
def work():
    while True:
        with ndshare.ProcessPoolExecutor(rng.randrange(1, 4), max_tasks_per_child=rng.choice((None, 5))) as executor:
            shared = ndshare.ones(rng.choice((10, 1_000_000)))
            futures = [executor.submit(misdeeds.total, np.ones(rng.choice((1, 10_000, 2_000_000)))) for _ in range(6)]
            futures += [executor.submit(misdeeds.total, shared) for _ in range(3)]
            futures += [executor.submit(misdeeds.filled, rng.choice((1, 500_000)), 1.0) for _ in range(6)]
            futures += [executor.submit(misdeeds.in_c, 10**7) for _ in range(2)]
            futures += [executor.submit(misdeeds.nested, 3)]
            for future in futures:
                future.result()
if {threads}:
    threading.Thread(target=work, daemon=True).start()
work()
"""


def _tree(token: str) -> dict[int, str]:
    """Processes that were started, directly or not, with the token in their environment."""
    found = {}
    needle = f"CHAOS_TOKEN={token}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if needle not in file.read().split(b"\0"):
                        continue
                with open(f"/proc/{entry}/stat") as file:
                    stat = file.read()
            except OSError:
                continue
            if stat.rpartition(")")[2].split()[0] not in "ZX":
                found[int(entry)] = stat[:60]
    return found


def _shm() -> set[str]:
    return {
        entry.name for entry in os.scandir("/dev/shm") if "ndshare" in entry.name and "leak" not in entry.name
    }


def _kill_one_parent(seed: int, number: int) -> None:
    rng = random.Random(seed * 1000 + number)
    token = f"{seed}-{number}-{os.getpid()}"
    before = _shm()
    # From the first moment of the zygote to a busy pool of long standing.
    pause = rng.choice((0.05, 0.15, 0.3, 0.5, 1.0, 2.0)) * rng.random()
    victim = subprocess.Popen(
        [sys.executable, "-c", _BUSY.format(seed=seed, threads=rng.random() < 0.3)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "CHAOS_TOKEN": token},
    )
    assert victim.stdout is not None
    victim.stdout.read(1)
    time.sleep(pause)
    assert victim.poll() is None, victim.communicate()
    victim.kill()
    victim.wait()
    killed = time.monotonic()
    while (left := _tree(token)) and time.monotonic() - killed < _GONE_S:
        time.sleep(0.01)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    victim.communicate()
    assert not left, (
        f"seed {seed}, round {number}, killed after {pause:.3f} s: still there {_GONE_S} s later: {left}"
    )
    assert _shm() <= before, f"seed {seed}, round {number}: left in /dev/shm: {_shm() - before}"


@pytest.mark.chaos
def test_parent_killed_at_random_moments_leaves_nothing(chaos_seed: int, chaos_rounds: int) -> None:
    """After ``kill -9`` of the user's process all workers and the zygote are gone within 2 s."""
    for number in range(5 * chaos_rounds):
        _kill_one_parent(chaos_seed, number)


def test_parent_killed_while_workers_are_stopped_or_stubborn_leaves_nothing() -> None:
    """Workers in C code, stopped by SIGSTOP, ignoring SIGTERM and SIGHUP: all die with the user's process."""
    token = f"stubborn-{os.getpid()}"
    source = """
import sys, signal, os
from tests import misdeeds
import ndshare
executor = ndshare.ProcessPoolExecutor(3)
executor.submit(misdeeds.in_c, 10**11)
executor.submit(misdeeds.deaf, 100)
executor.submit(misdeeds.end_by, int(signal.SIGSTOP))
import time
time.sleep(1.5)
print("r", end="", flush=True)
time.sleep(100)
"""
    victim = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "CHAOS_TOKEN": token},
    )
    assert victim.stdout is not None
    assert victim.stdout.read(1) == b"r"
    assert len(_tree(token)) == 5
    victim.kill()
    victim.wait()
    victim.stdout.close()
    deadline = time.monotonic() + _GONE_S
    while (left := _tree(token)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


# ---------------------------------------------------------------------- random kills of workers


class _Load:
    """Mixed load on some executors from some threads; every result is checked, also the kept ones."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.stop = threading.Event()
        self.right = 0
        self.died = 0
        self.wrong: list[str] = []

    def run(self, number: int, executor: ndshare.ProcessPoolExecutor) -> None:
        rng = random.Random(self.seed * 31 + number)
        shared = ndshare.full(200_000, float(number))
        kept: list[tuple[Any, float]] = []
        try:
            while not self.stop.is_set():
                self._once(rng, executor, shared, kept)
        except BaseException as error:
            self.wrong.append(f"thread {number}: {error!r}")
            raise

    def _once(self, rng: random.Random, executor: Any, shared: Any, kept: list[tuple[Any, float]]) -> None:
        work: list[tuple[Any, Callable[[Any], bool]]] = []
        for _ in range(rng.randrange(1, 30)):
            kind = rng.randrange(5)
            value = rng.random()
            if kind == 0:
                work.append((executor.submit(misdeeds.same, value), lambda r, v=value: r == v))
            elif kind == 1:
                count = rng.choice((10, 20_000, 300_000))
                work.append(
                    (executor.submit(misdeeds.total, np.full(count, 2.0)), lambda r, n=count: r == 2.0 * n)
                )
            elif kind == 2:
                count = rng.choice((10, 20_000, 300_000))

                def filled(result: Any, v: float = value, n: int = count) -> bool:
                    kept.append((result, v))
                    return result.shape == (n,) and bool((result == v).all())

                work.append((executor.submit(misdeeds.filled, count, value), filled))
            elif kind == 3:
                expected = float(shared[0]) * shared.size
                work.append((executor.submit(misdeeds.total, shared), lambda r, e=expected: r == e))
            else:
                work.append((executor.submit(misdeeds.nap, 0.01 * value), lambda r, v=value: r == 0.01 * v))
        for future, right in work:
            try:
                result = future.result(60)
            except ndshare.WorkerDiedError:
                self.died += 1
                continue
            if not right(result):
                self.wrong.append(f"wrong result {result!r}")
            self.right += 1
            del result
        for result, value in kept:  # nobody writes into a result of yesterday
            if not (result == value).all():
                self.wrong.append(f"a kept result changed from {value} to {result[result != value][:5]}")
        del kept[: len(kept) // 2 if rng.random() < 0.5 else 0]
        del kept[:-40]


def _workers_of_mine() -> list[int]:
    from ndshare._processes.crew import own_crew

    zygotes = {ear.zygote.process.pid for ear in list(own_crew().zygotes.values())}
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) in zygotes:
                    found.append(int(entry))
    return found


@pytest.mark.chaos
def test_random_kills_of_workers_cost_only_their_tasks(chaos_seed: int, chaos_rounds: int) -> None:
    """Workers killed at random under mixed load: other results are right, nothing hangs, nothing is left."""
    before = leaks.pictures()
    kills = 50 * chaos_rounds
    load = _Load(chaos_seed)
    rng = random.Random(chaos_seed)
    with contextlib.ExitStack() as stack:
        executors = [
            stack.enter_context(ndshare.ProcessPoolExecutor(2)),
            stack.enter_context(ndshare.ProcessPoolExecutor(2, max_tasks_per_child=20)),
        ]
        for executor in executors:
            executor.submit(misdeeds.same, 1).result()
        threads = [threading.Thread(target=load.run, args=(i, executors[i % 2])) for i in range(3)]
        for thread in threads:
            thread.start()
        done = 0
        while done < kills and not load.wrong:
            time.sleep(0.05 * rng.random())
            if pids := _workers_of_mine():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV)))
                    done += 1
        load.stop.set()
        for thread in threads:
            thread.join(90)
            assert not thread.is_alive(), "a thread hangs"
    assert not load.wrong
    assert load.died > 0
    assert load.right > 0
    print(f"{done} kills: {load.right} results right, {load.died} tasks died")
    del load, threads, executors, executor
    gc.collect()
    left = leaks.left_behind(before)
    assert not left, left


# ---------------------------------------------------------------------- ordinary use


def test_ordinary_use_leaves_nothing(tmp_path: Path) -> None:
    """Executors of every kind, used, abandoned, shut down or not: after `shutdown` and `trim` all is as before."""
    before = leaks.pictures()
    with ndshare.ProcessPoolExecutor(2) as executor:
        assert executor.submit(misdeeds.filled, 1_000_000, 1.0).result().sum() == 1_000_000
        list(executor.map(misdeeds.same, range(1000)))
    with ndshare.ProcessPoolExecutor(2, initializer=misdeeds.same, max_tasks_per_child=3) as executor:
        list(executor.map(misdeeds.same, range(50)))
    with ndshare.ProcessPoolExecutor(1, env={"OMP_NUM_THREADS": "1"}, preload=["json"]) as executor:
        list(executor.map(misdeeds.same, range(5)))
    executor = ndshare.ProcessPoolExecutor(2)  # never shut down, dropped while a task runs
    executor.submit(misdeeds.nap, 0.2)
    del executor
    executor = ndshare.ProcessPoolExecutor(2)
    future = executor.submit(misdeeds.nap, 60)
    time.sleep(0.2)
    executor.kill_workers()
    assert isinstance(future.exception(5), ndshare.WorkerDiedError)
    del executor, future
    gc.collect()
    assert leaks.left_behind(before) == {}


def test_many_executors_leave_nothing_while_the_workers_stay() -> None:
    """Descriptors, mappings and threads do not grow with the number of executors."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        list(executor.map(misdeeds.same, range(10)))
        executor.submit(misdeeds.filled, 100_000, 1.0).result()
    counts = []
    for _ in range(3):
        for _ in range(15):
            with ndshare.ProcessPoolExecutor(2) as executor:
                assert executor.submit(misdeeds.filled, 100_000, 1.0).result()[0] == 1.0
            with ndshare.ProcessPoolExecutor(1, max_tasks_per_child=1) as executor:
                assert executor.submit(misdeeds.same, 1).result() == 1
        gc.collect()
        deadline = time.monotonic() + 10
        while len(crew.own_crew().workers) > 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # those that belonged to their executor are on their way out
        counts.append(
            (len(os.listdir("/proc/self/fd")), threading.active_count(), len(leaks.Mappings().picture()))
        )
    assert counts[2][0] <= counts[0][0] + 2, counts
    assert counts[2][1] == counts[0][1]
    assert counts[2][2] <= counts[0][2] + 2, counts


def test_interpreter_that_ends_with_open_executors_leaves_nothing(run_script: Callable[..., Any]) -> None:
    """Without ``shutdown`` the interpreter waits for what was submitted, prints nothing, leaves no process."""
    token = f"open-{os.getpid()}"
    done = run_script(
        """
import sys
from tests import misdeeds
import ndshare
executor = ndshare.ProcessPoolExecutor(2)
futures = [executor.submit(misdeeds.nap, 0.2) for _ in range(5)]
kept = executor.submit(misdeeds.filled, 1_000_000, 1.0).result()
future = executor.submit(misdeeds.note, sys.argv[1], 1)
""",
        "journal",
        CHAOS_TOKEN=token,
    )
    assert done.stderr == ""
    assert not _tree(token)
