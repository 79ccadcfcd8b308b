"""What one worker of a map does: take shares off the board, run them, report.

::

    Job ──► run_job ──► take a share ──► ndshare._map._loop.run ──► errors?  note, go on behind the item
                            ▲                                     │
                            └── share size from the time per item ┘

The same code runs in the caller (serial), in threads, in workers of the pool and in forked ones.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ndshare._map import _loop
from ndshare._map.job import TINY_NS, Job, WorkerReport
from ndshare._map.randomness import Stream
from ndshare._map.savepoints import Savepoint
from ndshare._map.watch import captured
from ndshare._map.watch.differences import Forker
from ndshare._map.watch.watching import Watch
from ndshare._pickling import CodeMemory
from ndshare._processes import errstate, numbered
from ndshare._system import code_of
from ndshare._transport import mainspace
from ndshare._transport import portable as portable_failure
from ndshare.functors import Functor, numbers_of, values_of

_T = TypeVar("_T")

#: A share of tiny items takes about so long: long enough that taking it costs nothing, ...
_SHARE_NS = 2_000_000
#: ... and at least so long, however few items are left.
_SHARE_LEAST_NS = 50_000
#: A share is at most this part of what is left, per worker, so that all end at the same time.
_PARTS_LEFT = 4
#: How much larger than its predecessor a share may be: the first item often takes longest.
_GROWTH = 16


class KernelMemory(Generic[_T]):
    """What was found out about kernels, by their code.

    Parameters
    ----------
    default : object
        What is known of others.
    """

    def __init__(self, default: _T) -> None:
        self._default = default
        self._known: CodeMemory[_T] = CodeMemory()

    def get(self, kernel: Callable[..., object]) -> _T:
        """Return what is known of a kernel."""
        code = code_of(kernel)
        known = None if code is None else self._known.get(code)
        return self._default if known is None else known

    def put(self, kernel: Callable[..., object], value: _T) -> None:
        """Remember it."""
        if (code := code_of(kernel)) is not None:
            self._known.put(code, value)


class _Inside(threading.local):
    depth = 0


_inside = _Inside()


def inside_kernel() -> bool:
    """Whether the calling thread is in a kernel."""
    return _inside.depth > 0


def run_job(
    job: Job,
    ranges: Sequence[tuple[int, int]] = (),
    *,
    portable: bool = True,
    tell: Callable[[], None] | None = None,
) -> WorkerReport:
    """Run shares until none is left.

    Parameters
    ----------
    job : Job
        The map.
    ranges : sequence of (int, int)
        Items to be run first: what a worker that died has left.
    portable : bool
        Whether the errors have to survive pickling.
    tell : callable, optional
        Called after each share.
    """
    return _Runner(job, portable, tell).run(ranges)


def run_facts(
    facts: tuple[Any, ...],
    data: dict[str, object],
    arrays: dict[str, dict[str, Any]],
    ranges: Sequence[tuple[int, int]],
) -> list[Any]:
    """Run shares of a job that came as its facts, return those of the report; see `run_in_worker`."""
    return run_in_worker(Job.of_facts(*facts), data, arrays, ranges).facts()


def run_in_worker(
    job: Job,
    data: dict[str, object],
    arrays: dict[str, dict[str, Any]],
    ranges: Sequence[tuple[int, int]],
) -> WorkerReport:
    """Run shares in a worker of a pool, with the caller's globals in ``__main__`` and modules meanwhile."""
    if arrays:
        module, values = arrays.popitem()
        with mainspace.lent(values, module):
            return run_in_worker(job, data, arrays, ranges)
    if not data:
        return run_watched(job, ranges, captured.globals_of(job.kernel))
    with mainspace.lent(data):
        return run_watched(job, ranges, {**captured.globals_of(job.kernel), **data})


def run_watched(
    job: Job,
    ranges: Sequence[tuple[int, int]],
    extra_globals: dict[str, object],
    forker: Forker | None = None,
) -> WorkerReport:
    """Run shares in a process of its own, and find out what the kernel wrote to in vain."""
    numbers = numbers_of(job.functor)
    mapped = job.functor if numbers is None else None if type(numbers) is range else numbers
    watch = Watch(job.kernel, mapped, {**captured.reached_globals(job.kernel), **extra_globals}, forker)
    try:
        report = run_job(job, ranges)
    finally:
        if callable(close := getattr(job.functor, "close", None)):
            close()  # files that this process has opened for the map
    report.lost_writes = watch.changes()
    return report


class _Runner:
    def __init__(self, job: Job, portable: bool, tell: Callable[[], None] | None) -> None:
        self.job = job
        self.tell = tell
        self.board = job.board
        self.portable = portable
        pid = os.getpid()
        self.report = WorkerReport(job.board.enter(pid), pid)
        self.values = values_of(job.functor)
        self.per_item_ns = job.usual_ns
        self.measured = 0  # items of the share that was timed last
        keeps = job.rows or job.blocks
        self.savepoint: Savepoint | None = None
        if keeps:
            self.savepoint = Savepoint(job.board, job.rows, self.report.worker_id, job.blocks, job.mirrors)
        # So grows the first share, of few items: today they may take longer.
        self.size = 4 if job.is_tiny else 2 if job.usual_ns else 1

    def run(self, ranges: Sequence[tuple[int, int]]) -> WorkerReport:
        board, report = self.board, self.report
        _inside.depth += 1
        try:
            slot = board.slot(report.worker_id)
            with (
                Stream(self.job.seed, board.memory, slot, self.job.first),
                errstate.entered(self.job.errors),
                numbered(self.job.first_worker + report.worker_id),
            ):
                for start, end in ranges:
                    if not board.is_stopped():
                        self._share(start, end, whole=False)
                while (share := self._take()) is not None:
                    for part in board.undone(*share) if self.job.resumed else (share,):
                        if not board.is_stopped():
                            self._share(*part)
        finally:
            _inside.depth -= 1
            if not board.killed(report.worker_id):
                board.leave(report.worker_id)
        report.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return report

    # ------------------------------------------------------------------ shares

    def _take(self) -> tuple[int, int] | None:
        board = self.board
        left = board.items - board.taken
        if left <= 0 or board.is_stopped():
            return None
        count = self.job.share_items or self._fitting(left)
        block = self.job.block
        count = -(-count // block) * block
        start = board.take(count)
        if start >= board.items:
            return None
        return start, min(start + count, board.items)

    def _fitting(self, left: int) -> int:
        """How many items the next share should have."""
        if not self.per_item_ns:
            return 1
        fair = left / (_PARTS_LEFT * self.board.num_workers)
        most = _SHARE_NS / self.per_item_ns
        least = (TINY_NS if self.job.is_tiny else _SHARE_LEAST_NS) / self.per_item_ns
        if not self.measured:  # today items may take longer: the other workers find their part
            left = -(-left // self.board.num_workers)
        self.size = max(1, int(min(max(min(fair, most), min(least, left)), self.size * _GROWTH)))
        return self.size

    def _share(self, start: int, end: int, *, whole: bool = True) -> None:
        """Run a share, or of one that is not `whole` the items that are not done."""
        board, report = self.board, self.report
        board.begin(report.worker_id, start, end)
        if self.savepoint is not None:
            self.savepoint.open()
        began = time.monotonic_ns()
        before = report.items
        for low, high in ((start, end),) if whole else board.undone(start, end):
            first = low
            while first < high:
                first = self._stretch(first, high)
                if os.getpid() != report.pid:
                    os._exit(0)  # the kernel has forked, and the child has come back from it as well
                if first < high and board.is_stopped():
                    break
            if not whole and board.is_stopped():
                break
        ended = time.monotonic_ns()
        if self.savepoint is not None:
            self.savepoint.close()
        report.shares += 1
        report.busy += (ended - began) * 1e-9
        if self.job.trace:
            offset = self.job.first
            report.timeline.append((offset + start, offset + end, began * 1e-9, ended * 1e-9))
        if self.tell is not None:
            self.tell()
        if items := report.items - before:
            # A larger share knows better than the one before; the first item often says nothing.
            weight = max(0.5, items / (items + self.measured))
            self.per_item_ns += weight * ((ended - began) / items - self.per_item_ns)
            self.measured = items

    def _stretch(self, first: int, end: int) -> int:
        """Run items until one fails; returns the next one to be run."""
        job, board, report = self.job, self.board, self.report
        worker_id = report.worker_id
        slot = board.slot(worker_id)
        failure: BaseException | None = None
        killed = False
        try:
            if self.values is not None:
                source, by_index = self.values, True
            else:
                source, by_index = iter(job.functor.iterate(slice(first, end))), False
            finished, killed = _loop.run(
                job.kernel, job.first_worker + worker_id, source, by_index,
                board.memory, slot, board.mask_at, first, end - first, job.timed,
            )  # fmt: skip
        except KeyboardInterrupt:
            board.stop()
            raise
        except BaseException as error:
            failure = error
        if failure is None:
            report.items += finished
            if killed:
                _wait_for_the_end()
            if finished < end - first:
                failure = RuntimeError(
                    f"{type(job.functor).__name__}.iterate(slice({first}, {end})) yielded {finished} entries "
                    f"instead of {end - first}"
                )
                self._note(first + finished, failure)
                return first + finished + 1
            return end
        if board.killed(worker_id):
            _wait_for_the_end()  # the signal is not to hit what this process does next
        at = board.current(worker_id)
        at = first if at is None or not first <= at < end else at
        report.items += at - first
        self._note(at, failure)
        return at + 1

    def _note(self, index: int, error: BaseException) -> None:
        board, report = self.board, self.report
        if self.job.on_error == "raise":
            board.stop()
        if self.job.trace:
            report.failures.append((self.job.first + index, time.monotonic()))
        if self.portable:
            report.errors.append((index, *portable_failure(error)))
        else:
            report.errors.append((index, error, ""))
        board.fail(report.worker_id, index)


def _wait_for_the_end() -> None:
    """The caller has decided to kill this process for the item it has just finished."""
    while True:
        signal.pause()


class ShareKernel:
    """Runs a share of a functor whose length is not known as if it were one item."""

    def __init__(self, kernel: Callable[..., object], functor: Functor) -> None:
        self.kernel = kernel
        self.functor = functor

    def __call__(self, worker_id: int, _index: int, share: Any) -> None:
        """Call the kernel for all entries of a share."""
        kernel = self.kernel
        for entry in self.functor.iterate(share):
            _loop.drop(kernel(worker_id, *entry))
