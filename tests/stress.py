"""Everything from many threads at once, in one process: what ThreadSanitizer and builds without a GIL run.

    python -m tests.stress [--seconds 10] [--threads 6] [--seed N] [--only heap,dict,lock,queue,map,executor,modules]

Every value is checked. Ends with a line that says how often each thing was done; any error ends it with a traceback.
"""

from __future__ import annotations

import argparse
import collections
import gc
import os
import random
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable

import numpy as np

import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments

_SIZES = (0, 30, 3000, 20_000, 100_000, 300_000, 1_200_000)


class Changing:
    """A class of the program that is given attributes, and loses them, while tasks take it along."""


class Stress:
    """What the threads have in common."""

    def __init__(self) -> None:
        self.dict = ndshare.SharedDict({"a": np.zeros(100), "b": np.zeros(40_000), "n": 0})
        self.lock = ndshare.lock()
        self.queue: ndshare.Queue = ndshare.Queue()
        self.counted = np.zeros(1, np.int64)
        self.exchange: collections.deque[object] = collections.deque(maxlen=8)
        self.block = segments.stage(5000)
        self.done: collections.Counter[str] = collections.Counter()
        self.errors: list[str] = []
        self.put = self.got = 0
        self.sums = threading.Lock()
        self.executor = ndshare.ProcessPoolExecutor(2)
        self.threads, self.processes = ndshare.ThreadContext(2), ndshare.ProcessContext(2, start="pool")

    def heap(self, rng: random.Random, kept: list[tuple[np.ndarray, int]]) -> None:
        """Allocate, fill, lend, take back, resize, adopt, drop."""
        n, value = rng.choice(_SIZES), rng.randrange(250)
        way = rng.randrange(4)
        if way == 0:
            a = _arrays.full(n, value, np.uint8)
        elif way == 1:
            with ndshare.shared_memory():
                a = np.full(n, value, np.uint8)
        elif way == 2:
            former = _heap.set_handler(segments.value_handler())
            a = np.full(n, value, np.uint8)
            _heap.set_handler(former)
        else:
            block = segments.stage(n)
            a = block.array("u1", (n,))
            a.fill(value)
            block.release()
        kept.append((a, value))
        found = segments.block_of(a)
        if found is not None and found[0].lendable:
            block, offset = found
            fd = block.lend()
            if rng.random() < 0.5:
                os.close(fd)
            else:
                back = segments.attach(block.uid, block.size, block.kind, fd)
                again = back.array("u1", (n,), None, block.offset + offset)
                back.release()
                kept.append((again, value))
            block.release()
        if rng.random() < 0.1 and n:
            b, expected = kept.pop(rng.randrange(len(kept)))
            assert (b == expected).all()
            c = b.copy()
            assert _heap.copy(c, b, 2) or b.size == 0
        while len(kept) > 12:
            b, expected = kept.pop(rng.randrange(len(kept)))
            assert (b == expected).all(), (b, expected)
        if rng.random() < 0.02:
            segments.trim()
        if rng.random() < 0.02:
            segments.stats()
            _heap.digest(a)
            ndshare.is_shared(a)

    def one_block(self, rng: random.Random) -> None:
        """Use and release a Block that all threads have."""
        block = self.block
        try:
            act = rng.randrange(6)
            if act == 0:
                os.close(block.lend())
            elif act == 1:
                with memoryview(block) as view:
                    assert len(view) == 5000
            elif act == 2:
                assert block.array("u1", [3, 4]).shape == (3, 4)
            elif act == 3:
                assert block.users < 100
            elif act == 4:
                segments.should_copy_out(block)
            else:
                block.release()
                self.block = segments.stage(5000)
        except (ValueError, BufferError):
            pass

    def shared_dict(self, rng: random.Random) -> None:
        """Write, update and read keys that are one value throughout."""
        key = rng.choice(("a", "b"))
        way = rng.randrange(4)
        if way == 0:
            self.dict.write({key: float(rng.randrange(1000))})
        elif way == 1:
            self.dict.update({"n": 1}, lambda new, old: old + new)
            with self.sums:
                self.counted[0] += 1
        else:
            value = self.dict[key]
            assert (value == value[0]).all()

    def locked(self, _: random.Random) -> None:
        """Count under the lock, in two steps."""
        with self.lock:
            before = self.lock_count
            self.lock_count = before + 1

    lock_count = 0

    def through_queue(self, rng: random.Random) -> None:
        """Put and get; the sum of all numbers is kept."""
        n = rng.choice((1, 500, 50_000))
        value = rng.randrange(1000)
        self.queue.put((value, np.full(n, value)))
        with self.sums:
            self.put += value
        found, a = self.queue.get()
        assert (a == found).all()
        with self.sums:
            self.got += found

    def through_map(self, rng: random.Random) -> None:
        """Map over an array, mostly with threads: each result is where it belongs."""
        n = rng.choice((1, 50, 2000))
        values = _arrays.full(n, rng.randrange(1000), np.int64)
        out = ndshare.alloc(n, np.int64)

        def kernel(worker_id: int, index: int, value: np.int64) -> None:
            out[index] = value + index

        (self.processes if rng.random() < 0.05 else self.threads).map(kernel, values)
        assert (out == values + np.arange(n)).all()

    def through_executor(self, rng: random.Random) -> None:
        """Submit, sometimes large arrays, sometimes many at once."""
        value = rng.randrange(1000)
        a = np.full(rng.choice((1, 500, 50_000)), value)
        if rng.random() < 0.1:
            found = self.executor.submit(lambda: (a[-1], Changing.__name__)).result()
            assert found == (value, "Changing"), found
        elif rng.random() < 0.8:
            assert self.executor.submit(np.add, a, 1).result()[-1] == value + 1
        else:
            assert list(self.executor.map(np.sum, [a] * 20)) == [value * len(a)] * 20

    def import_modules(self, rng: random.Random) -> None:
        """Have modules come and go as by imports, and names in the program and a class of it."""
        names = [f"ndshare_stress_{rng.randrange(1 << 31)}" for _ in range(5)]
        for name in names:
            globals()[name] = sys.modules[name] = types.ModuleType(name)
            setattr(Changing, name, name)
        for name in names:
            delattr(Changing, name)
            del sys.modules[name], globals()[name]

    def run(self, seed: int, until: float, parts: list[str]) -> None:
        """One thread."""
        rng, kept = random.Random(seed), []  # type: tuple[random.Random, list[tuple[np.ndarray, int]]]
        acts: dict[str, list[tuple[str, Callable[..., None]]]] = {
            "heap": [("heap", lambda r: self.heap(r, kept)), ("block", self.one_block)],
            "dict": [("dict", self.shared_dict)],
            "lock": [("lock", self.locked)],
            "queue": [("queue", self.through_queue)],
            "map": [("map", self.through_map)],
            "executor": [("executor", self.through_executor)],
            "modules": [("modules", self.import_modules)],
        }
        chosen = [act for part in parts for act in acts[part]]
        did: collections.Counter[str] = collections.Counter()
        try:
            while time.monotonic() < until and not self.errors:
                name, act = rng.choice(chosen)
                act(rng)
                did[name] += 1
        except BaseException:
            self.errors.append(traceback.format_exc())
        finally:
            with self.sums:
                self.done.update(did)

    def check(self) -> None:
        """Nothing is lost, and nothing left."""
        assert self.lock_count == self.done["lock"], (self.lock_count, self.done)
        assert int(self.dict["n"]) == int(self.counted[0]), (self.dict["n"], self.counted)
        assert self.put == self.got
        self.executor.shutdown()
        self.block.release()
        self.dict.close()
        self.queue.close()
        del self.lock
        ndshare.shutdown()  # a map keeps the memory of its board for the next one
        gc.collect()
        ndshare.trim()
        s = ndshare.stats()
        assert (s.own_bytes, s.held_segments, s.idle_bytes) == (0, 0, 0), s


def main() -> None:
    """Read the command line and run the threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--only", default="heap,dict,lock,queue,map,executor,modules")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    sys.setswitchinterval(1e-4)
    stress, until = Stress(), time.monotonic() + options.seconds
    threads = [
        threading.Thread(target=stress.run, args=(options.seed + i, until, options.only.split(",")))
        for i in range(options.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if stress.errors:
        sys.exit("\n".join(stress.errors))
    stress.check()
    print("done:", ", ".join(f"{name} {n}" for name, n in sorted(stress.done.items()) if n))


if __name__ == "__main__":
    main()
