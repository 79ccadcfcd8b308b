"""Ctrl-C at random moments of a busy program; run by test_interrupts.py, or by hand: SEED ROUNDS.

A child process sends one SIGINT per round, after a random pause. The program must see exactly one
KeyboardInterrupt per round, every future must be done soon after, with the right result or an honest
error, and the executor must go on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import faulthandler
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator

import numpy as np

import ndshare
from tests import misdeeds

warnings.simplefilter("ignore", ndshare.RepeatedCopyWarning)

_HANG_S = 30.0


def sender(pid: int, go: int, seed: int, group: bool) -> None:
    """Send a SIGINT a random moment after each byte."""
    rng = random.Random(seed)
    while os.read(go, 1):
        time.sleep(rng.choice((0.0, 0.001, 0.003, 0.01, 0.03)) * rng.random())
        if group:
            os.killpg(pid, signal.SIGINT)
        else:
            os.kill(pid, signal.SIGINT)
    os._exit(0)


def one_thing(rng: random.Random, executor: ndshare.ProcessPoolExecutor, futures: list) -> None:
    """Something that a program does with an executor; what it submits is noted."""
    kind = rng.randrange(7)
    if kind == 0:
        futures.append((executor.submit(misdeeds.same, 1), 1))
        futures[-1][0].result()
    elif kind == 1:
        for i in range(rng.randrange(100)):
            futures.append((executor.submit(misdeeds.same, i), i))
    elif kind == 2:
        n = rng.randrange(200)
        assert list(executor.map(misdeeds.same, range(n), chunksize=rng.randrange(1, 5))) == list(range(n))
    elif kind == 3:
        array = np.full(rng.choice((10, 10_000, 300_000)), 3.0)
        futures.append((executor.submit(misdeeds.total, array), 3.0 * array.size))
        futures[-1][0].result()
    elif kind == 4:
        value = rng.random()
        future = executor.submit(misdeeds.filled, 200_000, value)
        assert (future.result() == value).all()
    elif kind == 5:
        some = [executor.submit(misdeeds.same, i) for i in range(20)]
        futures += [(future, i) for i, future in enumerate(some)]
        for future in some[10:]:
            future.cancel()
        for future in some[:10]:
            future.result()
    else:
        # Not `as_completed` or `wait`: interrupted while they lock the futures they leave them locked, with any
        # executor.
        heard: list = []
        future = executor.submit(misdeeds.same, 5)
        futures.append((future, 5))
        future.add_done_callback(heard.append)
        for _ in range(10_000):
            if heard:
                break
            time.sleep(0.0005)
        else:
            raise AssertionError("a callback was never called")


@contextlib.contextmanager
def told(executor: ndshare.ProcessPoolExecutor) -> Iterator[None]:
    """Print a failure with the pool's books before the executor waits for what may never come."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        pool = executor._pool
        print(
            f"pending {pool.pending}, queue {len(pool.queue)}, held {pool.held}, free {len(pool.roster.free)}",
            [(w.pid, len(w.inflight), w.sending, w.leaving, w.gone) for w in pool.workers],
            file=sys.stderr,
        )
        raise


def main(seed: int, rounds: int, group: bool) -> None:
    """Run the rounds; any hang ends the process with a dump of all stacks."""
    if group and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    rng = random.Random(seed)
    pid = os.getpid()
    read_end, go = os.pipe()
    child = os.fork()
    if child == 0:
        if group:
            os.setpgid(0, 0)  # out of the group that gets the signal
        os.close(go)
        sender(pid, read_end, seed, group)
    os.close(read_end)
    struck = 0
    with ndshare.ProcessPoolExecutor(2) as executor, told(executor):
        for number in range(rounds):
            faulthandler.dump_traceback_later(_HANG_S, exit=True)
            futures: list = []
            try:
                os.write(go, b"x")
                while True:
                    one_thing(rng, executor, futures)
            except KeyboardInterrupt:
                struck += 1
            pending = concurrent.futures.wait([future for future, _ in futures], timeout=10).not_done
            assert not pending, f"round {number}: {len(pending)} futures are never done"
            for future, expected in futures:
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    assert future.result() == expected, (number, future.result(), expected)
                else:
                    assert isinstance(error, KeyboardInterrupt | ndshare.WorkerDiedError), (number, error)
            assert list(executor.map(misdeeds.same, range(10), timeout=10)) == list(range(10))
    os.close(go)
    os.waitpid(child, 0)
    assert struck == rounds
    before = time.monotonic()
    ndshare.shutdown()
    assert time.monotonic() - before < 10
    ndshare.trim()
    faulthandler.cancel_dump_traceback_later()
    print("ok")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "group")
