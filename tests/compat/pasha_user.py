"""A module of somebody else, written against pasha's public interface."""

from __future__ import annotations

import threading

import numpy as np
import pasha as psh
from pasha.context import MapContext, PoolContext
from pasha.functor import Functor, SequenceFunctor, gen_split_slices

SETTINGS = {"scale": 1}


class Countdown:
    """Something that no functor of pasha knows."""

    def __init__(self, start):
        self.start = start


class CountdownFunctor(Functor):
    """Has shares that are no slices."""

    def __init__(self, countdown):
        self.start = countdown.start

    @classmethod
    def wrap(cls, value):
        if isinstance(value, Countdown):
            return cls(value)
        return None

    def split(self, num_workers):
        return (
            list(range(part.start, part.stop)) for part in gen_split_slices(self.start, n_parts=num_workers)
        )

    def iterate(self, share):
        for index in share:
            yield index, self.start - index, "extra"


class Hooked:
    """Says itself how to map over it."""

    def _pasha_functor_(self):
        return SequenceFunctor([10, 20, 30])


class LoudContext(MapContext):
    """A context with memory and a loop of its own."""

    def __init__(self):
        super().__init__(num_workers=2)
        self.allocated = []

    def _alloc(self, shape, dtype, order, fill):
        self.allocated.append((shape, np.dtype(dtype), order, fill))
        return super()._alloc(shape, dtype, order, fill)

    def map(self, function, functor):
        functor = Functor.try_wrap(functor)
        threads = [
            threading.Thread(target=self.run_worker, args=(function, functor, share, worker_id))
            for worker_id, share in enumerate(functor.split(self.num_workers))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class CountingProcesses(psh.ProcessContext):
    """Counts the shares of each worker."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shares = self.alloc(self.num_workers, int)

    @classmethod
    def run_worker(cls, share):
        cls._instance.shares[cls._instance.worker_id] += 1
        super().run_worker(share)


class CountingThreads(psh.ThreadContext):
    """Does so in threads."""

    begun = 0

    def init_worker(self, functor):
        super().init_worker(functor)
        self.begun += 1


class OddLoop(psh.SerialContext):
    """Leaves out every second entry."""

    @staticmethod
    def run_worker(function, functor, share, worker_id):
        for number, entry in enumerate(functor.iterate(share)):
            if number % 2:
                function(worker_id, *entry)


class QuietPool(PoolContext):
    """Runs on a pool of its own."""

    def init_worker(self, functor):
        self.functor = functor

    def run_worker(self, share):
        MapContext.run_worker(self.function, self.functor, share, 0)

    def map(self, function, functor):
        from multiprocessing.pool import ThreadPool

        super().map(function, functor, ThreadPool)


def scaled(values, ctx=None):
    """Multiply by what the settings say when it is called."""
    ctx = ctx or psh.get_default_context()
    out = ctx.alloc(like=values)
    ctx.map(Scale(out), values)
    return out


class Scale:
    """A kernel whose class has to be imported by a worker that is sent it."""

    def __init__(self, out):
        self.out = out

    def __call__(self, worker_id, index, value):
        self.out[index] = SETTINGS["scale"] * value
