"""Locks of several dicts at once: who waits for whom is noticed."""

from __future__ import annotations

import contextlib
import os
import threading

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from tests.dict.dict_tasks import ended, forked, until

pytestmark = pytest.mark.once


def _add(new, old):
    return old + new


class _Meeting:
    """A barrier between processes."""

    def __init__(self, there, number):
        self.there = there
        self.number = number

    def wait(self):
        self.there.update({"there": 1}, _add)
        until(lambda: self.there["there"] == self.number)


def _cross(first, second, barrier, outcome, timeout=None):
    """Lock a key of one dict, wait until the other side has done so too, then lock one of the other dict."""
    try:
        with first.locked("a") as a:
            barrier.wait()
            with second.locked("a", timeout=timeout) as b:
                a += 1
                b += 1
        outcome.append("done")
    except ndshare.KeyLockError as error:
        outcome.append(str(error))


def test_rings_of_two_dicts_threads_that_wait_for_each_other():
    """Crosswise nesting of two dicts: one of the two raises and says who waits, the other goes on."""
    with SharedDict({"a": np.zeros(3)}) as one, SharedDict({"a": np.zeros(3)}) as two:
        barrier, outcome = threading.Barrier(2), []
        threads = [
            threading.Thread(target=_cross, args=(*pair, barrier, outcome))
            for pair in ((one, two), (two, one))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused, done = sorted(outcome, key=lambda text: text == "done")
        assert done == "done"
        assert f"process {os.getpid()} has it and waits for" in refused
        assert [one["a"][0], two["a"][0]] == [1, 1]  # of the one that went on; what the other did was dropped


@pytest.mark.parametrize("number", [2, 3])
def test_rings_of_several_dicts_processes_in_a_ring(number):
    """Each of several processes has what the one before wants: at least one raises, the others end."""
    with contextlib.ExitStack() as stack:
        barrier = _Meeting(stack.enter_context(SharedDict({"there": 0})), number)
        dicts = [stack.enter_context(SharedDict({"a": np.zeros(3)})) for _ in range(number)]

        def meet(i):
            outcome = []
            _cross(dicts[i], dicts[(i + 1) % number], barrier, outcome)
            assert outcome == ["done"] or "and waits for what this thread has" in outcome[0]
            os._exit(3 if outcome != ["done"] else 0)

        statuses = [ended(pid) for pid in [forked(lambda i=i: meet(i)) for i in range(number)]]
        assert set(statuses) == {0, 3}
        assert sum(d["a"][0] for d in dicts) == 2 * statuses.count(0)
        for d in dicts:
            d.update({"a": 0}, _add, timeout=1)


def test_rings_of_two_dicts_in_one_order_wait_in_peace():
    """Nesting two dicts in the same order everywhere, in turn with plain updates, never raises."""
    with SharedDict({"a": np.zeros(3)}) as one, SharedDict({"a": np.zeros(3)}) as two:

        def work():
            for _ in range(300):
                with one.locked("a") as a, two.locked("a") as b:
                    a += 1
                    b += 1
                two.update({"a": 1}, _add)

        pids = [forked(work) for _ in range(3)]
        assert [ended(pid) for pid in pids] == [0, 0, 0]
        assert [one["a"][0], two["a"][0]] == [900, 1800]


def test_rings_of_two_dicts_timeout_comes_first_if_it_is_short():
    """A timeout ends a wait in a ring like any other."""
    with SharedDict({"a": np.zeros(3)}) as one, SharedDict({"a": np.zeros(3)}) as two:
        barrier, outcome = threading.Barrier(2), []

        def impatient():
            with two.locked("a"):
                barrier.wait()
                with pytest.raises(TimeoutError, match=f"process {os.getpid()} has it"):
                    one.locked("a", timeout=0.001).__enter__()

        threads = [
            threading.Thread(target=_cross, args=(one, two, barrier, outcome)),
            threading.Thread(target=impatient),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcome == ["done"]
