"""Workers of a map that are workers of a pool: each gets one task, which takes shares until none is left.

The job is packed once for all of them. Ordinary arrays in it are copied once; workers map the copy
copy-on-write.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ndshare._map.job import Job, WorkerReport
from ndshare._map.runner import KernelMemory, run_facts
from ndshare._map.watch.captured import Traffic, account, module_data
from ndshare._map.workers.base import Lost, Outcome, Ranges
from ndshare._memory import block_of
from ndshare._pool import Pool, QuietTask, Task
from ndshare._processes import frames
from ndshare._system import _wire, callable_name
from ndshare._transport import Draft, Parcel, by_value_modules, mainspace, pack

#: Which global data kernels used last time, so that they are pickled once.
_globals_of: KernelMemory[frozenset[str]] = KernelMemory(frozenset())


class _RunnerTask(QuietTask):
    """One worker of a map, as a task of the pool. Its parcel belongs to the map."""

    record = frames.LAST_CALL  # what a kernel leaves in the process is not for the next map

    def __init__(self, workers: PoolWorkers, parcel: Parcel, brings: frozenset[str]) -> None:
        self._workers = workers
        self.pool = workers.pool
        self.function = workers.job.kernel
        self.parcel = parcel
        self.brings = brings
        self.by_value = frozenset(by_value_modules)  # when it was made

    def _tell(self) -> None:
        with self._workers.condition:
            self._workers.ended.append(self)
            self._workers.condition.notify_all()

    def read_again(self) -> None:
        """Refuse: the map packs itself anew, for all of its runners (`PoolWorkers.wait`)."""
        raise NotImplementedError

    def let_go(self) -> None:
        """See `Task.let_go`."""
        self.parcel = None
        super().let_go()


class PoolWorkers(Task):
    """Workers of a pool. As a task it is the one that waits for any of its runners."""

    start_method = "pool"
    rolls_back = True

    def __init__(self, job: Job, pool: Pool) -> None:
        self.job = job
        self.pool: Pool = pool
        self.condition = threading.Condition()
        self.ended: list[_RunnerTask] = []
        self._parcels: list[Parcel] = []
        self._first: tuple[Parcel, frozenset[str]] | None = None
        self._tasks: set[_RunnerTask] = set()
        self.captured: dict[str, Traffic] = {}
        self._note = -1  # of this map, for whoever watches

    def pack(self) -> None:
        """Pack the job now, to see whether it can be sent.

        Raises
        ------
        Exception
            Whatever pickling raises.
        """
        self._first = self._pack(())

    @property
    def running(self) -> int:
        """See `MapWorkers`."""
        return len(self._tasks)

    def _pack(self, ranges: Ranges) -> tuple[Parcel, frozenset[str]]:
        draft, brings = self.message(ranges)
        parcel = draft.settle(broadcast=True)
        self._parcels.append(parcel)
        return parcel, brings

    def message(self, ranges: Ranges) -> tuple[Draft, frozenset[str]]:
        """Return what runners are sent, and the globals of ``__main__`` it brings."""
        facts = self.job.facts()
        if type(facts[0]) is tuple:  # a kernel that was taken apart brings all it uses
            return pack((run_facts, (facts, {}, {}, ranges), {})), frozenset()
        before = _globals_of.get(self.job.kernel)
        data = mainspace.current(before) if before else {}
        arrays = {
            module: values
            for module, values in module_data(self.job.kernel).items()
            if module not in by_value_modules  # else they go with the functions
        }
        draft = mainspace.pack_with_data((run_facts, (facts, data, arrays, ranges), {}), data)
        brings = frozenset(data)
        if brings != before:
            _globals_of.put(self.job.kernel, brings)
        return draft, brings

    def account(self) -> dict[str, Traffic]:
        """Return how the variables of the kernel are sent."""
        return account(self.job.kernel, self.job.functor)

    def start(self, count: int, ranges: Ranges = ()) -> None:
        """See `MapWorkers`."""
        if ranges:
            packed = self._pack(ranges)
        else:
            packed = self._first = self._first or self._pack(())
        tasks = [_RunnerTask(self, *packed) for _ in range(count)]
        self._tasks.update(tasks)
        self.pool.submit_all(tasks, waits=True)
        if self._note < 0 and not self.job.is_tiny:
            self._tell_watchers()
        if not self.captured:  # while the workers are at it
            self.captured = self.account()

    def _tell_watchers(self) -> None:
        board, kernel = self.job.board, self.job.kernel
        if (place := _place_of(board.memory)) is not None:
            name = callable_name(kernel)
            self._note = self.pool.crew.note_map(place, board.num_workers, board.items, name)

    def done(self) -> bool:
        """Whether a runner has ended that nobody has asked for."""
        return bool(self.ended)

    def wait(self, seconds: float | None) -> list[Outcome]:
        """See `MapWorkers`."""
        self._await(self.condition, seconds)
        ended = []
        while self.ended:  # without the lock: Ctrl-C may leave it taken
            ended.append(self.ended.pop(0))
        outcomes: list[Outcome] = []
        for task in ended:
            self._tasks.discard(task)
            error = task.error
            if error is None:
                outcomes.append(WorkerReport(*task.value))
            elif _is_by_value_since(task, error):
                self._first = None  # packed anew, for all that have met the same
                self.start(1)
            else:
                outcomes.append(Lost(getattr(error, "pid", 0), error))
        return outcomes

    def kill(self, pid: int) -> None:
        """See `MapWorkers`."""
        with self.pool.hub.lock:
            for worker in self.pool.workers:
                if worker.pid == pid:
                    worker.signal(signal.SIGKILL)

    def close(self) -> None:
        """See `MapWorkers`."""
        _wire.shield()
        try:
            self.pool.crew.forget_map(self._note)
            if self._tasks:
                self.job.board.stop()
                for task in self._tasks:
                    self.pool.withdraw(task)  # those that wait for a worker
                self.pool.interrupt(only=self._tasks)
            for parcel in self._parcels:
                parcel.release()
            self._parcels.clear()
            self._first = None
        finally:
            _wire.unshield()


#: Where the memory of the last board was: the next one often has the same.
_last_place: tuple[Callable[[], object], tuple[int, int, int]] = (lambda: None, (0, 0, 0))


def _place_of(memory: Any) -> tuple[int, int, int] | None:
    """Return device, inode and offset of a board's memory; None if it is in no segment."""
    global _last_place
    whole = memory if memory.base is None else memory.base
    if _last_place[0]() is whole:
        return _last_place[1]
    found = block_of(whole)
    if found is None:
        return None
    fd = found[0].lend()
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    place = status.st_dev, status.st_ino, found[0].offset + found[1]
    _last_place = weakref.ref(whole), place
    return place


def _is_by_value_since(task: _RunnerTask, error: BaseException) -> bool:
    """Whether packing anew helps: a module that workers lack goes by value since the task was made."""
    name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    return name is not None and name in by_value_modules and name not in task.by_value
