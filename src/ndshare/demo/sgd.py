"""Asynchronous gradient descent by several processes on one `SharedDict`, some of which are killed.

::

    learner 1 ─┐                                           ┌─ this process: looks at the accuracy,
    learner 2 ─┼─▶ SharedDict: hidden, output, steps, data ┤  kills a learner now and then and
    ...       ─┘                                           └─ starts another one
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field

import ndshare
from ndshare.demo import network
from ndshare.demo.digits import Digits

_LOOK_S = 0.1  # more often, this process would take a processor from the learners
_SEED = 4


@dataclass(frozen=True)
class Course:
    """How a run went.

    Parameters
    ----------
    learners
        Number of processes.
    seconds, accuracies
        When the accuracy on the held-out digits was looked at, and what it was.
    kills
        When a learner was killed.
    steps
        Gradient steps that the weights contain.
    exact
        Whether as many steps were counted as published.
    """

    learners: int
    seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    steps: int = 0
    exact: bool = False

    def time_to(self, accuracy: float) -> float | None:
        """Return the seconds until the accuracy was reached, or None if it was not."""
        pairs = zip(self.seconds, self.accuracies, strict=True)
        return next((seconds for seconds, reached in pairs if reached >= accuracy), None)


def run(
    train: Digits,
    held_out: Digits,
    learners: int,
    seconds: float,
    kill_every_s: float | None,
    rate: float,
) -> Course:
    """Let some processes learn for a while.

    Parameters
    ----------
    train, held_out
        What is learned from, and what accuracy is measured on.
    learners
        Number of processes.
    seconds
        For how long, from the first step.
    kill_every_s
        After how many seconds one of them is killed and replaced, again and again; None for never.
    rate
        How far a step goes along the gradient.
    """
    rng = random.Random(_SEED)
    hidden, output = network.weights(train.images.shape[1])
    arrays = {
        "hidden": hidden,
        "output": output,
        "steps": 0,
        "stop": False,
        "images": train.images,
        "labels": train.labels,
    }
    course: list[tuple[float, float]] = []
    kills: list[float] = []
    with ndshare.SharedDict(arrays) as shared:
        processes = [_start(shared.name, rng, rate) for _ in range(learners)]
        try:
            shared.wait("steps", 1, timeout=60)
            start = time.perf_counter()
            while (now := time.perf_counter() - start) < seconds:
                course.append((now, network.accuracy(shared["hidden"], shared["output"], held_out)))
                if kill_every_s is not None and now > kill_every_s * (len(kills) + 1) and now < 0.8 * seconds:
                    victim = rng.randrange(learners)
                    processes[victim].kill()
                    processes[victim].wait()
                    kills.append(now)
                    processes[victim] = _start(shared.name, rng, rate)
                time.sleep(_LOOK_S)
            shared["stop"] = True
            for process in processes:
                process.wait(60)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        steps = int(shared["steps"])
        versions = {shared.version(key) for key in ("steps", "hidden", "output")}
        exact = versions == {steps + 1}
    return Course(learners, [t for t, _ in course], [a for _, a in course], kills, steps, exact)


def _start(name: str, rng: random.Random, rate: float) -> subprocess.Popen[bytes]:
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    words = [sys.executable, "-m", "ndshare.demo.sgd_worker", name, str(rng.getrandbits(32)), str(rate)]
    return subprocess.Popen(words, env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(sys.path)})
