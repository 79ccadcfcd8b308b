"""Everything from two threads for a long time, with workers killed at random; every value is checked, nothing may grow.

::

    round:   thread 1 ── deeds ──┐                       ┌── picture: descriptors, mappings, PSS, /dev/shm
             thread 2 ── deeds ──┼── all done, collected ┤
             killer  ── SIGKILL ─┘                       └── next round

A deed is a few lines of a program as people write them. Whatever a worker's death costs is an error that says so, never
a wrong value. Run by hand: ``python -m tests.soak.soak --seconds 1800 --seed 1 --plot soak.png``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ndshare
from tests import jobs, misdeeds
from tests.kernel import children, descendants, pss

_ROUND_S = 4.0
_KILL_S = 0.7  # on average between two kills
_DEAD = (ndshare.WorkerDiedError, ndshare.InitializerError)


def _add_one(x: Any) -> Any:
    return x + 1


def _echo(q_in: Any, q_out: Any, count: int) -> int:
    for _ in range(count):
        q_out.put(q_in.get(timeout=20))
    return count


def _raise_to(name: str, value: float) -> None:
    with ndshare.SharedDict.attach(name) as d:
        new = {"a": np.full(50_000, value), "b": np.full(10, value)}
        d.update(new, np.maximum, atomic=True)


class Deeds:
    """What one thread does."""

    def __init__(self, rng: random.Random, number: int) -> None:
        self.rng = rng
        self.number = number
        self.done = 0
        self.died = 0
        self.executor: ndshare.ProcessPoolExecutor | None = None

    def pool(self) -> ndshare.ProcessPoolExecutor:
        """Return the executor of this thread; now and then a new one of another kind."""
        if self.executor is None or self.rng.random() < 0.1:
            self.close()
            kind = self.rng.randrange(3)
            self.executor = ndshare.ProcessPoolExecutor(
                2, **({}, {"max_tasks_per_child": 5}, {"initializer": jobs.identity, "initargs": (1,)})[kind]
            )
        return self.executor

    def close(self) -> None:
        """End the executor."""
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=self.rng.random() < 0.5)
            self.executor = None

    def arrays(self) -> None:
        """Arrays of all sizes, by value and shared."""
        pool = self.pool()
        size = self.rng.choice((10, 1000, 70_000, 1_000_000))
        x = (ndshare.array if self.rng.random() < 0.5 else np.array)(np.full(size, self.rng.random()))
        for future in [pool.submit(_add_one, x) for _ in range(4)]:
            result = future.result(60)
            assert (result == x + 1).all(), "wrong sum"

    def tiny(self) -> None:
        """Hundreds of tiny tasks; some are cancelled."""
        pool = self.pool()
        futures = [pool.submit(misdeeds.same, i) for i in range(300)]
        cancelled = [future.cancel() for future in futures[200:]]
        for i, future in enumerate(futures):
            if i < 200 or not cancelled[i - 200]:
                assert future.result(60) == i, "answer of another task"

    def one_dies(self) -> None:
        """A task that kills its worker fails alone."""
        pool = self.pool()
        bad = pool.submit(misdeeds.end_by, signal.SIGKILL)
        good = [pool.submit(misdeeds.same, i) for i in range(20)]
        assert isinstance(bad.exception(60), ndshare.WorkerDiedError)
        assert [f.result(60) for f in good] == list(range(20))

    def map(self) -> None:
        """A map into shared memory, complete or with the items that died named."""
        n = self.rng.choice((10, 1000, 20_000))
        out = ndshare.alloc(n, fill=-1)
        factor = self.rng.randrange(100)

        def kernel(_worker_id: int, index: int, value: int) -> None:
            out[index] = factor * value

        report = ndshare.map(kernel, range(n), on_error="collect", retries=3)
        wrong = np.flatnonzero(out != factor * np.arange(n))
        assert set(wrong) <= {index for index, _ in report.errors}, "wrong item without an error"

    def queue(self) -> None:
        """Messages to a worker and back, in order."""
        there, back = ndshare.Queue(self.rng.choice((0, 3))), ndshare.Queue()
        try:
            future = self.pool().submit(_echo, there, back, 10)
            for i in range(10):
                self._patient(future, there.put, (i, np.full(self.rng.choice((5, 40_000)), i)))
            for i in range(10):
                number, array = self._patient(future, back.get)
                assert number == i, "wrong message"
                assert (array == i).all(), "wrong content"
            future.result(60)
        finally:
            there.close()
            back.close()

    @staticmethod
    def _patient(future: Any, call: Callable[..., Any], *args: Any) -> Any:
        """Put or get; if nobody is there any more at the other end, raise why."""
        for _ in range(100):
            ended = future.done()  # looked at first: what it had put before is there now
            try:
                return call(*args, timeout=0.5)
            except (queue.Full, queue.Empty):
                if ended:
                    future.result()
        raise AssertionError("nobody answers")

    def shared_dict(self) -> None:
        """Updates by workers and by this thread; both keys belong together."""
        name = f"soak-{self.number}"
        with ndshare.SharedDict({"a": np.zeros(50_000), "b": np.zeros(10)}, name) as d:
            pool = self.pool()
            futures = [pool.submit(_raise_to, name, float(i)) for i in range(5)]
            for _ in range(20):
                both = d.read(("a", "b"))
                a, b = both["a"], both["b"]
                assert a.min() == a.max() == b.min() == b.max(), "torn"
            deaths = [future.exception(60) for future in futures]
            done = [i for i, death in enumerate(deaths) if death is None]
            for death in deaths:
                if death is not None and not isinstance(death, _DEAD):
                    raise death
            assert not done or d["a"][0] >= max(done), "lost update"

    def workspace(self) -> None:
        """Names in functions."""
        values = np.arange(self.rng.choice((10, 100_000)))
        with ndshare.Workspace({"values": values}, num_workers=2) as space:

            @space.register
            def times(factor: int) -> int:
                return int((values * factor).sum())

            for factor in range(6):
                times(factor)
            assert space.evaluate() == [int(values.sum()) * factor for factor in range(6)]

    def run(self, until: float) -> None:
        """Do one after another."""
        deeds: list[Callable[[], None]] = [
            self.arrays, self.tiny, self.one_dies, self.map, self.queue, self.shared_dict, self.workspace
        ]  # fmt: skip
        while time.monotonic() < until:
            try:
                self.rng.choice(deeds)()
            except _DEAD:
                self.died += 1
            self.done += 1


def _workers() -> list[int]:
    """Processes below the one that workers are forked from: those, not it, are killed."""
    return [pid for child in children(os.getpid()) for pid in children(child)]


def _kill(rng: random.Random, stop: threading.Event, killed: list[int]) -> None:
    while not stop.wait(rng.expovariate(1 / _KILL_S)):
        workers = _workers()
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed.append(1)


def picture() -> dict[str, float]:
    """Return what is held now: of the caller, and PSS of it and of all below it.

    Without the memory that is kept warm for what comes: how much that is depends on what came last.
    """
    gc.collect()
    ndshare.trim()
    ctypes.CDLL(None).malloc_trim(0)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "PSS (MB)": sum(map(pss, [os.getpid(), *descendants(os.getpid())])) / 1e6,
        "/dev/shm": len([name for name in os.listdir("/dev/shm") if "ndshare" in name]),
        "processes": len(descendants(os.getpid())),
        "threads": threading.active_count(),
    }


def slopes(pictures: list[dict[str, float]], settled_s: float) -> dict[str, float]:
    """Return how much each figure grows per minute once everything has been used, by the Theil-Sen estimator."""
    late = [one for one in pictures if one["s"] >= settled_s] or pictures
    found = {}
    for name in late[0]:
        if name == "s":
            continue
        pairs = [
            (b[name] - a[name]) / (b["s"] - a["s"])
            for i, a in enumerate(late)
            for b in late[i + 1 :]
            if b["s"] > a["s"]
        ]
        found[name] = 60 * float(np.median(pairs)) if pairs else 0.0
    return found


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """Run for so long.

    Returns
    -------
    dict
        ``pictures`` after each round, ``slopes`` per minute from the second minute on (the second half of a shorter
        run), numbers of ``deeds``, of ``kills`` and of deeds that ended by a death.
    """
    rng = random.Random(seed)
    threads = [Deeds(random.Random(rng.random()), number) for number in range(2)]
    began = time.monotonic()
    pictures, killed, failures = [], [], []
    warnings.simplefilter("ignore", ndshare.RepeatedCopyWarning)

    def live(deeds: Deeds, until: float) -> None:
        try:
            deeds.run(until)
        except BaseException:
            failures.append(traceback.format_exc())

    while (elapsed := time.monotonic() - began) < seconds and not failures:
        until = time.monotonic() + min(_ROUND_S, seconds - elapsed)
        stop = threading.Event()
        killer = threading.Thread(target=_kill, args=(random.Random(rng.random()), stop, killed))
        killer.start()
        running = [threading.Thread(target=live, args=(deeds, until)) for deeds in threads]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        stop.set()
        killer.join()
        pictures.append({"s": time.monotonic() - began, **picture()})
    for deeds in threads:
        deeds.close()
    if failures:
        raise AssertionError(f"seed {seed}:\n" + "\n".join(failures))
    return {
        "seed": seed,
        "deeds": sum(deeds.done for deeds in threads),
        "deaths": sum(deeds.died for deeds in threads),
        "kills": len(killed),
        "slopes": slopes(pictures, min(60.0, seconds / 2)),
        "pictures": pictures,
    }


def _plot(found: dict[str, Any], path: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in found["pictures"][0] if name != "s"]
    figure, axes = plt.subplots(
        len(names), 1, figsize=(8, 1.5 * len(names)), sharex=True, layout="constrained"
    )
    minutes = [one["s"] / 60 for one in found["pictures"]]
    for axis, name in zip(axes, names, strict=True):
        axis.plot(minutes, [one[name] for one in found["pictures"]], linewidth=1)
        axis.set_ylabel(name, fontsize=8)
        axis.set_ylim(0, 1.15 * max(1, *(one[name] for one in found["pictures"])))
        axis.set_title(f"{found['slopes'][name]:+.2f} per minute", fontsize=8, loc="right")
    axes[-1].set_xlabel("minutes")
    figure.suptitle(f"{found['deeds']} deeds, {found['kills']} kills, seed {found['seed']}", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run, print the slopes, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--plot")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    found = soak(options.seconds, options.seed)
    if options.plot:
        _plot(found, options.plot)
    ndshare.shutdown()
    print(json.dumps({name: value for name, value in found.items() if name != "pictures"}, indent=1))
    print(json.dumps(found["pictures"][-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
