"""A pool: the queue of one executor, and how its tasks get to workers and back.

::

    submit ──► queue ──► batch ──► worker ──► result ──► future
                 ▲          │
                 └── taken back when the worker dies or its head is slow

Policy
------
- A task goes to an idle worker; else a new worker is started up to `max_workers`; else it waits. Only
  when tasks are short is a worker sent more than it can run at once (`ndshare._pool.roster`).
- Many short tasks travel in one message (`ndshare._pool.delivery`). An idle worker takes back what another
  one has not begun.
- Arguments are read when a task is dispatched, in the thread that dispatches it.
- A worker's death fails the task it was running, or tries it again; what it had not begun runs elsewhere.
- Results are rebuilt and futures resolved without the hub's lock: that is taken only while the books are
  changed.
"""

from __future__ import annotations

import collections
import functools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from ndshare._pool.delivery import Delivery, ForkWantedError
from ndshare._pool.limits import Limits
from ndshare._pool.memory import MemoryWatch
from ndshare._pool.roster import BURST_TASKS, Roster
from ndshare._pool.settings import PoolSettings
from ndshare._pool.tasks import LEAVING, Awaited, Task, TaskFuture
from ndshare._processes import (
    Answer,
    Crew,
    CrewClosedError,
    TaskOptions,
    Todo,
    Worker,
    WorkerGoneError,
    frames,
    handle_waiting,
    inheritance,
    loaded,
    own_crew,
)
from ndshare._system import _wire, processors
from ndshare._transport import by_value_modules, close_all, unpack, with_traceback
from ndshare.errors import ExitError, InheritedError, InitializerError, WorkerDiedError, code_or_signal

if TYPE_CHECKING:
    from ndshare._pool.report import Recorder

#: Submits that follow each other so closely are a burst; tiny tasks of a burst are sent by the dozen.
_BURST_S = 100e-6
#: A worker that could not be started for lack of something passing is tried again after this time.
_AGAIN_S = 0.02
#: A worker that asks for a name while something is being sent to it is answered after this time.
_ANSWER_S = 0.5e-3
#: After this time without an answer all workers sleep: see `ndshare._processes.frames.SPIN_ALONE_US`.
_ASLEEP_S = 1e-3
#: A worker that does not react to Ctrl-C within this time is killed.
_INTERRUPT_S = 0.6


class Pool:
    """Workers of one executor and the tasks that wait for them.

    Parameters
    ----------
    crew : Crew
        Where workers come from, and who hears them.
    settings : PoolSettings
        What it was asked to be.
    """

    def __init__(self, crew: Crew, settings: PoolSettings) -> None:
        self.crew = crew
        self.hub = crew.hub
        self.ring = crew.hub.ring
        self.settings = settings
        self.withheld = settings.withheld
        self.inherited = 0  # the number of what workers inherit that are forked from this program
        self.reason = ""  # why they are
        self.delivery = Delivery(crew, settings)
        self.recorder: Recorder | None = None
        if settings.record:
            from ndshare._pool.report import Recorder

            self.recorder = Recorder()
        self.roster = Roster(settings)
        self.workers = self.roster.workers
        self.limits = Limits(crew, self.workers)
        self.memory: MemoryWatch | None = None
        if settings.memory_limit is not None:
            self.memory = MemoryWatch(crew, self.workers, self.limits, settings.memory_limit)
            self.roster.is_swollen = self.memory.is_swollen
        self.handles: weakref.WeakValueDictionary[Worker, Any] = weakref.WeakValueDictionary()  # the user's
        self.queue: collections.deque[Task] = collections.deque()
        self.ranked = False  # some task had a priority
        self._unsorted = False  # and the queue may not be in that order
        self.pending = 0  # tasks that are not finished
        self.closed = False
        self.told: set[bytes] = set()  # what tasks have lost, as workers have said it
        self.killed = 0  # the signal that has ended its workers
        self.interrupted = False  # by Ctrl-C, and nothing was submitted since
        self.over = False
        self.ended = threading.Condition()  # tells that it is over
        self._leaving: dict[Worker, list[Task]] = {}  # what is being sent to whom
        self._burst = 0  # submits in quick succession
        self._last_submit = 0.0
        self.held = False  # tasks wait for more to come
        self.on_finished: Callable[[], None] | None = None  # called when there are fewer tasks
        crew.join(self)
        if settings.start == "fork":
            self._inherit('start="fork" was asked for')

    # ------------------------------------------------------------------ tasks in

    def submit(self, task: Task) -> None:
        """Take a task on."""
        now = time.perf_counter()
        self._burst = self._burst + 1 if now - self._last_submit < _BURST_S else 0
        self._last_submit = now
        _wire.shield()
        try:
            if self.inherited:
                self.delivery.look_before_fork()
            with self.hub.lock:
                self._take_on((task,))
                if self.inherited:
                    self.crew.fork_for(self)
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
            self._drop((task,))
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
            if self.inherited:
                self.delivery.look_before_fork()
            with self.hub.lock:
                self._take_on(tasks)
                if self.inherited:
                    self.crew.fork_for(self)
            self._pump(leaving=waits)
        except BaseException:
            self._drop(tasks)
            raise
        finally:
            _wire.unshield()

    def start_workers(self, *, wait: bool = True) -> None:
        """Start all workers that are not there now; by default return when each has run its initializer.

        Raises
        ------
        InitializerError
            If that failed in one of them.
        WorkerDiedError
            If a worker ended.
        """
        probes = [TaskFuture(self, start_worker, (), {}) for _ in range(self.settings.max_workers)]
        _wire.shield()
        try:
            if self.inherited:
                self.delivery.look_before_fork()
            for number, probe in enumerate(probes):
                try:
                    with self.hub.lock:
                        if len(self.workers) >= self.settings.max_workers:
                            del probes[number:]
                            break
                        worker = self._hire()
                        worker.sent -= 1  # what is asked of it here is no task of the user's
                        worker.sending = True
                        probe.seq = LEAVING
                        self.pending += 1
                except BlockingIOError:  # no room for another process now: the queue tries again
                    self.submit_all(probes[number:])
                    break
                try:
                    self.dispatch(worker, [probe])
                except BaseException:  # Ctrl-C while the initializer is pickled: the I/O thread goes on
                    self.hub.put_off(self.pump)
                    raise
        finally:
            _wire.unshield()
        if not wait:
            return
        for probe in probes:
            probe.result()
        with self.hub.lock:
            self.roster.seconds = None  # says nothing about the tasks to come

    def _take_on(self, tasks: Iterable[Task]) -> None:
        """Put tasks into the queue (under the lock: nobody closes the pool meanwhile)."""
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        before = len(self.queue)
        if self.recorder is not None:
            tasks = tuple(tasks)
            self.recorder.take(tasks)
        self.delivery.looked_at = {}  # globals may have changed since the tasks before
        self.queue.extend(tasks)
        if self.ranked:
            self._unsorted = True
        self.pending += len(self.queue) - before
        self.interrupted = False

    def heed(self, task: Task, asked: TaskOptions) -> None:
        """Have a task that is yet to be submitted run as its user wants."""
        limit = self.settings.task_timeout if asked.timeout is None else asked.timeout
        if limit is not None:
            task.limit = limit
            self.limits.timed = True
        task.retries = asked.retries
        if asked.priority:
            task.priority = asked.priority
            self.ranked = True

    def may_retry(self, task: Task) -> bool:
        """Whether a task may be run a second time, so that its arguments are needed again."""
        return (self.settings.retries if task.retries is None else task.retries) > 0

    def _sort(self) -> None:
        """Bring the queue into the order of priorities; of equal ones the first comes first."""
        self._unsorted = False
        tasks = sorted(self.queue, key=_rank)
        self.queue.clear()
        self.queue.extend(tasks)

    def _drop(self, unwanted: Iterable[Task]) -> None:
        """Drop tasks that nobody will hear of; what waited behind them is sent by the I/O thread."""
        for task in unwanted:
            self.withdraw(task)
        self.hub.put_off(self.pump)

    def withdraw(self, task: Task) -> bool:
        """Let go of a task that its user cancels; False if a worker has begun it, or it is the parent's."""
        if self.hub.pid != os.getpid():
            return False
        _wire.shield()
        try:
            with self.hub.lock:
                if task.pool is None or not self._remove(task):
                    return False
                self.pending -= 1
            if self.on_finished is not None:
                self.on_finished()
            self.when_empty()
        finally:
            _wire.unshield()
        return True

    def _remove(self, task: Task) -> bool:
        """Take a task from where it is, if that is not a worker which has begun it (under the lock)."""
        worker, seq = task.worker, task.seq
        if worker is not None and worker.inflight.get(seq) is task:
            if not worker.recall(seq):
                return False
            del worker.inflight[seq]
            worker.sent -= 1
            if not worker.inflight:  # no answer of it will make the next task come
                self.roster.offer(worker)
                self.hub.put_off(self.pump)
        else:
            try:
                self.queue.remove(task)
            except ValueError:
                if seq != LEAVING:  # it was answered
                    return False
                task.pool = None  # the thread that is sending it lets go of the rest
                return True
        task.let_go()
        return True

    def kill_task(self, task: Task) -> bool:
        """End a task that runs, and its worker; False if it does not run, or is the parent's."""
        return self.hub.pid == os.getpid() and self.limits.kill(task)

    def is_running(self, task: Task) -> bool:
        """Whether a worker has begun a task."""
        if self.hub.pid != os.getpid():
            return False  # in a forked child: what the parent's workers do is not known there
        with self.hub.lock:
            worker, seq = task.worker, task.seq
            if worker is None or seq == LEAVING:
                return False
            if worker.inflight.get(seq) is task:
                return worker.runs(seq)
            return task.pool is not None and task not in self.queue  # answered, or taken back

    # ------------------------------------------------------------------ to the workers

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
                self._drop_waiting()
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
        self.roster.renew(loaded.generation())
        if self.killed or not (self.queue or self.roster.take_back(self.queue)):
            return None
        try:
            worker = self.roster.choose(len(self.queue), self._hire)
        except BlockingIOError:
            self.hub.later(_AGAIN_S, self.pump)
            return None
        except Exception as error:
            if self.queue and not self.workers:  # else those that are there will do
                self.hub.put_off(functools.partial(self._refuse, self.queue.popleft(), error))
            return None
        if worker is None:
            return None
        if self._unsorted:
            self._sort()
        size = self.roster.batch_size(worker, len(self.queue))
        batch: list[Task] = []
        while self.queue and len(batch) < size:
            task = self.queue[0]
            if task.attempts and batch:
                break  # one that has killed a worker goes alone
            if task.splits and (piece := task.piece()) is not task:
                task = piece
                self.pending += 1
            else:
                self.queue.popleft()
            task.seq = LEAVING
            batch.append(task)
            if task.attempts:
                break
        self._leaving[worker] = batch
        worker.sending = True
        worker.batch = len(batch)
        self.roster.free.pop(worker, None)
        return worker, batch

    def _hire(self) -> Worker:
        """Get a worker more (under the hub's lock)."""
        number = self.roster.vacancy()
        worker = self.crew.lease(self, number, self.settings.overlay(number))
        self.roster.add(worker)
        return worker

    def _inherit(self, reason: str) -> None:
        """Have the workers forked from this program, as it is when the first of them is wanted."""
        self.inherited = self.delivery.inherited = inheritance.keep(
            self.settings.initializer, self.settings.initargs
        )
        self.withheld = self.delivery.withheld = self.settings.withheld | inheritance.names_of_main()
        self.reason = f"workers are forked from this program: {reason}"

    def dispatch(
        self, worker: Worker, batch: list[Task], *, here: bool = False, asked: str | None = None
    ) -> None:
        """Send tasks that are on the books to a worker that is marked as being sent to, or what it asked for.

        It is woken `here`, if so wanted: on the processor of the calling thread.
        """
        failed: list[tuple[Task, BaseException]] = []
        rest = collections.deque(batch)
        try:
            if here:
                worker.bring_here()
            if asked is not None:
                self.delivery.answer(worker, asked)
            else:
                self.delivery.send(worker, rest, failed)
        except WorkerGoneError:
            pass  # the report of its death deals with what it was sent
        except ForkWantedError as wanted:
            self.delivery.look_before_fork()
            with self.hub.lock:
                if not self.inherited:
                    self._inherit(str(wanted))
                    self.crew.fork_for(self)
                self.roster.dismiss(worker)
                worker.quit()
            self.hub.put_off(self.pump)
        finally:  # what was not sent waits again; after Ctrl-C, too
            with self.hub.lock:
                self._leaving.pop(worker, None)
                back = []
                for task in rest:
                    if task.pool is not None:
                        back.append(task)
                    else:  # cancelled
                        task.let_go()
                worker.batch = max(1, worker.batch - len(rest))
                worker.sending = False
                if worker.gone:
                    worker.close()
                    back = list(worker.inflight.values()) + back
                    worker.inflight.clear()
                self.queue.extendleft(reversed(back))
                self.roster.offer(worker)
                if self.limits.timed:
                    self.limits.arm(worker)
                if self.memory is not None and worker.inflight:
                    self.memory.arm()
            if failed:
                while failed:
                    self.fail(*failed.pop(0))
                self.ring()

    # ------------------------------------------------------------------ from the workers

    def answer(self, worker: Worker, name: str) -> None:
        """Send a worker a name of ``__main__`` that its task looks up."""
        _wire.shield()
        try:
            with self.hub.lock:
                if worker.gone or worker.pool is not self:
                    return
                if worker.sending:  # by another thread, which will soon have done
                    self.hub.later(_ANSWER_S, functools.partial(self.answer, worker, name))
                    return
                worker.sending = True
                self.roster.free.pop(worker, None)
            self.dispatch(worker, [], asked=name)
            self.pump()
        finally:
            _wire.unshield()

    def wait_for(self, task: Awaited, condition: threading.Condition, timeout: float | None) -> None:
        """Receive until a task is done, or wait while another thread receives."""
        if self.hub.pid != os.getpid():
            raise InheritedError("a future of an executor", self.hub.pid, os.getpid())
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            _wire.shield()
            try:
                if self.held:
                    self.pump()
                likely = self.roster.busy() if self.pending == 1 and self.roster.short else None
                self.hub.drive(task.done, deadline, likely)
                if not task.done() and (deadline is None or time.monotonic() < deadline):
                    self.hub.wait(condition, task.done, deadline)
            finally:
                _wire.unshield()
        except KeyboardInterrupt:
            self.interrupt()
            self.hub.put_off(self.pump)  # it may have struck while an argument was pickled
            raise

    def resolve(self, worker: Worker, answers: collections.deque[Answer]) -> None:
        """Rebuild results and resolve their futures, without the lock."""
        try:
            handle_waiting()  # those that came before, if another thread is at them
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
                self._resolve(worker, *answer)
        except BaseException:  # Ctrl-C, in the thread that waits: the I/O thread does the rest
            self.hub.put_off(functools.partial(self.resolve, worker, answers))
            raise
        if self.closed:
            self.when_empty()

    def _resolve(self, worker: Worker, task: Task, status: int, body: bytes, fds: tuple[int, ...]) -> None:
        try:
            self.delivery.bytes_sent += len(body)
            value = unpack(body, fds)
        except SystemExit as error:
            self.fail(task, ExitError(task.describe(), error.code))
            return
        except BaseException as error:  # a result that cannot be rebuilt is this task's error
            self.fail(task, error)
            return
        if status == frames.OK:
            self._end(task, task.succeed, value)
        elif status == frames.ERROR or not self._try_by_value(worker, task, value[0]):
            self.fail(task, *value)

    def _try_by_value(self, worker: Worker, task: Task, error: BaseException) -> bool:
        """Send a module by value that the worker could not import; False if that cannot help."""
        name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        worker.known_main.clear()
        worker.functions.discard(task.token)
        if not name or name not in sys.modules or name in task.modules_tried:
            return False
        task.modules_tried |= {name}
        by_value_modules.add(name)
        try:
            task.read_again()
        except Exception:  # arguments that cannot be rebuilt here: the first error says enough
            return False
        with self.hub.lock:
            self.queue.appendleft(task)
        self.pump()
        return True

    def fail(self, task: Task, error: BaseException, text: str = "") -> None:
        """End a task by an error."""
        handle_waiting()
        with_traceback(error, text)
        self._end(task, task.fail, error)

    def _refuse(self, task: Task, error: BaseException) -> None:
        """Fail a task for which there is no worker, then see about the next one."""
        self.fail(task, error)
        self.pump()

    def _end(self, task: Task, tell: Callable[[Any], None], outcome: Any) -> None:
        """End a task; callbacks are run by the I/O thread alone."""
        if not task.seal():
            if not self.hub.in_thread:
                self.hub.call_back(functools.partial(self._end, task, tell, outcome))
                return
            task.on_done = self.ring  # before callbacks of the user's, which may block
        try:
            if self._finish(task):
                tell(outcome)
        finally:
            if self.closed:
                self.when_empty()

    def _finish(self, task: Task) -> bool:
        """Take a task off the books; False if its user has cancelled it, or it was off them already."""
        with self.hub.lock:
            withdrawn = task.pool is None
            task.let_go()
            if not withdrawn:
                self.pending -= 1
        if self.on_finished is not None:
            self.on_finished()
        return not withdrawn

    # ------------------------------------------------------------------ deaths

    def on_initialized(
        self, worker: Worker, status: int, body: bytes, fds: tuple[int, ...], done: Todo
    ) -> None:
        """The initializer has run in a worker (under the hub's lock)."""
        if status == frames.OK:
            close_all(fds)
            if self.memory is not None:
                self.memory.note_start(worker)
            return
        worker.leaving = True
        waiting = list(worker.inflight.values()) + list(self.queue)
        worker.inflight.clear()
        self.queue.clear()
        self.roster.dismiss(worker)
        done.append(lambda: self._initializer_failed(waiting, body, fds))

    def _initializer_failed(self, waiting: list[Task], body: bytes, fds: tuple[int, ...]) -> None:
        try:
            cause, text = unpack(body, fds)
        except BaseException as error:
            cause, text = error, str(error)
        name = self.settings.setup or f"preload={list(self.settings.preload)}"
        for task in waiting:
            failure = InitializerError(name, text)
            failure.__cause__ = cause
            self.fail(task, failure)

    def on_death(self, worker: Worker, pid: int, code: int | None, peak: int, done: Todo) -> None:
        """A worker has ended (under the hub's lock)."""
        victims, spared = self.roster.bury(worker)
        if self.killed:
            victims, spared = victims + spared, []
        setup = ""  # what it was at, if that was not a task
        if not worker.proved and not worker.leaving and not victims:
            if self.settings.initializer is not None and worker.state_version is not None:
                setup = self.settings.setup
            if self.roster.is_hopeless():
                victims, spared = [*victims, *spared, *self.queue], []
                self.queue.clear()
        exit_code, number = code_or_signal(code)
        lost: list[tuple[Task, BaseException]] = []
        verdict = self.limits.verdict(worker)
        if self.memory is not None:
            self.memory.forget(worker)
        for task in victims:
            task.attempts += 1
            if self.recorder is not None:
                self.recorder.note_death(worker, pid, task)
            ended = verdict if verdict is not None and verdict.task is task else None
            retries = self.settings.retries if task.retries is None else task.retries
            if task.attempts <= retries and not self.killed and not (ended and ended.final):
                spared.insert(0, task)
            elif ended is not None:
                lost.append((task, ended.error(pid)))
            else:
                facts = (setup or task.describe(), pid, exit_code, number, peak, task.attempts)
                death = WorkerDiedError(*facts)
                lost.append((task, InitializerError(setup, str(death)) if setup else death))
        self.queue.extendleft(reversed(spared))

        def tell() -> None:
            for task, error in lost:
                self.fail(task, error)
            self.pump()

        done.append(tell)

    # ------------------------------------------------------------------ Ctrl-C

    def interrupt(self, only: Collection[Task] | None = None) -> None:
        """Ctrl-C: interrupt what is running, or some of it; a worker that does not react is killed."""
        if self.hub.pid != os.getpid():
            return
        _wire.shield()
        try:
            self.interrupted = self.interrupted or only is None
            with self.hub.lock:
                running = self.roster.heads(only)
                ending = only is None and bool(self.roster.ending)
            for worker, seq in running:
                worker.interrupt(seq)
            if running or ending:
                self.hub.later(_INTERRUPT_S, functools.partial(self._insist, running))
        finally:
            _wire.unshield()

    def _insist(self, running: list[tuple[Worker, int]]) -> None:
        """Kill the workers that are still at the task they were interrupted in, or in their initializer.

        If the pool is being closed since, nobody wants what they have begun in the meantime either.
        """
        with self.hub.lock:
            unwanted = self.closed and self.interrupted
            for worker in self.roster.ending if unwanted else ():
                worker.signal(signal.SIGKILL)
            for worker, seq in running:
                if seq in worker.inflight or (unwanted and worker.inflight):
                    worker.leaving = True  # it gets nothing more, should it be done when the signal comes
                    worker.signal(signal.SIGKILL)

    # ------------------------------------------------------------------ the end

    def restart(self) -> None:
        """Have other workers do what is not begun; those that are there end after what they have begun."""
        _wire.shield()
        try:
            with self.hub.lock:
                self.roster.replace(self.queue)
            self.pump()
        finally:
            _wire.unshield()

    def shutdown(self, *, wait: bool, cancel: bool, timeout: float | None = None) -> bool:
        """Take no more tasks; end when those that were taken are finished. Returns whether it is over."""
        if self.hub.pid != os.getpid():
            self.closed = True
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            _wire.shield()
            try:
                self._close(cancel=cancel)
                if wait:
                    self.hub.drive(lambda: self.over, deadline)
                    self.hub.wait(self.ended, lambda: self.over, deadline)
                return self.over
            finally:
                _wire.unshield()
        except KeyboardInterrupt:  # nobody wants the rest of the queue to be computed first
            self.interrupt()
            self._close(cancel=True)
            raise

    def _close(self, *, cancel: bool) -> None:
        """Take no more tasks; what an idle worker was sent counts as begun, even if it just starts."""
        with self.hub.lock:
            self.closed = True
            tasks = []
            if cancel:
                tasks += [*self.queue, *self.roster.behind()]
                for batch in self._leaving.values():
                    tasks += batch
        for task in tasks:
            task.cancel()
        if self.on_finished is not None:
            self.on_finished()
        self.ring()
        self.when_empty()

    def abandon(self) -> None:
        """Let nobody wait: called by the garbage collector, so it takes no lock."""
        if self.hub.pid == os.getpid() and not self.over:
            self.closed = True
            self.hub.from_finalizer(self.when_empty)

    def kill(self, number: int) -> None:
        """End all workers of this pool by a signal; nothing that waits is run any more."""
        with self.hub.lock:
            self.closed = True
            self.killed = number
            for worker in (*self.workers, *self.roster.ending):
                worker.signal(number)
        self._drop_waiting()
        if self.on_finished is not None:
            self.on_finished()
        self.when_empty()

    def _drop_waiting(self) -> None:
        """End what waits in the queue of a pool whose workers were killed, or came back to it since."""
        for task in list(self.queue):
            task.cancel()

    def _is_over(self) -> bool:
        if not self.closed or self.pending or self.over:
            return False
        # A thread may not have noticed yet that what it has just sent is done: the worker is still its own.
        return not any(worker.sending for worker in self.workers)

    def when_empty(self) -> None:
        """After the last task of a closed pool: give the workers back."""
        if not self._is_over():
            return
        with self.hub.lock:
            if not self._is_over():  # somebody else has done it
                return
            if self.settings.finalizer is not None and not self.killed:
                for worker in list(self.workers):
                    self.roster.end(worker)
                if self.roster.ending:  # the report of the last one's end calls this again
                    return
            self.crew.pools.discard(self)
            for worker in list(self.workers):
                self.roster.dismiss(worker)
                self.crew.release(worker)
            if self.inherited:
                self.crew.retire(self.inherited)
        with self.ended:
            self.over = True
            self.ended.notify_all()
        self.ring()


def _rank(task: Task) -> int:
    return -task.priority


def start_worker() -> None:
    """What a worker is asked to do to see that it is there."""


def new_pool(settings: PoolSettings) -> Pool:
    """Make a pool on the workers of this process."""
    while True:
        try:
            return Pool(own_crew(), settings)
        except CrewClosedError:  # another thread was just shutting it down
            continue
