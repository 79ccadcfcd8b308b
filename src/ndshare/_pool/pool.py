"""A pool: the queue of one executor, and how its tasks get to workers and back.

::

    submit ──► queue ──► batch ──► worker ──► result ──► future
                 ▲          │
                 └── taken back when the worker dies or its head is slow

Policy
------
- A task goes to an idle worker; else a new worker is started up to `max_workers`; else it waits. Only
  when tasks are short is a worker sent more than it can run at once (`ndshare._pool.roster`).
- Many short tasks travel in one message. An idle worker takes back what another one has not begun.
- Arguments are read when a task is dispatched, in the thread that dispatches it.
- A worker's death fails the task it was running, or tries it again; what it had not begun runs elsewhere.
"""

from __future__ import annotations

import collections
import functools
import threading
import time
from collections.abc import Iterable

from ndshare._pool import deaths as _pool_deaths
from ndshare._pool import end as _pool_end
from ndshare._pool import interrupts, results
from ndshare._pool.delivery import Delivery
from ndshare._pool.roster import BURST_TASKS, Roster
from ndshare._pool.settings import PoolSettings
from ndshare._pool.tasks import Task
from ndshare._processes import Crew, Worker, WorkerGoneError
from ndshare._system import _wire, processors

#: Submits that follow each other so closely are a burst; tiny tasks of a burst are sent by the dozen.
_BURST_S = 100e-6
#: A worker that could not be started for lack of something passing is tried again after this time.
_AGAIN_S = 0.02
#: After this time without an answer all workers sleep: see `ndshare._processes.frames.SPIN_ALONE_US`.
_ASLEEP_S = 1e-3


class Pool:
    """Workers of one executor and the tasks that wait for them."""

    def __init__(self, crew: Crew, settings: PoolSettings) -> None:
        self.crew = crew
        self.hub = crew.hub
        self.settings = settings
        self.delivery = Delivery(crew, settings)
        self.roster = Roster(crew, self, settings)
        self.workers = self.roster.workers
        self.queue: collections.deque[Task] = collections.deque()
        self.pending = 0  # tasks that are not finished
        self.closed = False
        self.killed = 0  # the signal that has ended its workers
        self.interrupted = False  # by Ctrl-C, and nothing was submitted since
        self.over = False
        self.ended = threading.Condition()  # tells that it is over
        self._burst = 0  # submits in quick succession
        self._last_submit = 0.0
        self.held = False  # tasks wait for more to come
        crew.join(self)

    # ------------------------------------------------------------------ tasks in

    def submit(self, task: Task) -> None:
        """Take a task on."""
        now = time.perf_counter()
        self._burst = self._burst + 1 if now - self._last_submit < _BURST_S else 0
        self._last_submit = now
        _wire.shield()
        try:
            with self.hub.lock:
                self._take_on((task,))
                waiting = len(self.queue)
                late = self.roster.saturated or (self._burst > BURST_TASKS and self.roster.tiny)
            if late:
                if waiting & (BURST_TASKS - 1):
                    if not self.held:
                        self.held = True  # whoever waits next, or the I/O thread soon, sends them together
                        self.hub.tick()
                    return
                self.hub.look(self.workers)
            self._pump()
        except BaseException:  # Ctrl-C while something was pickled: the caller gets no future of it
            interrupts.drop(self, (task,))
            raise
        finally:
            _wire.unshield()

    def submit_all(self, tasks: Iterable[Task], *, waits: bool = False) -> None:
        """Take many tasks on at once.

        Parameters
        ----------
        tasks : iterable of Task
            In their order.
        waits : bool
            Whether the calling thread will do nothing but wait: its processor is free then.
        """
        _wire.shield()
        try:
            with self.hub.lock:
                self._take_on(tasks)
            self._pump(leaving=waits)
        except BaseException:
            interrupts.drop(self, tasks)
            raise
        finally:
            _wire.unshield()

    def _take_on(self, tasks: Iterable[Task]) -> None:
        """Put tasks into the queue (under the lock: nobody closes the pool meanwhile)."""
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        before = len(self.queue)
        self.queue.extend(tasks)
        self.pending += len(self.queue) - before
        self.interrupted = False

    def withdraw(self, task: Task) -> bool:
        """Let go of a task that its user cancels; False if a worker has begun it."""
        _wire.shield()
        try:
            with self.hub.lock:
                if task.pool is None:
                    return False
                try:
                    self.queue.remove(task)
                except ValueError:
                    if not self._recall(task):
                        return False
                self.pending -= 1
                if not task.dispatched:
                    task.start()  # tells those that wait: it is cancelled, not running
                task.let_go()
            self.when_empty()
        finally:
            _wire.unshield()
        return True

    def _recall(self, task: Task) -> bool:
        """Take a task back from the worker it was sent to, if that has not begun it (under the lock)."""
        for worker in self.workers:
            for seq, other in worker.inflight.items():
                if other is task:
                    if not worker.recall(seq):
                        return False
                    del worker.inflight[seq]
                    worker.sent -= 1
                    if not worker.inflight:  # no answer of it will make the next task come
                        self.roster.offer(worker)
                        self.hub.put_off(self.pump)
                    return True
        return False

    def pump(self) -> None:
        """Send as much as the workers can take; after Ctrl-C the I/O thread does the rest."""
        try:
            self._pump()
        except BaseException:
            self.hub.put_off(self.pump)
            raise

    def _pump(self, *, leaving: bool = False) -> None:
        """Send as much as the workers can take; a thread that is `leaving` has a processor to give away."""
        _wire.shield()
        try:
            self.held = False
            while True:
                with self.hub.lock:
                    picked = self._pick()
                if picked is None:
                    break
                self.dispatch(*picked, here=leaving and self._is_last())
                if not self.queue and self.pending < 2:  # nothing to send, and nothing to take back
                    break
            if self.killed:
                _pool_end.drop_waiting(self)
            self.when_empty()
        finally:
            _wire.unshield()

    def _is_last(self) -> bool:
        """Whether the next worker is to be woken, and takes the last processor."""
        if self.queue or self.hub.left_s < _ASLEEP_S:
            return False
        return self.roster.working == processors()

    def _pick(self) -> tuple[Worker, list[Task]] | None:
        """Choose a worker and what it gets (under the hub's lock)."""
        if self.killed or not (self.queue or self.roster.take_back(self.queue)):
            return None
        try:
            worker = self.roster.choose(len(self.queue))
        except BlockingIOError:
            self.hub.later(_AGAIN_S, self.pump)
            return None
        except Exception as error:
            if self.queue and not self.workers:  # else those that are there will do
                self.hub.put_off(functools.partial(self.refuse, self.queue.popleft(), error))
            return None
        if worker is None:
            return None
        size = self.roster.batch_size(worker, len(self.queue))
        batch: list[Task] = []
        while self.queue and len(batch) < size:
            task = self.queue[0]
            if not task.dispatched:
                if not task.start():
                    self.queue.popleft()  # cancelled
                    self.pending -= 1
                    task.let_go()
                    continue
                task.dispatched = True
            if task.attempts and batch:
                break  # one that has killed a worker goes alone
            batch.append(self.queue.popleft())
            if task.attempts:
                break
        if not batch:
            self.roster.offer(worker)  # it may have been hired for what was cancelled
            return None
        worker.sending = True
        worker.batch = len(batch)
        self.roster.free.pop(worker, None)
        return worker, batch

    # ------------------------------------------------------------------ sending

    def dispatch(self, worker: Worker, batch: list[Task], *, here: bool = False) -> None:
        """Send tasks that are on the books to a worker that is marked as being sent to.

        It is woken `here`, if so wanted: on the processor of the calling thread.
        """
        failed: list[tuple[Task, BaseException]] = []
        rest = collections.deque(batch)
        try:
            if here:
                worker.bring_here()
            self.delivery.send(worker, rest, failed)
        except WorkerGoneError:
            pass  # the report of its death deals with what it was sent
        finally:  # what was not sent waits again; after Ctrl-C, too
            with self.hub.lock:
                back = list(rest)
                worker.batch = max(1, worker.batch - len(back))
                worker.sending = False
                if worker.gone:
                    worker.close()
                    back = list(worker.inflight.values()) + back
                    worker.inflight.clear()
                self.queue.extendleft(reversed(back))
                self.roster.offer(worker)
            for task, reason in failed:
                self.fail(task, reason)
            if failed:
                self.hub.ring()

    # ------------------------------------------------------------------ answers, deaths, Ctrl-C, the end

    resolve = results.resolve
    fail = results.fail
    refuse = results.refuse
    on_initialized = _pool_deaths.on_initialized
    on_death = _pool_deaths.on_death
    interrupt = interrupts.interrupt
    shutdown = _pool_end.shutdown
    abandon = _pool_end.abandon
    kill = _pool_end.kill
    when_empty = _pool_end.when_empty
