"""A pool: the queue of one executor, and how its tasks get to workers and back.

::

    submit ──► queue ──► batch ──► worker ──► result ──► future
                 ▲          │
                 └── taken back when the worker dies or its head is slow

Policy
------
- A task goes to an idle worker; else a new worker is started up to `max_workers`; else it waits. Only
  when tasks are short is a worker sent more than it can run at once (`ndshare._roster`).
- Many short tasks travel in one message. An idle worker takes back what another one has not begun.
- Arguments are read when a task is dispatched, in the thread that dispatches it.
- A worker's death fails the task it was running, or tries it again; what it had not begun runs elsewhere.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable

from ndshare import _frames as frames
from ndshare import _records, _wire, transport
from ndshare._delivery import Delivery
from ndshare._pool_errors import InitializerError, WorkerDiedError
from ndshare._roster import BURST_TASKS, Roster
from ndshare._settings import PoolSettings
from ndshare.crew import Crew
from ndshare.hub import Todo
from ndshare.parcel import close_all
from ndshare.tasks import Task, with_traceback
from ndshare.workers import Answer, Worker, WorkerGoneError

#: Submits that follow each other so closely are a burst; tiny tasks of a burst are sent by the dozen.
_BURST_S = 100e-6
#: A worker that does not react to Ctrl-C within this time is killed.
_INTERRUPT_S = 0.6
#: A worker that could not be started for lack of something passing is tried again after this time.
_AGAIN_S = 0.02
#: So many workers in a row may die before they have answered anything, then the tasks that wait fail.
_STILLBORN = 3


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
        self.over = threading.Event()
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
            self.pump()
        except BaseException:  # Ctrl-C while something was pickled: the caller gets no future of it
            self._after_interrupt((task,))
            raise
        finally:
            _wire.unshield()

    def submit_all(self, tasks: Iterable[Task]) -> None:
        """Take many tasks on at once."""
        _wire.shield()
        try:
            with self.hub.lock:
                self._take_on(tasks)
            self.pump()
        except BaseException:
            self._after_interrupt(tasks)
            raise
        finally:
            _wire.unshield()

    def _after_interrupt(self, unwanted: Iterable[Task]) -> None:
        """Drop tasks that nobody will hear of; what waited behind them is sent by the I/O thread."""
        for task in unwanted:
            self.withdraw(task)
        self.hub.put_off(self.pump)

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
            self._when_empty()
        finally:
            _wire.unshield()
        return True

    def _recall(self, task: Task) -> bool:
        """Take a task back from the worker it was sent to, if that has not begun it (under the lock)."""
        for worker in self.workers:
            for seq, other in worker.inflight.items():
                if other is task:
                    if not worker.take_back(seq):
                        return False
                    del worker.inflight[seq]
                    worker.sent -= 1
                    if not worker.inflight:  # no answer of it will make the next task come
                        self.roster.offer(worker)
                        self.hub.put_off(self.pump)
                    return True
        return False

    def pump(self) -> None:
        """Send as much as the workers can take."""
        _wire.shield()
        try:
            self.held = False
            while True:
                with self.hub.lock:
                    picked = self._pick()
                if picked is None:
                    break
                self.dispatch(*picked)
            if self.killed:
                self._drop_waiting()
            self._when_empty()
        finally:
            _wire.unshield()

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
                self.hub.put_off(functools.partial(self._refuse, self.queue.popleft(), error))
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
            return None
        worker.sending = True
        worker.batch = len(batch)
        self.roster.free.pop(worker, None)
        return worker, batch

    # ------------------------------------------------------------------ sending

    def dispatch(self, worker: Worker, batch: list[Task]) -> None:
        """Send tasks that are on the books to a worker that is marked as being sent to."""
        failed: list[tuple[Task, BaseException]] = []
        rest = collections.deque(batch)
        try:
            self.delivery.send(worker, rest, failed)
        except WorkerGoneError:
            pass  # the report of its death deals with what it was sent
        except BaseException:  # Ctrl-C while arguments were read: the I/O thread sends what is left
            self.held = True
            self.hub.tick()
            raise
        finally:
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
                self._fail(task, reason)
            if failed:
                self.hub.ring()

    # ------------------------------------------------------------------ results

    def resolve(self, worker: Worker, answers: collections.deque[Answer]) -> None:
        """Rebuild results and resolve their futures, without the lock."""
        try:
            _records.handle_waiting()  # those that came before, if another thread is at them
            while answers:
                answer = answers.popleft()
                if answer[0].has_callbacks():
                    if not self.hub.in_thread:
                        alone = collections.deque([answer])
                        self.hub.call_back(functools.partial(self.resolve, worker, alone))
                        continue
                    # The user's code may wait for the others: they are not kept from it.
                    self.hub.do_next(functools.partial(self.resolve, worker, answers))
                    answers = collections.deque()
                    answer[0].on_done = self.hub.ring
                self._resolve(worker, *answer)
        except BaseException:  # Ctrl-C, in the thread that waits: the I/O thread does the rest
            self.hub.put_off(functools.partial(self.resolve, worker, answers))
            raise
        if self.closed:
            self._when_empty()

    def _resolve(self, worker: Worker, task: Task, status: int, body: bytes, fds: tuple[int, ...]) -> None:
        try:
            self.delivery.bytes_sent += len(body)
            value = transport.unpack(body, fds)
        except BaseException as error:  # a result that cannot be rebuilt, or exits, is this task's error
            self._fail(task, error)
            return
        if status == frames.OK:
            if self._finish(task):
                task.succeed(value)
        elif status == frames.ERROR or not self._try_by_value(worker, task, value[0]):
            self._fail(task, *value)

    def _try_by_value(self, worker: Worker, task: Task, error: BaseException) -> bool:
        """Send a module by value that the worker could not import; False if that cannot help."""
        name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        worker.known_main.clear()
        worker.functions.discard(task.token)
        if not name or name not in sys.modules or name in task.modules_tried:
            return False
        task.modules_tried |= {name}
        transport.by_value_modules.add(name)
        try:
            task.read_again()
        except Exception:  # arguments that cannot be rebuilt here: the first error says enough
            return False
        with self.hub.lock:
            self.queue.appendleft(task)
        self.pump()
        return True

    def _finish(self, task: Task) -> bool:
        """Take a task off the books; False if its user has cancelled it, or it was off them already."""
        with self.hub.lock:
            if task.pool is None:
                return False
            self.pending -= 1
            task.let_go()
            if task.dispatched:
                return True
            task.dispatched = True
            return task.start()

    def _fail(self, task: Task, error: BaseException, text: str = "") -> None:
        _records.handle_waiting()
        with_traceback(error, text)
        if task.has_callbacks() and not self.hub.in_thread:
            self.hub.call_back(functools.partial(self._fail, task, error))
            return
        if self._finish(task):
            task.fail(error)
        self._when_empty()

    def _refuse(self, task: Task, error: BaseException) -> None:
        """Fail a task for which there is no worker, then see about the next one."""
        self._fail(task, error)
        self.pump()

    # ------------------------------------------------------------------ failures

    def on_initialized(
        self, worker: Worker, status: int, body: bytes, fds: tuple[int, ...], done: Todo
    ) -> None:
        """The initializer has run in a worker (under the hub's lock)."""
        if status == frames.OK:
            close_all(fds)
            return
        worker.leaving = True
        waiting = list(worker.inflight.values()) + list(self.queue)
        worker.inflight.clear()
        self.queue.clear()
        self.roster.dismiss(worker)
        done.append(lambda: self._initializer_failed(waiting, body, fds))

    def _initializer_failed(self, waiting: list[Task], body: bytes, fds: tuple[int, ...]) -> None:
        try:
            cause, text = transport.unpack(body, fds)
        except BaseException as error:
            cause, text = error, str(error)
        name = self.settings.setup or f"preload={list(self.settings.preload)}"
        for task in waiting:
            failure = InitializerError(name, text)
            failure.__cause__ = cause
            self._fail(task, failure)

    def on_death(self, worker: Worker, pid: int, code: int | None, peak: int, done: Todo) -> None:
        """A worker has ended (under the hub's lock)."""
        self.roster.dismiss(worker)
        tasks = sorted(worker.inflight.items())
        worker.inflight.clear()
        victims: list[Task] = []
        spared: list[Task] = []
        for seq, task in tasks:
            # Taken back, so that a worker whose parent went first cannot begin it in its last moment.
            (spared if worker.take_back(seq) else victims).append(task)
        if self.killed:
            victims, spared = victims + spared, []
        setup = ""  # what it was at, if that was not a task
        if not worker.proved and not worker.leaving and not victims:
            self.roster.stillborn += 1
            if self.settings.initializer is not None and worker.state_version is not None:
                setup = self.settings.setup
            if self.roster.stillborn >= _STILLBORN:
                spared += self.queue
                self.queue.clear()
                victims, spared = victims + spared, []
                self.roster.stillborn = 0
        exit_code = code if code is not None and code >= 0 else None
        number = -code if code is not None and code < 0 else None
        lost: list[tuple[Task, BaseException]] = []
        for task in victims:
            task.attempts += 1
            if task.attempts <= self.settings.retries and not self.killed:
                spared.insert(0, task)
            else:
                facts = (setup or task.describe(), pid, exit_code, number, peak, task.attempts)
                death = WorkerDiedError(*facts)
                lost.append((task, InitializerError(setup, str(death)) if setup else death))
        self.queue.extendleft(reversed(spared))

        def tell() -> None:
            for task, error in lost:
                self._fail(task, error)
            self.pump()

        done.append(tell)

    def interrupt(self) -> None:
        """Ctrl-C: interrupt what is running; a worker that does not react is killed."""
        if self.hub.pid != os.getpid():
            return
        _wire.shield()
        try:
            self.interrupted = True
            with self.hub.lock:
                running = [(w, next(iter(w.inflight))) for w in self.workers if w.inflight]
            for worker, seq in running:
                worker.interrupt(seq)
            if running:
                self.hub.later(_INTERRUPT_S, functools.partial(self._insist, running))
        finally:
            _wire.unshield()

    def _insist(self, running: list[tuple[Worker, int]]) -> None:
        """Kill the workers that are still at the task they were interrupted in, or in their initializer.

        If the pool is being closed since, nobody wants what they have begun in the meantime either.
        """
        with self.hub.lock:
            unwanted = self.closed and self.interrupted
            stuck = [w for w, seq in running if seq in w.inflight or (unwanted and w.inflight)]
        for worker in stuck:
            worker.signal(signal.SIGKILL)

    # ------------------------------------------------------------------ the end

    def shutdown(self, *, wait: bool, cancel: bool) -> None:
        """Take no more tasks; end when those that were taken are finished."""
        if self.hub.pid != os.getpid():
            self.closed = True
            return
        try:
            _wire.shield()
            try:
                self._close(cancel=cancel)
                if wait:
                    self.hub.drive(self.over.is_set, None)
                    opening = _wire.window()
                    try:
                        self.over.wait()
                    finally:
                        _wire.curtain(opening)
            finally:
                _wire.unshield()
        except KeyboardInterrupt:  # nobody wants the rest of the queue to be computed first
            self.interrupt()
            self._close(cancel=True)
            raise

    def _close(self, *, cancel: bool) -> None:
        with self.hub.lock:
            self.closed = True
            waiting = list(self.queue) if cancel else []
            sent = [task for worker in self.workers for task in worker.inflight.values()] if cancel else []
        for task in waiting:
            if not task.cancel() and self.withdraw(task):
                task.fail(concurrent.futures.CancelledError())  # it was on its way already
        for task in sent:
            if self.withdraw(task):
                task.fail(concurrent.futures.CancelledError())
        self._when_empty()

    def abandon(self) -> None:
        """Let nobody wait: called by the garbage collector, so it takes no lock."""
        if self.hub.pid == os.getpid() and not self.over.is_set():
            self.closed = True
            self.hub.from_finalizer(self._when_empty)

    def kill(self, number: int) -> None:
        """End all workers of this pool by a signal; nothing that waits is run any more."""
        with self.hub.lock:
            self.closed = True
            self.killed = number
            for worker in self.workers:
                worker.signal(number)
        self._drop_waiting()
        self._when_empty()

    def _drop_waiting(self) -> None:
        """End what waits in the queue of a pool whose workers were killed, or came back to it since."""
        for task in list(self.queue):
            if not task.cancel():  # it was sent to a worker, and taken back
                with self.hub.lock, contextlib.suppress(ValueError):
                    self.queue.remove(task)
                self._fail(task, WorkerDiedError(task.describe(), 0, None, self.killed, 0))

    def _is_over(self) -> bool:
        if not self.closed or self.pending or self.over.is_set():
            return False
        # A thread may not have noticed yet that what it has just sent is done: the worker is still its own.
        return not any(worker.sending for worker in self.workers)

    def _when_empty(self) -> None:
        """After the last task of a closed pool: give the workers back."""
        if not self._is_over():
            return
        with self.hub.lock:
            if not self._is_over():  # somebody else has done it
                return
            self.crew.pools.discard(self)
            for worker in list(self.workers):
                self.roster.dismiss(worker)
                self.crew.release(worker)
        self.over.set()
        self.hub.ring()
