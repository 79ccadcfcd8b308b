"""A pool: the queue of one executor, and how its tasks get to workers and back.

::

    submit ──► queue ──► batch ──► worker ──► result ──► future
                 ▲          │
                 └── taken back when the worker dies or its head is slow

Policy
------
- A task goes to an idle worker; else a new worker is started up to `max_workers`; else it waits. Only
  when tasks are short (`_PREFETCH_S`) is a worker sent more than it can run at once.
- Many short tasks travel in one message: as many as make `_BATCH_S` of work, measured. An idle worker
  takes back what another one has not begun.
- Arguments are read when a task is dispatched, in the thread that dispatches it.
- A worker's death fails the task it was running, or tries it again; what it had not begun runs elsewhere.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import math
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ndshare import _frames as frames
from ndshare import _wire, cpus, mainspace, segments, transport
from ndshare._arguments import variables
from ndshare._pool_errors import InitializerError, WorkerDiedError
from ndshare.hub import Todo
from ndshare.tasks import MapRun, RemoteTracebackError, Task, describe
from ndshare.workers import Answer, Crew, Worker, WorkerGoneError

_BATCH_S = 1e-3
_BATCH_TASKS = 60
_PREFETCH_S = 20e-3
#: Submits that follow each other so closely are a burst; tiny tasks of a burst are sent by the dozen.
_BURST_S = 100e-6
_BURST_TASKS = 32
_TINY_S = 200e-6
#: A worker that does not react to Ctrl-C within this time is killed.
_INTERRUPT_S = 0.6
#: A worker that could not be started for lack of something passing is tried again after this time.
_AGAIN_S = 0.02
#: So many workers in a row may die before they have answered anything, then the tasks that wait fail.
_STILLBORN = 3

Environment = Mapping[str, str] | Sequence[Mapping[str, str]] | Callable[[int], Mapping[str, str]] | None


def _is_ctrl_c(error: BaseException) -> bool:
    """Tell Ctrl-C of the user from a KeyboardInterrupt or SystemExit that somebody's pickling code raises.

    Python delivers signals to the main thread alone; there, the interrupt wins.
    """
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


class _RunReference(weakref.ref["MapRun"]):
    """Notices the end of a map."""

    __slots__ = ("token",)
    token: int


class Pool:
    """Workers of one executor and the tasks that wait for them."""

    def __init__(
        self,
        crew: Crew,
        max_workers: int,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        limit: int | None = None,
        env: Environment = None,
        preload: tuple[str, ...] = (),
        threads: int | None = None,
        retries: int = 0,
    ) -> None:
        self.crew = crew
        self.hub = crew.hub
        self.max_workers = max_workers
        self.initializer = initializer
        self.initargs = initargs
        self.limit = limit
        self.env = env
        self.preload = preload
        self.threads_asked = threads is not None
        self.threads = threads or max(1, cpus.default_workers() // max_workers)
        self.retries = retries
        self.own = bool(initializer or limit or env or preload)
        self.idle_limit = max(64 << 20, segments.stats().idle_limit // max(2, max_workers))
        self.queue: collections.deque[Task] = collections.deque()
        self.workers: list[Worker] = []
        self.free: dict[Worker, None] = {}  # workers that could take more
        self.pending = 0  # tasks that are not finished
        self.closed = False
        self.killed = False
        self.interrupted = False  # by Ctrl-C, and nothing was submitted since
        self.over = threading.Event()
        self.seconds: float | None = None  # what a task takes, smoothed
        self.functions: dict[int, Callable[..., Any]] = {}
        self._numbers: list[int] = []  # worker numbers that are free again
        self._next_number = 0
        self._number_of: dict[Worker, int] = {}
        self._stillborn = 0
        self._burst = 0  # submits in quick succession
        self._last_submit = 0.0
        self.held = False  # tasks wait for more to come
        self.bytes_copied = 0
        self.bytes_sent = 0
        self._runs: dict[int, _RunReference] = {}  # maps whose function workers may have
        self._runs_over: collections.deque[_RunReference] = collections.deque()
        crew.pools.add(self)

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
                saturated = not self.free and len(self.workers) >= self.max_workers
            tiny = self.seconds is not None and self.seconds < _TINY_S
            if saturated or (self._burst > _BURST_TASKS and tiny):
                if waiting & (_BURST_TASKS - 1):
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
                        self.offer(worker)
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
                self._send(*picked)
            self._when_empty()
        finally:
            _wire.unshield()

    def _pick(self) -> tuple[Worker, list[Task]] | None:
        """Choose a worker and what it gets (under the hub's lock)."""
        if self.killed or not (self.queue or self._take_back()):
            return None
        try:
            worker = self._choose()
        except BlockingIOError:
            self.hub.later(_AGAIN_S, self.pump)
            return None
        except Exception as error:
            if self.queue and not self.workers:  # else those that are there will do
                self.hub.put_off(functools.partial(self._refuse, self.queue.popleft(), error))
            return None
        if worker is None:
            return None
        size = self._batch_size(worker)
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
        self.free.pop(worker, None)
        return worker, batch

    def _choose(self) -> Worker | None:
        for worker in self.free:
            if not worker.inflight:
                return worker
        if len(self.workers) < self.max_workers:
            return self._hire()
        if self.seconds is None or self.seconds > _PREFETCH_S:
            return None
        if self.seconds > _TINY_S or len(self.queue) >= _BURST_TASKS:
            return next(iter(self.free), None)
        return None

    def _batch_size(self, worker: Worker) -> int:
        if self.seconds is None or (self.initializer is not None and not worker.proved):
            return 1
        fair = math.ceil(len(self.queue) / max(1, len(self.workers)))
        size = max(1, min(_BATCH_TASKS, fair, int(_BATCH_S / max(self.seconds, 1e-6))))
        return min(size, self.limit - worker.sent) if self.limit else size

    def _take_back(self) -> bool:
        """If a worker is idle and the queue empty: what other workers have not begun (under the lock)."""
        if not any(not w.inflight for w in self.free):
            return False
        loaded = max(self.workers, key=lambda w: len(w.inflight), default=None)
        if loaded is None or len(loaded.inflight) < 2:
            return False
        seqs = list(loaded.inflight)
        for seq in reversed(seqs[1 + (len(seqs) - 1) // 2 :]):
            if loaded.take_back(seq):
                loaded.sent -= 1
                self.queue.appendleft(loaded.inflight.pop(seq))
        return bool(self.queue)

    # ------------------------------------------------------------------ workers

    def _hire(self) -> Worker:
        number = self._numbers.pop() if self._numbers else self._next_number
        if number == self._next_number:
            self._next_number += 1
        worker = self.crew.lease(self, self._overlay(number))
        self._number_of[worker] = number
        self.workers.append(worker)
        return worker

    def _overlay(self, number: int) -> dict[str, str]:
        env = self.env
        if env is None:
            return {}
        if callable(env):
            env = env(number)
        elif not isinstance(env, Mapping):
            env = env[number % len(env)]
        return variables(env)

    def _dismiss(self, worker: Worker) -> None:
        """Take a worker off the books (under the lock)."""
        if worker in self._number_of:
            self._numbers.append(self._number_of.pop(worker))
            self.workers.remove(worker)
        self.free.pop(worker, None)

    def offer(self, worker: Worker) -> None:
        """Note that a worker can take more, or let it go when its time is over (under the lock)."""
        if worker.leaving or worker.sending or worker not in self._number_of:
            return
        if self.limit and worker.sent >= self.limit:
            if not worker.inflight:
                self._dismiss(worker)
                worker.quit()
        elif len(worker.inflight) < max(2, worker.batch // 2 + 1):
            self.free[worker] = None

    # ------------------------------------------------------------------ sending

    def _send(self, worker: Worker, batch: list[Task]) -> None:
        failed: list[tuple[Task, BaseException]] = []
        rest = collections.deque(batch)
        parcels: list[transport.Parcel] = []
        try:
            self._prepare(worker, rest, failed)
            while rest:
                self._send_some(worker, rest, failed, parcels)
        except WorkerGoneError:
            pass  # the report of its death deals with what it was sent
        except BaseException:  # Ctrl-C while arguments were read: the I/O thread sends what is left
            self.held = True
            self.hub.tick()
            raise
        finally:
            for parcel in parcels:
                parcel.release()
            with self.hub.lock:
                back = list(rest)
                worker.sending = False
                if worker.gone:
                    worker.close()
                    back = list(worker.inflight.values()) + back
                    worker.inflight.clear()
                self.queue.extendleft(reversed(back))
                self.offer(worker)
            for task, reason in failed:
                self._fail(task, reason)
            if failed:
                self.hub.ring()

    def _send_some(
        self,
        worker: Worker,
        rest: collections.deque[Task],
        failed: list[tuple[Task, BaseException]],
        parcels: list[transport.Parcel],
    ) -> None:
        """Send as many of the rest as one message takes; in `rest` remains what was not sent."""
        records: list[tuple[Task, transport.Parcel, int]] = []
        fds: list[int] = []
        size = 0
        try:
            while rest and size < frames.MESSAGE_MAX_BYTES - transport.INLINE_MAX and len(fds) < 64:
                task = rest[0]
                try:
                    parcel = self._parcel(worker, task)
                    own = parcel.descriptors() if parcel.blocks else ()
                except WorkerGoneError:
                    raise
                except BaseException as error:
                    if _is_ctrl_c(error):
                        raise
                    if records and isinstance(error, OSError | MemoryError):
                        break  # what the others hold may be what is missing: they go first
                    failed.append((task, error))
                    rest.popleft()
                    continue
                fds += own
                records.append((task, parcel, len(own)))
                rest.popleft()
                size += len(parcel.data)
                if parcel.blocks and task.parcel is None:
                    parcels.append(parcel)
            if records:
                self._send_records(worker, records, fds)
        except BaseException:  # the worker is gone; Ctrl-C while an argument was pickled
            rest.extendleft(task for task, _, _ in reversed(records))
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def _prepare(
        self, worker: Worker, rest: collections.deque[Task], failed: list[tuple[Task, BaseException]]
    ) -> None:
        """Bring a worker to the caller's directory, environment and so on; run the initializer first."""
        self._forget_functions(worker)
        version = (self.crew.state.refresh(), self.threads, self.threads_asked)
        if worker.state_version == version:
            return
        fresh = worker.state_version is None
        try:
            message = self.crew.state.message(
                overlay=worker.overlay, threads=self.threads, threads_asked=self.threads_asked
            )
            self._send_bytes(worker, frames.STATE, int(fresh), 0, message)
            if fresh and self.initializer is not None:
                self._send_initializer(worker)
            worker.state_version = version
        except WorkerGoneError:
            raise
        except Exception as error:  # the initializer cannot be pickled: nothing can run
            failed.extend((task, error) for task in rest)
            rest.clear()

    def _send_initializer(self, worker: Worker) -> None:
        try:
            draft, parcel = self._pack((self.initializer, self.initargs))
            self._send_names(worker, draft.needs)
        except WorkerGoneError:
            raise
        except Exception as error:
            text = f"it cannot be sent to a worker: {type(error).__name__}: {error}"
            raise InitializerError(describe(self.initializer), text) from error
        self._send_parcel(worker, frames.INITIALIZER, 0, parcel)

    def follow(self, run: MapRun) -> None:
        """Have the workers forget the function of a map once it is over.

        What the garbage collector calls is a method in C: it may run anywhere, so it must take no
        lock, and Ctrl-C in a finalizer would be lost.
        """
        reference = _RunReference(run, self._runs_over.append)
        reference.token = run.token
        self._runs[run.token] = reference

    def _forget_functions(self, worker: Worker) -> None:
        with self.hub.lock:
            while self._runs_over:
                token = self._runs_over.popleft().token
                del self._runs[token]
                for other in self.workers:
                    if token in other.functions:
                        other.stale.append(token)
        while worker.stale:
            worker.functions.discard(token := worker.stale.pop())
            self._send_bytes(worker, frames.FORGET, 0, token, b"")

    @staticmethod
    def _pack(content: Any) -> tuple[transport.Draft, transport.Parcel]:
        """Pickle and copy; Ctrl-C is let through, as this may take long."""
        opening = _wire.window()
        try:
            draft = transport.pack(content)
            return draft, draft.settle()
        finally:
            _wire.curtain(opening)

    def _parcel(self, worker: Worker, task: Task) -> transport.Parcel:
        """What a task sends to this worker; sends first what the worker lacks for it."""
        parcel = task.parcel or self._pack(task.content)[1]
        if task.token and task.token not in worker.functions:
            draft, function = self._pack(task.function)
            self._send_names(worker, draft.needs)
            self._send_parcel(worker, frames.FUNCTION, task.token, function)
            worker.functions.add(task.token)
        if parcel.needs:
            self._send_names(worker, parcel.needs)
        self.bytes_copied += parcel.nbytes_copied
        return parcel

    def _send_names(self, worker: Worker, needs: frozenset[str]) -> None:
        if needs and (draft := mainspace.deliver(needs, worker.known_main)) is not None:
            self._send_parcel(worker, frames.MAIN, 0, draft.settle())
            worker.known_main.update(draft.delivers or {})

    def _send_parcel(self, worker: Worker, kind: int, number: int, parcel: transport.Parcel) -> None:
        fds = parcel.descriptors()
        try:
            worker.send([frames.HEAD.pack(kind, 0, 0, number, 0.0), parcel.data], fds)
            self.bytes_sent += len(parcel.data)
        finally:
            for fd in fds:
                os.close(fd)
            parcel.release()

    def _send_bytes(self, worker: Worker, kind: int, status: int, number: int, content: bytes) -> None:
        worker.send([frames.HEAD.pack(kind, status, 0, number, 0.0), content])
        self.bytes_sent += len(content)

    def _send_records(
        self, worker: Worker, records: list[tuple[Task, transport.Parcel, int]], fds: list[int]
    ) -> None:
        """Send tasks; from the moment they are on the worker's books, `records` is empty."""
        parts = [frames.HEAD.pack(frames.TASKS, 0, len(records), 0, 0.0)]
        with self.hub.lock:
            for task, parcel, nfds in records:
                seq = worker.next_task()
                worker.inflight[seq] = task
                data = parcel.data
                kind = frames.ITEMS if task.token else frames.CALL
                parts += (frames.RECORD.pack(seq, len(data), task.token, nfds, kind), data)
            worker.sent += len(records)
            records.clear()
        message = b"".join(parts)
        self.bytes_sent += len(message)
        worker.send((message,), fds)

    # ------------------------------------------------------------------ results

    def took(self, seconds: float) -> None:
        """Note how long a task took (under the hub's lock)."""
        self._stillborn = 0
        self.seconds = seconds if self.seconds is None else 0.8 * self.seconds + 0.2 * seconds

    def resolve(self, worker: Worker, answers: collections.deque[Answer]) -> None:
        """Rebuild results and resolve their futures, without the lock."""
        try:
            while answers:
                self._resolve(worker, *answers.popleft())
        except BaseException:  # Ctrl-C, in the thread that waits: the I/O thread does the rest
            self.hub.put_off(functools.partial(self.resolve, worker, answers))
            raise
        if self.closed:
            self._when_empty()

    def _resolve(self, worker: Worker, task: Task, status: int, body: bytes, fds: tuple[int, ...]) -> None:
        try:
            self.bytes_sent += len(body)
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
        self._again([task])
        return True

    def _again(self, tasks: list[Task]) -> None:
        with self.hub.lock:
            self.queue.extendleft(reversed(tasks))
        self.pump()

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
        if text:
            error.__cause__ = RemoteTracebackError(text)
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
            for fd in fds:
                os.close(fd)
            return
        worker.leaving = True
        waiting = list(worker.inflight.values()) + list(self.queue)
        worker.inflight.clear()
        self.queue.clear()
        self._dismiss(worker)
        done.append(lambda: self._initializer_failed(waiting, body, fds))

    def _initializer_failed(self, waiting: list[Task], body: bytes, fds: tuple[int, ...]) -> None:
        try:
            cause, text = transport.unpack(body, fds)
        except BaseException as error:
            cause, text = error, str(error)
        for task in waiting:
            failure = InitializerError(describe(self.initializer), text)
            failure.__cause__ = cause
            self._fail(task, failure)

    def on_death(self, worker: Worker, pid: int, code: int | None, peak: int, done: Todo) -> None:
        """A worker has ended (under the hub's lock)."""
        self._dismiss(worker)
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
            self._stillborn += 1
            if self.initializer is not None and worker.state_version is not None:
                setup = describe(self.initializer)
            if self._stillborn >= _STILLBORN:
                spared += self.queue
                self.queue.clear()
                victims, spared = victims + spared, []
                self._stillborn = 0
        exit_code = code if code is not None and code >= 0 else None
        number = -code if code is not None and code < 0 else None
        lost: list[tuple[Task, BaseException]] = []
        for task in victims:
            task.attempts += 1
            if task.attempts <= self.retries and not self.killed:
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
            for worker, _ in running:
                worker.signal(signal.SIGINT)
            if running:
                self.hub.later(_INTERRUPT_S, functools.partial(self._insist, running))
        finally:
            _wire.unshield()

    def _insist(self, running: list[tuple[Worker, int]]) -> None:
        """Kill the workers that are still at the task they were interrupted in, or in their initializer."""
        with self.hub.lock:
            stuck = [worker for worker, seq in running if seq in worker.inflight]
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
            self.closed = self.killed = True
            waiting = list(self.queue)
            for worker in self.workers:
                worker.signal(number)
        for task in waiting:
            if not task.cancel():  # it was sent to a worker, and taken back
                with self.hub.lock, contextlib.suppress(ValueError):
                    self.queue.remove(task)
                self._fail(task, WorkerDiedError(task.describe(), 0, None, number, 0))

    def _is_over(self) -> bool:
        return self.closed and not self.pending and not self.over.is_set()

    def _when_empty(self) -> None:
        """After the last task of a closed pool: give the workers back."""
        if not self._is_over():
            return
        with self.hub.lock:
            if not self._is_over():  # somebody else has done it
                return
            self.crew.pools.discard(self)
            for worker in list(self.workers):
                self._dismiss(worker)
                self.crew.release(worker)
        self.over.set()
        self.hub.ring()
