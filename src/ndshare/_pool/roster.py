"""The workers of one pool: who is there, who can take how much, how long tasks take.

Everything here is called under the hub's lock, but for what says that it takes none.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Collection

from ndshare._pool.settings import PoolSettings
from ndshare._pool.tasks import Task
from ndshare._processes import Worker, frames, loaded

#: A message carries about this much work; enough that its price does not matter, little enough to wait for.
_BATCH_S = 1e-3
_BATCH_TASKS = 60
#: Tasks longer than this are sent only to idle workers: arguments are read as late as possible.
_PREFETCH_S = 20e-3
#: Shorter ones are tiny: a busy worker gets more of them only by the dozen.
TINY_S = 200e-6
BURST_TASKS = 32
#: A busy worker is sent no more while so many are unread: those that were taken back count.
_UNREAD_MOST = frames.CELLS // 2
#: So many workers in a row may die before they have answered anything, then the tasks that wait fail.
_STILLBORN = 3


class Roster:
    """Workers of a pool.

    Parameters
    ----------
    settings : PoolSettings
        How many they may be, and what they must be like.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self.workers: list[Worker] = []
        self.free: dict[Worker, None] = {}  # those that could take more
        self.seconds: float | None = None  # what a task takes, smoothed
        self._generation = loaded.generation()  # of the caller's modules, when a worker was chosen last
        self._stillborn = 0  # workers in a row that ended before they had answered anything
        self._vacant: list[int] = []  # worker numbers that are free again
        self._number_of: dict[Worker, int] = {}
        self.is_swollen: Callable[[Worker], bool] | None = None  # asked of those that have nothing to do
        self.ending: set[Worker] = set()  # those whose finalizer may be running

    # ------------------------------------------------------------------ how they are doing

    @property
    def saturated(self) -> bool:
        """Whether nobody can take anything at once."""
        return not self.free and len(self.workers) >= self._settings.max_workers

    @property
    def tiny(self) -> bool:
        """Whether tasks are so short that sending one costs more than running it."""
        return self.seconds is not None and self.seconds < TINY_S

    @property
    def short(self) -> bool:
        """Whether the result of a task comes before it pays to sleep."""
        return self.seconds is not None and self.seconds * 1e6 < frames.SPIN_ALONE_US

    @property
    def working(self) -> int:
        """How many workers have something to do, or are about to get it."""
        return sum([bool(worker.inflight) or worker.sending for worker in self.workers])

    def busy(self) -> Worker | None:
        """Return a worker that has something to do; takes no lock."""
        for worker in tuple(self.workers):
            if worker.inflight:
                return worker
        return None

    def heads(self, only: Collection[Task] | None) -> list[tuple[Worker, int]]:
        """Return who is at which task, or at which of some tasks; the first that it was sent counts."""
        first = [(worker, *next(iter(worker.inflight.items()))) for worker in self.workers if worker.inflight]
        return [(worker, seq) for worker, seq, task in first if only is None or task in only]

    def behind(self) -> list[Task]:
        """Return what workers were sent and will not begin before they have done something else."""
        return [task for worker in self.workers for task in list(worker.inflight.values())[1:]]

    def took(self, seconds: float) -> None:
        """Note how long a task took."""
        self._stillborn = 0
        self.seconds = seconds if self.seconds is None else 0.8 * self.seconds + 0.2 * seconds

    # ------------------------------------------------------------------ who gets what

    def choose(self, waiting: int, hire: Callable[[], Worker]) -> Worker | None:
        """Who gets the next of `waiting` tasks: an idle worker, a new one, or one that has little left."""
        unused = None
        for worker in reversed(self.free):  # the one that has worked last is the warmest
            if not worker.inflight:
                if worker.sent:
                    return worker
                unused = worker  # what it was hired for could not be sent, or was cancelled
        if len(self.workers) < self._settings.max_workers:
            return hire()
        if unused is not None:
            return unused
        if self.seconds is None or self.seconds > _PREFETCH_S:
            return None
        if self.seconds > TINY_S or waiting >= BURST_TASKS:
            return next((worker for worker in self.free if worker.unread < _UNREAD_MOST), None)
        return None

    def batch_size(self, worker: Worker, waiting: int) -> int:
        """How many tasks to send to it at once."""
        if (
            waiting == 1
            or self.seconds is None
            or (self._settings.initializer is not None and not worker.proved)
        ):
            return 1
        fair = math.ceil(waiting / max(1, len(self.workers)))
        size = max(1, min(_BATCH_TASKS, fair, int(_BATCH_S / max(self.seconds, 1e-6))))
        return min(size, self._settings.limit - worker.sent) if self._settings.limit else size

    def take_back(self, queue: collections.deque[Task]) -> bool:
        """If a worker is idle and the queue empty: what other workers have not begun."""
        if not any(not w.inflight for w in self.free):
            return False
        loaded = max(self.workers, key=lambda w: len(w.inflight), default=None)
        if loaded is None or len(loaded.inflight) < 2:
            return False
        seqs = list(loaded.inflight)
        for seq in reversed(seqs[1 + (len(seqs) - 1) // 2 :]):
            if loaded.recall(seq):
                loaded.sent -= 1
                queue.appendleft(loaded.inflight.pop(seq))
        return bool(queue)

    # ------------------------------------------------------------------ coming and going

    def vacancy(self) -> int:
        """Return the number that the next worker will have."""
        return self._vacant[-1] if self._vacant else len(self._number_of)

    def add(self, worker: Worker) -> None:
        """Put a worker on the books."""
        self._number_of[worker] = self._vacant.pop() if self._vacant else len(self._number_of)
        self.workers.append(worker)

    def dismiss(self, worker: Worker) -> None:
        """Take a worker off the books."""
        if worker in self._number_of:
            self._vacant.append(self._number_of.pop(worker))
            self.workers.remove(worker)
        self.free.pop(worker, None)

    def offer(self, worker: Worker) -> None:
        """Note that a worker can take more, or let it go when its time is over."""
        if worker.leaving or worker.sending or worker not in self._number_of:
            return
        if self.is_swollen is not None and worker.proved and not worker.inflight and self.is_swollen(worker):
            worker.outdated = True
        is_old = worker.outdated or worker.generation != self._generation
        if is_old or (self._settings.limit and worker.sent >= self._settings.limit):
            if not worker.inflight:
                self.end(worker)
        elif len(worker.inflight) < max(2, worker.batch // 2 + 1):
            self.free[worker] = None

    def end(self, worker: Worker) -> None:
        """Let a worker go that has nothing to do any more; it runs its finalizer, and ends."""
        self.dismiss(worker)
        worker.quit()
        if self._settings.finalizer is not None:
            self.ending.add(worker)

    def replace(self, queue: collections.deque[Task]) -> None:
        """Have all workers end after what they have begun; what they have not begun waits again."""
        for worker in list(self.workers):
            worker.outdated = True
            for seq in reversed(list(worker.inflight)):
                if worker.recall(seq):
                    worker.sent -= 1
                    queue.appendleft(worker.inflight.pop(seq))
            self.free.pop(worker, None)
            self.offer(worker)

    def renew(self, generation: int) -> None:
        """Give nothing more to workers that may have other modules than their caller has by now."""
        if generation != self._generation:
            self._generation = generation
            for worker in list(self.free):
                del self.free[worker]
                self.offer(worker)

    def bury(self, worker: Worker) -> tuple[list[Task], list[Task]]:
        """Take a worker off the books that has ended; return what it had begun, and what it had not."""
        self.dismiss(worker)
        self.ending.discard(worker)
        victims: list[Task] = []
        spared: list[Task] = []
        for seq, task in sorted(worker.inflight.items()):
            # Taken back, so that a worker whose parent went first cannot begin it in its last moment.
            (spared if worker.take_back(seq) else victims).append(task)
        worker.inflight.clear()
        return victims, spared

    def is_hopeless(self) -> bool:
        """Note that a worker has ended that never answered; whether too many in a row have."""
        self._stillborn += 1
        if self._stillborn < _STILLBORN:
            return False
        self._stillborn = 0
        return True
