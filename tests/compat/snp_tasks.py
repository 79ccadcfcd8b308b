"""What child processes of the tests of shared_numpy do."""

from __future__ import annotations

import os
import signal

import numpy as np

from ndshare.compat import shared_numpy as snp


def fill(q):
    """The README's producer, with numbers that differ."""
    for i in range(10):
        a = snp.array([i, 2, 3, 4, 5])
        q.put(a)
        a.close()
    q.put(None)


def put_and_die(q):
    """Leave an array behind."""
    q.put(snp.array(np.arange(200_000)))
    os.kill(os.getpid(), signal.SIGKILL)


def write_first(a, value):
    """Write to an argument."""
    a[0] = value


def answer(connection):
    """Write to what comes and send it back."""
    a = connection.recv()
    a[1] = 42
    connection.send(a)
    connection.recv()
