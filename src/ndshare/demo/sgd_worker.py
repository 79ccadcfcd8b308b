"""One learner of ``ndshare demo sgd``: a program of its own that knows nothing but the dict's name.

Run as ``python -m ndshare.demo.sgd_worker NAME SEED RATE``. May be killed at any instant.
"""

from __future__ import annotations

import sys

import numpy as np

import ndshare
from ndshare.demo import network

BATCH = 512  # a gradient takes some milliseconds, and adding it up a tenth of that


def learn(name: str, seed: int, rate: float) -> None:
    """Take gradient steps on the shared weights until told to stop."""
    rng = np.random.default_rng(seed)
    with ndshare.SharedDict.attach(name) as shared:
        images, labels = shared.view("images"), shared.view("labels")  # never written again
        while not shared["stop"]:
            batch = rng.integers(len(labels), size=BATCH)
            now = shared["hidden"], shared["output"]
            change = network.gradient(*now, images[batch], labels[batch])
            # All or none: whatever kills this process, the count is that of the steps in the weights.
            with shared.locked("hidden", "output", "steps") as (hidden, output, steps):
                hidden -= rate * change[0]
                output -= rate * change[1]
                steps += 1


if __name__ == "__main__":
    learn(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
