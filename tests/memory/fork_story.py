"""A program that forks in the middle of everything; run by test_fork_user.py as a script.

Arguments: how to fork, and in which state the executors are. The parent makes arrays of every kind,
forks, and then works on with the same memory while the child watches its own. Both sides check; the
first failed check ends the program with status 1.
"""

import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
import warnings

import numpy as np

import ndshare

SIZES = (1024, 70_000, 300_000, 3_000_000)  # slab slot or pickle, slab slot or message, segments


def pattern(nbytes, seed):
    """Make an array that tells its seed."""
    return np.arange(nbytes // 8) + seed


def is_pattern(a, seed):
    """Tell whether an array still has the content of `pattern`."""
    return bool((a == np.arange(a.size) + seed).all())


def echo(a):
    """Return the argument."""
    return a


def shared_pattern(nbytes, seed):
    """Make a shared array where this runs."""
    return ndshare.share(pattern(nbytes, seed))


def add_one(a):
    """Add in place."""
    a += 1


def sleep(seconds):
    """Keep a worker busy."""
    time.sleep(seconds)
    return "slept"


def nothing():
    """Serve as an initializer."""


def make_ordinary(executor):
    """Arrays that are this process's own, by every way they can come here."""
    made = {}
    for n in SIZES:
        made["result", n] = executor.submit(pattern, n, 1).result()
        made["echoed", n] = executor.submit(echo, pattern(n, 1)).result()
        made["mapped", n] = next(iter(executor.map(pattern, [n], [1])))
        made["plain", n] = pattern(n, 1)
    with ndshare.ProcessPoolExecutor(1, snapshot="submit") as early:
        for n in SIZES:
            made["early", n] = early.submit(echo, pattern(n, 1)).result()
    return made


def make_shared(executor):
    """Arrays that are everybody's."""
    made = {}
    for n in SIZES:
        made["share", n] = ndshare.share(pattern(n, 1))
        made["theirs", n] = executor.submit(shared_pattern, n, 1).result()
        made["home", n] = executor.submit(echo, ndshare.share(pattern(n, 1))).result()
        with ndshare.shared_memory():
            made["context", n] = pattern(n, 0) + 1
    return made


def churn(executor):
    """Take and write memory of all these sizes, here and in the workers, as recycling as can be."""
    for _ in range(4):
        for n in SIZES:
            executor.submit(pattern, n, 99).result()[:] = -5
            executor.submit(echo, pattern(n, 98)).result()[:] = -5
            executor.submit(add_one, ndshare.full(n // 8, -6)).result()
            keep = [ndshare.full(n // 8, -7) for _ in range(20)]
            executor.submit(shared_pattern, n, 97).result()[:] = -8
            del keep


def refused(call):
    """Check that something inherited says so."""
    try:
        call()
    except ndshare.InheritedError as error:
        text = str(error)
    else:
        raise AssertionError(f"{call} was not refused")
    assert str(os.getpid()) in text, text


class Gate:
    """A point where child and parent meet; sockets, so that the end of one frees the other."""

    def __init__(self):
        self.ends = socket.socketpair()
        self.mine = None

    def meet(self, child):
        """Wait for the other side."""
        if self.mine is None:
            self.mine = self.ends[child]
            self.ends[not child].close()
        self.mine.sendall(b"x")
        assert self.mine.recv(1) == b"x", "the other side is gone"


def fork(how, child, *args):
    """Run child(*args) in a forked process; return a function that waits and gives its exit status."""
    if how == "os.fork":
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(*args)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    process = multiprocessing.get_context("fork").Process(target=child, args=args)
    process.start()

    def wait():
        process.join()
        return process.exitcode

    return wait


def in_child(gate, how, executors, futures, ordinary, shared, sealed):
    """Be the child."""
    for key, a in (ordinary | shared | sealed).items():
        assert is_pattern(a, 1), ("at once", key)
    gate.meet(True)  # the parent drops, recycles and writes
    gate.meet(True)
    for key, a in (ordinary | sealed).items():
        assert is_pattern(a, 1), ("while the parent worked on", key)
    for key, a in shared.items():
        wanted = 2 if key[0] in ("share", "context") and key[1] in SIZES[::2] else 1
        assert is_pattern(a, wanted), ("shared", key)
    for a in ordinary.values():
        a += 10
    for a in shared.values():
        a += 10
    gate.meet(True)  # the parent looks
    gate.meet(True)
    for executor in executors:
        refused(lambda executor=executor: executor.submit(echo, 1))
        refused(lambda executor=executor: executor.map(echo, [1]))
        executor.shutdown(wait=True)
        refused(lambda executor=executor: executor.submit(echo, 1))
    for future in futures:
        refused(lambda future=future: future.result(5))
        refused(lambda future=future: future.exception(5))
        future.cancel()
    done = threading.Event()
    thread = threading.Thread(target=lambda: (ndshare.stats(), ndshare.trim(), done.set()))
    thread.start()
    thread.join()
    # An executor of its own, with the inherited arrays.
    with ndshare.ProcessPoolExecutor(1) as own:
        for key, a in ordinary.items():
            assert is_pattern(own.submit(echo, a).result(), 11), key
        for key, a in shared.items():
            seed = int(a[0])
            got = own.submit(echo, a).result()
            assert np.shares_memory(got, a), key
            own.submit(add_one, a).result()
            assert is_pattern(a, seed + 1), key
        for key, a in sealed.items():
            assert np.shares_memory(own.submit(echo, a).result(), a), key
        for n in SIZES:
            assert is_pattern(own.submit(pattern, n, 5).result(), 5)
        if how == "os.fork":  # a daemon process of multiprocessing may have none
            wait = fork(how, in_grandchild, ordinary, shared, own)
            ordinary_before = {key: a.copy() for key, a in ordinary.items()}
            churn(own)
            assert wait() == 0
            for key, a in ordinary.items():
                assert np.array_equal(a, ordinary_before[key]), key
    for key, a in (ordinary | sealed).items():
        assert is_pattern(a, 11 if key in ordinary else 1), key
    ndshare.shutdown()
    for key, a in ordinary.items():
        b = a.copy() if a.base is not None else a
        b.resize(3, refcheck=False)
        assert is_pattern(b, 11), key
    gate.meet(True)


def in_grandchild(ordinary, shared, own):
    """Be the child of the child."""
    refused(lambda: own.submit(echo, 1))
    for _ in range(3):
        time.sleep(0.1)
        for key, a in ordinary.items():
            assert is_pattern(a, 11), ("grandchild", key)
    for a in ordinary.values():
        a[:] = 0


def main(how, state):
    """Be the parent."""
    options = {"initializer": nothing} if state == "own" else {}
    executor = ndshare.ProcessPoolExecutor(1, **options)
    executors = [executor]
    ordinary, shared = make_ordinary(executor), make_shared(executor)
    sealed = {("sealed", n): ndshare.share(pattern(n, 1), mode="r") for n in SIZES}
    futures = []
    if state == "busy":
        busy = ndshare.ProcessPoolExecutor(1)
        executors.append(busy)
        futures = [busy.submit(sleep, 4.0), busy.submit(sleep, 0.0)]
        busy.submit(echo, np.zeros(100_000))
    if state == "over":
        executor.shutdown()
        ndshare.shutdown()
    gate = Gate()
    wait = fork(how, in_child, gate, how, executors, futures, ordinary, shared, sealed)
    gate.meet(False)
    if state == "over":
        executor = ndshare.ProcessPoolExecutor(1)
    # Half of what there is goes away, half stays and is worked with.
    for n in SIZES[1::2]:
        for made in (ordinary, shared, sealed):
            for key in [key for key in made if key[1] == n]:
                del made[key]
    churn(executor)
    for (kind, n), a in ordinary.items():
        assert is_pattern(executor.submit(echo, a).result(), 1), (kind, n)
        a += 5
    for (kind, _), a in shared.items():
        if kind in ("share", "context"):
            executor.submit(add_one, a).result()
    churn(executor)
    ndshare.trim()
    churn(executor)
    gate.meet(False)  # the child looks, then writes
    gate.meet(False)
    for key, a in ordinary.items():
        assert is_pattern(a, 6), ("the child wrote to an ordinary array", key)
    for key, a in shared.items():
        assert is_pattern(a, 12 if key[0] in ("share", "context") else 11), ("shared", key)
    gate.meet(False)
    churn(executor)
    gate.meet(False)
    for key, a in shared.items():
        assert is_pattern(a, 13 if key[0] in ("share", "context") else 12), ("shared", key)
    assert wait() == 0, "the child failed"
    assert [future.result() for future in futures] == ["slept"] * len(futures)
    for _ in range(3):
        churn(executor)
    # Now that the child is gone the memory is used again.
    for key, a in ordinary.items():
        assert is_pattern(a, 6), key
    for each in executors:
        each.shutdown()
    executor.shutdown()
    print("told")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once, so that the child is not waited for but sees its gate closed
