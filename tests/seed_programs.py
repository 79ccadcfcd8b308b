"""The programs that contextshare and pasha show to their users, with their own import lines."""

from __future__ import annotations

#: contextshare's quick guide, smaller, and without its main guard.
CONTEXTSHARE = """
#!/usr/bin/env python
import contextshare as shared
import numpy as np


def serial(sigmas):
    alphas = []
    for sigma in sigmas:
        K = np.exp(-0.5 * D / (sigma * sigma))
        alphas.append(np.linalg.solve(K, b))
    return alphas


def parallel(sigmas):
    with shared.SharedMemory({"D": D, "b": b}, nworkers=11) as sm:

        @sm.register
        def one_sigma(sigma):
            K = np.exp(-0.5 * D / (sigma * sigma))
            return np.linalg.solve(K, b)

        for sigma in sigmas:
            one_sigma(sigma)

        return sm.evaluate(progress=True)


N = 200
D = np.random.random((N, N))
b = np.random.random(N)

sigmas = 2.0 ** np.arange(1, 12)

s = serial(sigmas)
p = parallel(sigmas)
assert len(p) == len(s) == 11
"""

#: pasha's quick guide.
PASHA = """
import numpy as np
import pasha as psh

inp = np.random.rand(100)
outp = psh.alloc(like=inp)

def triple_it(worker_id, index, value):
    outp[index] = 3 * value

psh.map(triple_it, inp)
np.testing.assert_allclose(outp, inp*3)

psh.set_default_context('threads', num_workers=4)
outp[:] = 0
psh.map(triple_it, inp)
np.testing.assert_allclose(outp, inp*3)
"""


def changed(program: str, changes: dict[str, str]) -> str:
    """Return a program with some of its text replaced; what is to be replaced has to be there."""
    for old, new in changes.items():
        assert old in program, old
        program = program.replace(old, new)
    return program
