"""A process in which many threads use SharedDicts at once, for as many seconds as are given; prints what it did.

Meant above all for interpreters without the GIL: ``PYTHON_GIL=0 python -m tests.dict.free_threads 600``.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter

import numpy as np

import ndshare
from ndshare import SharedDict
from tests.dict.dict_tasks import KEYS, LARGE, N, transfer

_THREADS = 9


class Stress:
    """Some dicts, threads that use them, and what must hold whatever they do."""

    def __init__(self) -> None:
        self.accounts = SharedDict({**dict.fromkeys(KEYS, np.full(N, 100.0)), "single": np.zeros(LARGE)})
        self.other = SharedDict({"count": np.zeros(3), "big": np.zeros(LARGE)})
        self.again = SharedDict.attach(self.accounts.name)
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.done: list[Counter[str]] = []

    def check(self, d: SharedDict) -> None:
        """No value is torn, and the sum of the accounts is what it always was."""
        values = d.read()
        for value in values.values():
            assert (value == value[0]).all(), "a torn value"
        assert sum(values[key][0] for key in KEYS) == 300, "a part of a transaction"

    def step(self, rng: random.Random, done: Counter[str]) -> None:
        """Do one of everything."""
        d = self.again if rng.random() < 0.5 else self.accounts
        how = rng.randrange(8)
        if how < 2:
            transfer(d, rng)
        elif how == 2:
            d.update({"single": 1.0}, lambda new, old: old + new, copy=rng.random() < 0.5)
            done["single"] += 1
        elif how == 3:
            self.check(d)
        elif how == 4:
            view = d.view("single")
            same = bool((view == view[0]).all())
            assert same or not d.is_intact(view), "a torn view"
        elif how == 5:  # dicts nested crosswise: one of two gives up and has done nothing
            first, second = (self.accounts, self.other) if rng.random() < 0.5 else (self.other, self.accounts)
            keys = {id(self.accounts): "single", id(self.other): "big"}
            try:
                with first.locked(keys[id(first)]) as one, second.locked(keys[id(second)]) as two:
                    one += 1
                    two += 1
            except ndshare.KeyLockError:
                done["crosswise"] += 1
            else:
                done["single"] += 1
                done["big"] += 1
        elif how == 6:
            self.other.update({"count": 1.0, "big": 1.0}, lambda new, old: old + new, atomic=True)
            done["count"] += 1
            done["big"] += 1
        else:
            with SharedDict.attach(self.accounts.name) as brief:
                brief.update({"single": 1.0}, lambda new, old: old + new)
            done["single"] += 1

    def work(self, seed: int) -> None:
        """Take steps until told to stop."""
        rng, done = random.Random(seed), Counter[str]()
        try:
            while not self.stop.is_set():
                self.step(rng, done)
                done["steps"] += 1
        except BaseException as error:
            self.failures.append(error)
            self.stop.set()
        self.done.append(done)

    def run(self, seconds: float, seed: int) -> Counter[str]:
        """Run all threads for a while; return how much was done, counted by themselves."""
        threads = [threading.Thread(target=self.work, args=(seed + i,)) for i in range(_THREADS)]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]
        total = sum(self.done, Counter[str]())
        self.check(self.accounts)
        assert (self.accounts["single"] == total["single"]).all(), "a lost update"
        assert (self.other["big"] == total["big"]).all(), "a lost update"
        assert (self.other["count"] == total["count"]).all(), "a lost update"
        for d in (self.again, self.accounts, self.other):
            assert d._store.busy == 0
            assert d._store.held() == []
            d.close()
        return total


if __name__ == "__main__":
    started = time.monotonic()
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 31)
    print(f"seed {seed}, GIL {getattr(sys, '_is_gil_enabled', lambda: True)()}", flush=True)
    print(dict(Stress().run(float(sys.argv[1]), seed)), f"{time.monotonic() - started:.1f} s", flush=True)
