"""The caller's side of a map: start workers, wait, hand out again what dead ones left, draw progress.

::

    start n workers ──► wait ──► report       errors are noted
                         ▲   ├─► lost         item it was at fails (or is tried again), the rest of its
                         │   │                share is handed out again (all of it, if what it had added
                         │   │                to rows was taken back), another worker is started
                         │   └─► nothing yet  progress; kill who is at one item for too long
                         └────────────────────────────────────────────────────────────────────
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import numpy.typing as npt

from ndshare._map.checkpoint import Checkpoint
from ndshare._map.job import Death, Job, WorkerReport
from ndshare._map.runner import KernelMemory
from ndshare._map.savepoints import Rollback
from ndshare._map.workers.base import ItemError, Lost, MapWorkers, Ranges
from ndshare._system import FAILED, UNDONE, Progress
from ndshare._transport import with_traceback
from ndshare.errors import RemoteError

#: How often progress is drawn and time limits are looked at.
_TICK_S = 0.05
#: So many workers may end in a row without having begun an item.
_STILLBORN_MOST = 3
#: A map that was tiny last time gets its other workers if it is not over by then.
_LATE_S = 1e-3

_usual_ns: KernelMemory[float] = KernelMemory(0.0)


def usual_ns(kernel: Callable[..., object]) -> float:
    """Return what an item of a kernel took last time, in nanoseconds; 0 if that is not known."""
    return _usual_ns.get(kernel)


class Drive:
    """One map, from the first worker to the last item.

    Parameters
    ----------
    job : Job
        What to do.
    workers : MapWorkers
        Who does it.
    timeout : float or None
        Seconds for one item.
    retries : int
        How often an item is tried again whose worker died.
    progress : callable or None
        Called with (finished, all).
    checkpoint : Checkpoint, optional
        Copied now and then.
    """

    def __init__(
        self,
        job: Job,
        workers: MapWorkers,
        *,
        timeout: float | None = None,
        retries: int = 0,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._job = job
        self._checkpoint = checkpoint
        self._board = job.board
        self._workers = workers
        self._timeout = timeout
        self._retries = retries
        self._progress = progress
        self._told = -1
        self._tries: dict[int, int] = {}
        self._stillborn = 0
        self._unbegun: set[int] = set()  # items before which a worker has died
        self.reports: list[WorkerReport] = []
        self.errors: list[tuple[int, BaseException]] = []
        self.deaths: list[Death] = []
        self.done: npt.NDArray[np.bool_]  # which items, known at the end
        self._fatal: BaseException | None = None
        self._rollback = Rollback(job) if (job.rows or job.blocks) and workers.rolls_back else None

    def run(self, count: int) -> None:
        """Run the map with so many workers.

        Raises
        ------
        BaseException
            Ctrl-C; or what kept the workers from running at all. Errors of items are in `errors`.
        """
        try:
            first = min(count, 1) if self._job.is_tiny else count
            self.tell()
            self._workers.start(first)
            if first < count:
                self._turn(_LATE_S)
                if not self.reports and not self.errors:  # it is not as tiny as last time
                    self._workers.start(count - first)
            while True:
                while self._workers.running:
                    self._turn(None)
                self.done = self._board.done()
                complete = bool(np.logical_and.reduce(self.done))
                rest = [] if complete else self._board.undone(0, self._board.items)
                if not rest or self._board.is_stopped():
                    break
                # Taken off the board by workers that died before they had noted it.
                self._again(rest if self._rollback is None else self._rollback.whole(rest))
            if not complete:
                self._note_untold()
            self.tell(complete=not rest)
        except BaseException:
            self._board.stop()
            raise
        finally:
            try:
                self._workers.close()
            except KeyboardInterrupt:  # again, as it began: nobody else would end the workers
                self._workers.close()
                raise
        self.errors.sort(key=lambda pair: pair[0])

    def tell(self, *, complete: bool = False) -> None:
        """Call the user's progress function if there is something new.

        Parameters
        ----------
        complete : bool, optional
            Nothing is left. The counts may say less, if a worker died between mask and count.
        """
        if self._checkpoint is not None:
            self._checkpoint.tick()
        if self._progress is None:
            return
        finished = self._board.items if complete else min(self._board.finished(), self._board.items)
        if finished > self._told:
            self._told = finished
            self._progress(finished, self._board.items)

    # ------------------------------------------------------------------ waiting

    def _turn(self, seconds: float | None) -> None:
        if seconds is None and (self._progress is not None or self._timeout is not None):
            seconds = _TICK_S
        if seconds is None and self._checkpoint is not None:
            seconds = self._checkpoint.wait_s
        for outcome in self._workers.wait(seconds):
            if isinstance(outcome, Lost):
                self._bury(outcome)
            elif isinstance(outcome, Death):
                self.deaths.append(outcome)
            elif isinstance(outcome, ItemError):
                self.errors.append(outcome)
            else:
                self.reports.append(outcome)
                if outcome.items:
                    _usual_ns.put(self._job.kernel, outcome.busy * 1e9 / outcome.items)
                self.errors += [(index, with_traceback(error, text)) for index, error, text in outcome.errors]
        self.tell()
        if self._timeout is not None:
            self._kill_slow(int(self._timeout * 1e9))

    def _kill_slow(self, limit_ns: int) -> None:
        board = self._board
        for worker_id in range(board.num_workers):
            index = board.current(worker_id)
            if index is None or board.killed(worker_id):
                continue
            pid = board.pid_of(worker_id)
            late = time.monotonic_ns() - board.began(worker_id) > limit_ns
            if late and pid and board.kill(worker_id, index):
                self._workers.kill(pid)

    # ------------------------------------------------------------------ deaths

    def _bury(self, lost: Lost) -> None:
        board, job = self._board, self._job
        if not isinstance(lost.error, BrokenProcessPool):  # no death: the job could not be run at all
            raise lost.error
        self._fatal = lost.error
        worker_id = board.worker_of(lost.pid)
        if worker_id is None:
            self.deaths.append(Death(None, lost.pid, None, time.monotonic()))
            self._stillborn += 1
            if self._stillborn >= _STILLBORN_MOST:
                raise lost.error
            self._again(())
            return
        self._stillborn = 0
        index, killed = board.current(worker_id), board.killed(worker_id)
        share = board.share_of(worker_id)
        left = board.undone(*share)
        undone = None if self._rollback is None else self._rollback.undo(worker_id)
        if index is None:
            if undone is not None and not left:  # behind the last item: what killed it there may do so again
                left = [(end - 1, end) for _, end in board.undone(*share)[-1:]]
            index = self._never_begun(left)
        at = None if index is None else job.first + index
        if undone is not None:
            undone = job.first + undone[0], job.first + undone[1]
        self.deaths.append(Death(worker_id, lost.pid, at, time.monotonic(), undone))
        if index is not None and board.mask[index] == UNDONE:
            self._tries[index] = tries = self._tries.get(index, 0) + 1
            if tries > self._retries:
                self.errors.append((index, self._too_late(index, undone) if killed else lost.error))
                board.fail(worker_id, index)
                if job.on_error == "raise":
                    board.stop()
        board.leave(worker_id)
        left = board.undone(*share)
        if undone is not None and left:
            left = [share]  # in one piece: rows per block are as they were before all of it
        if not board.is_stopped() and (left or board.taken < board.items):
            self._again(left)

    def _never_begun(self, left: Ranges) -> int | None:
        """Return the first item of a share before which a worker has died for the second time.

        Whose `iterate` reads ahead, and dies of that, would die so again and again.
        """
        if not left:
            return None
        first = left[0][0]
        again = first in self._unbegun
        self._unbegun.add(first)
        return first if again else None

    def _note_untold(self) -> None:
        """Add the errors of items that failed in workers which died before they had reported."""
        told = {index for index, _ in self.errors}
        for index in np.flatnonzero(self._board.mask == FAILED).tolist():
            if index not in told:
                number = self._job.first + index
                reason = "the worker in which it was raised ended before it had reported it"
                error = RemoteError("unknown", f"the kernel failed for item {number}", reason)
                error.__cause__ = self._fatal
                self.errors.append((index, error))

    def _too_late(self, index: int, undone: tuple[int, int] | None) -> TimeoutError:
        written = "" if undone is None else ", except in rows per worker and per block"
        return TimeoutError(
            f"item {self._job.first + index} took longer than {self._timeout:g} s; its worker was killed. "
            f"What the item has written so far is in the arrays{written}"
        )

    def _again(self, ranges: Ranges) -> None:
        self._workers.start(1, ranges)
