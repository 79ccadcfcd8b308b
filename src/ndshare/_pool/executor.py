"""`ProcessPoolExecutor`: the interface of `concurrent.futures`, on warm workers and shared memory."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import numbers
import os
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from ndshare._pool.gate import Gate
from ndshare._pool.items import (
    ChunkSize,
    Drawing,
    EachRun,
    EachTask,
    RestTask,
    Unordered,
    chunks,
    in_order,
    length_of,
)
from ndshare._pool.pool import new_pool
from ndshare._pool.repeats import Repeats
from ndshare._pool.settings import Environment, checked_settings
from ndshare._pool.tasks import ItemsTask, MapRun, TaskFuture

# `sharing` is not used here. Were it imported later, when a thread first calls `ndshare.share`, a fork at
# that moment would leave the child an import lock that nobody releases.
from ndshare._processes import (
    TaskOptions,
    WithOptions,
    errstate,
    options_of,
    with_options,
    without_options,
)
from ndshare._system import Progress, check_callable, check_count, check_seconds, progress_of
from ndshare.errors import InheritedError

if TYPE_CHECKING:
    from ndshare._pool.report import TaskReport
    from ndshare._pool.workers import Ending, WorkerProcess, WorkerStatus

_T = TypeVar("_T")
_Items = TypeVar("_Items", bound=ItemsTask)
_Each = TypeVar("_Each", bound=EachTask)

_ENDINGS = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}


class ProcessPoolExecutor(concurrent.futures.ProcessPoolExecutor):
    """Run calls in a pool of worker processes; arrays do not go through pickle.

    Page: docs/executor.md.

    Parameters
    ----------
    max_workers : int, optional
        Number of processes at most. By default the smaller of the CPU affinity and the container's CPU
        quota, at least 1.
    mp_context : optional
        Accepted for compatibility and ignored with a warning: workers are always forked from a clean
        process that has never run the caller's code.
    initializer : callable, optional
        Called with `initargs` in each worker before its first task.
    initargs : tuple, optional
        Arguments of the initializer.
    max_tasks_per_child : int, optional
        A worker ends after so many tasks and is replaced.
    snapshot : {"start", "submit"}, optional
        When ordinary arguments are read: when the task is sent to a worker, as the standard library
        does, or before `submit` returns.
    threads_per_worker : int, optional
        BLAS and OpenMP threads in each worker. By default the number of processors divided by
        `max_workers`, at least 1; variables like ``OMP_NUM_THREADS`` in the environment take precedence
        over the default for libraries that read them.
    env : mapping, sequence of mappings or callable, optional
        Environment variables on top of the caller's: for all workers, one mapping per worker, or a
        function of the worker's number. At most 32 kB for each.
    preload : iterable of str, optional
        Names of modules that are imported once, before workers are forked.
    retries : int, optional
        How often a task is tried again whose *worker died*, or was killed because the task took too long. A
        task that raises is never tried again. `ndshare.options` says it for the tasks of one function.
    start : {"auto", "clean", "fork"}, optional
        Where workers come from: from a clean process, or forked from this program as it is when the first
        one is wanted. With "auto" they are forked if the initializer or its arguments can only be inherited
        (a lock, Value, Array, Event, Barrier or Queue of `multiprocessing`), and no threads run in this
        program that forbid it; with "fork" the user answers for threads of Python. `start_method` says which
        it was, and `start_reason` why.
    task_timeout : float, optional
        Seconds that a task may take. The worker that runs it for longer is killed, and its future fails with
        `TaskTimeoutError`. `ndshare.options` gives the tasks of one function another limit.
    finalizer : callable, optional
        Called without arguments in each worker after its last task for this executor: at the end of it, when
        the worker is replaced (`max_tasks_per_child`, `restart`), not if the worker is killed. `shutdown`
        waits for it. What it raises is logged. Files that only `worker_state` keeps are closed then.
    max_pending : int, optional
        So many tasks may be unfinished; `submit` of another one waits, and `map` reads its inputs no further.
    when_full : {"wait", "raise"}, optional
        What `submit` does then; "raise": it raises `queue.Full`.
    cpus : sequence, optional
        Processors of each worker, in the order of their numbers: sets of numbers, or names of NUMA nodes such
        as "node0". With fewer entries than workers they are used again from the first.
    memory_limit : int or str, optional
        Bytes that each worker may have of its own, such as ``"2GB"`` (K, M, G and T are powers of 1024);
        shared arrays do not count. At the limit the worker is killed, and its task fails with
        `WorkerMemoryError`. A worker in which tasks have left more than half of it is replaced between two
        tasks, which is logged as a warning.
    record : bool, optional
        Note when each task was submitted, begun and done, for `report`. Some 200 bytes per task.

    Notes
    -----
    Shared arrays (`ndshare.share` and its like) arrive as the same memory, at the price of one
    descriptor. Ordinary arrays are copied once; the worker has a private, writable copy. A result costs
    no copy if nothing in the worker refers to it any more.

    A worker that dies fails the task it was running with `WorkerDiedError`, which is a
    `concurrent.futures.process.BrokenProcessPool`; the pool goes on. This is the one intended difference
    from the standard library. Works without ``if __name__ == "__main__"``, from a notebook and from
    threads.

    References
    ----------
    The interface is that of `concurrent.futures.ProcessPoolExecutor` of Python 3.14.

    Examples
    --------
    >>> import numpy as np
    >>> import ndshare
    >>> with ndshare.ProcessPoolExecutor(2) as executor:
    ...     future = executor.submit(np.add, np.arange(3), 1)
    ...     future.result()
    array([1, 2, 3])
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        snapshot: Literal["start", "submit"] = "start",
        threads_per_worker: int | None = None,
        env: Environment = None,
        preload: Iterable[str] = (),
        retries: int = 0,
        start: Literal["clean", "fork", "auto"] = "auto",
        task_timeout: float | None = None,
        finalizer: Callable[[], object] | None = None,
        max_pending: int | None = None,
        when_full: Literal["wait", "raise"] = "wait",
        cpus: Iterable[Any] | None = None,
        memory_limit: int | str | None = None,
        record: bool = False,
    ) -> None:
        settings = checked_settings(
            "max_workers",
            max_workers,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_child=max_tasks_per_child,
            snapshot=snapshot,
            threads_per_worker=threads_per_worker,
            env=env,
            preload=preload,
            retries=retries,
            start=start,
            task_timeout=task_timeout,
            finalizer=finalizer,
            cpus=cpus,
            memory_limit=memory_limit,
            record=record,
        )
        if max_pending is not None:
            check_count("max_pending", max_pending, 1)
        if not (isinstance(when_full, str) and when_full in {"wait", "raise"}):
            raise ValueError(f"when_full must be 'wait' or 'raise', got {when_full!r}")
        if mp_context is not None:
            method = getattr(mp_context, "get_start_method", lambda **_: None)(allow_none=False)
            if method == "fork" and max_tasks_per_child is not None:
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' start method, as in the standard "
                    "library; leave mp_context out: ndshare's workers can be replaced"
                )
            warnings.warn(
                f"mp_context={mp_context!r} is ignored: ndshare forks its workers from a clean process of "
                "its own",
                stacklevel=2,
            )
        self._pool = new_pool(settings)
        self._gate = Gate(self._pool, max_pending, waits=when_full == "wait") if max_pending else None
        self._max_workers = settings.max_workers
        self._snapshot = snapshot
        self._timed = task_timeout is not None
        self._repeats = Repeats()
        self._finalizer = weakref.finalize(self, self._pool.abandon)
        self._finalizer.atexit = False

    # What the standard class does is done here in another way: it is the base for `isinstance` alone.

    # ------------------------------------------------------------------ submit

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        Parameters
        ----------
        fn : callable
            Anything that can be pickled, and lambdas, closures, functions of a notebook or a script. With
            `ndshare.options` around it the task has a time limit, tries or a priority of its own.
        *args, **kwargs
            Arguments. Ordinary arrays are copied once, shared arrays arrive as the same memory. Do not
            change them before the future is done, unless ``snapshot="submit"``.

        Returns
        -------
        concurrent.futures.Future
            Which has a method ``kill()`` besides: it ends the task if it runs, by the death of its worker.

        Raises
        ------
        TypeError
            If `fn` is not callable.
        RuntimeError
            After `shutdown`.
        queue.Full
            If `max_pending` tasks are unfinished, with ``when_full="raise"``.
        InheritedError
            In a forked child of the process that made the executor.
        """
        self._check_usable()
        check_callable("fn", fn, "; give function and arguments apart: submit(f, x), not submit(f(x))")
        if not self._repeats.told:
            self._repeats.warn(fn, args, kwargs)
        asked = None
        if type(fn) is WithOptions or self._timed:
            asked, fn = self._asked(fn)
        if (errors := errstate.current()) is not None:
            fn, args = errstate.call, (errors, fn, *args)
        task = TaskFuture(self._pool, fn, args, kwargs)
        if asked is not None:
            self._pool.heed(task, asked)
        if self._snapshot == "submit":
            task.read_now(private=self._pool.may_retry(task))
        if self._gate is None:
            self._pool.submit(task)
        else:
            self._gate.submit(task)
        return task

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = 1,
        buffersize: int | None = None,
        progress: bool | Progress = False,
    ) -> Iterator[_T]:
        """Apply `fn` to the items of the iterables, in order.

        Parameters
        ----------
        fn : callable
            Takes as many arguments as there are iterables. Sent once to each worker, not with each item.
        *iterables : iterable
            The shortest one decides.
        timeout : float, optional
            Seconds from this call after which ``__next__`` raises `TimeoutError`.
        chunksize : int or "auto", optional
            Items per task; "auto" follows the measured time per item, so that tiny items travel by the
            hundred and long ones alone. Where tasks have a time limit, it
            is 1: each item has the limit for itself.
        buffersize : int, optional
            How many tasks (of `chunksize` items) may be submitted whose results have not been yielded;
            the iterables are read no further than that. By default all are submitted at once.
        progress : bool or callable, optional
            True draws a bar (tqdm), as `ndshare.map` does; a callable gets (items finished, items in all).
            Drawn by the thread that takes the results, while it does.

        Returns
        -------
        iterator
            Of results, in the order of the items. An error of an item is raised where its result would be;
            what has not begun by then is cancelled.
        """
        self._check_usable()
        check_callable("fn", fn, "; the function comes first: map(f, items)")
        _check_sizes(chunksize, buffersize)
        if timeout is not None:
            check_seconds("timeout", timeout)
        draw = progress_of(progress)
        if self._gate is not None:
            buffersize = min(buffersize or self._gate.most, self._gate.most)
        deadline = None if timeout is None else time.monotonic() + timeout
        asked, fn = self._asked(fn)
        if asked is not None and self._is_limited(asked):
            chunksize = 1
        if getattr(self.submit, "__func__", None) is not ProcessPoolExecutor.submit:
            # Somebody's own, which is to see these calls as well.
            groups = chunks(zip(*iterables, strict=False), 1 if chunksize == "auto" else chunksize)
            call: Callable[..., Any] = functools.partial(_call_all, fn)
            if asked is not None:
                call = with_options(call, asked)
            futures = (self.submit(call, group) for group in groups)
            begun = collections.deque(itertools.islice(futures, buffersize))
            results = _results(begun, futures if buffersize else iter(()), deadline)
            return results if draw is None else _counted(results, Drawing(draw, length_of(iterables)))
        if (errors := errstate.current()) is not None:
            fn = functools.partial(errstate.call, errors, fn)
        if draw is not None or chunksize == "auto":
            return self._map_each(fn, asked, iterables, deadline, chunksize, buffersize, draw)
        groups = chunks(zip(*iterables, strict=False), chunksize)
        run = MapRun(self._pool, fn, next(self._pool.crew.tokens))
        self._pool.delivery.follow(run)
        run.asked = asked

        def task_of(group: list[tuple[Any, ...]]) -> ItemsTask:
            if not self._repeats.told:
                for args in group:
                    self._repeats.warn(fn, args, {})
            task = ItemsTask(run, group)
            if self._snapshot == "submit":
                task.read_now(private=self._pool.may_retry(task))
            return task

        if self._gate is not None:
            tasks = collections.deque(
                map(self._submitted, map(task_of, itertools.islice(groups, buffersize)))
            )
        else:
            tasks = collections.deque(map(task_of, itertools.islice(groups, buffersize)))
            self._pool.submit_all(tasks)
        more = (self._submitted(task) for task in map(task_of, groups)) if buffersize else iter(())
        return _results(tasks, more, deadline)

    def _asked(self, fn: Any) -> tuple[TaskOptions | None, Any]:
        """Return how the tasks of a function are to be run, if that was said, and what is sent for it."""
        if type(fn) is not WithOptions and not self._timed:
            return None, fn
        return options_of(fn), without_options(fn)

    def _is_limited(self, asked: TaskOptions) -> bool:
        return self._timed or asked.timeout is not None

    def _submitted(self, task: _Items) -> _Items:
        if self._gate is None:
            self._pool.submit(task)
        else:
            self._gate.submit(task, waits=True)
        return task

    def _map_each(
        self,
        fn: Callable[..., Any],
        asked: TaskOptions | None,
        iterables: tuple[Iterable[Any], ...],
        deadline: float | None,
        chunksize: int | Literal["auto"],
        buffersize: int | None,
        draw: Progress | None,
    ) -> Iterator[Any]:
        """Do what `map` does, in chunks of measured size or with progress."""
        run = EachRun(self._pool, fn, ChunkSize(self._pool) if chunksize == "auto" else None)
        run.asked = asked
        take = functools.partial(self._take_on, run)
        items = zip(*iterables, strict=False)
        rest: RestTask | None = None
        if buffersize is None:
            everything = list(items)
            drawing = Drawing(draw, len(everything)) if draw is not None else None
            if chunksize != "auto":
                run.begun.extend(map(take, chunks(iter(everything), chunksize)))
                self._pool.submit_all(run.begun)
            elif everything:
                rest = take(everything, RestTask)
                self._pool.submit_all((rest,))
            return in_order(run, rest, iter(()), deadline, drawing)
        drawing = Drawing(draw, length_of(iterables)) if draw is not None else None
        more = map(self._submitted, map(take, chunks(items, run.sized or int(chunksize))))
        run.begun.extend(itertools.islice(more, buffersize))
        return in_order(run, rest, more, deadline, drawing)

    def _take_on(self, run: EachRun, group: list[tuple[Any, ...]], kind: type[_Each] = EachTask) -> _Each:  # type: ignore[assignment]  # the default
        if not self._repeats.told:
            for args in group:
                self._repeats.warn(run.function, args, {})
        task = kind(run, group)
        if self._snapshot == "submit":
            task.read_now(private=task.splits or self._pool.may_retry(task))
        return task

    def imap_unordered(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = 1,
        buffersize: int | None = None,
        progress: bool | Progress = False,
    ) -> Unordered[_T]:
        """Apply `fn` to the items of the iterables; results come as they are ready.

        Parameters
        ----------
        fn : callable
            Takes as many arguments as there are iterables. Sent once to each worker.
        *iterables : iterable
            The shortest one decides. Read lazily, by the thread that takes the results.
        timeout : float, optional
            Seconds from this call after which ``__next__`` raises `TimeoutError`.
        chunksize : int or "auto", optional
            Items per task; "auto" follows the measured time per item.
        buffersize : int, optional
            How many items may have been read whose results have not been given. By default four tasks for
            each worker.
        progress : bool or callable, optional
            As for `map`.

        Returns
        -------
        iterator
            Of results in the order in which they are ready. What an item raises is raised when its turn
            comes, and what has not begun by then is cancelled; results that were computed already are
            given by further calls of ``next``. ``close()``, or dropping it, cancels what has not begun.

        Notes
        -----
        If a worker dies, its chunk fails with `WorkerDiedError`. The calls do not go through a `submit`
        that a subclass overrides. An iterator belongs to one thread at a time.

        Examples
        --------
        >>> import ndshare
        >>> with ndshare.ProcessPoolExecutor(2) as executor:
        ...     sorted(executor.imap_unordered(abs, range(-3, 0)))
        [1, 2, 3]
        """
        self._check_usable()
        check_callable("fn", fn)
        _check_sizes(chunksize, buffersize)
        if timeout is not None:
            check_seconds("timeout", timeout)
        draw = progress_of(progress)
        deadline = None if timeout is None else time.monotonic() + timeout
        asked, fn = self._asked(fn)
        if asked is not None and self._is_limited(asked):
            chunksize = 1
        if (errors := errstate.current()) is not None:
            fn = functools.partial(errstate.call, errors, fn)
        sized = None
        if chunksize == "auto":  # a buffer is shared out, so that each worker has a task and another
            sized = ChunkSize(self._pool, buffersize and max(1, buffersize // (2 * self._max_workers)))
        run = EachRun(self._pool, fn, sized)
        run.asked = asked
        return Unordered(
            run,
            zip(*iterables, strict=False),
            functools.partial(self._take_on, run),
            self._submitted,
            sized or int(chunksize),
            buffersize,
            deadline,
            Drawing(draw, length_of(iterables)) if draw is not None else None,
        )

    # ------------------------------------------------------------------ the end

    def restart(self) -> None:
        """Replace all workers: they end after what they have begun, and new ones do what waits.

        The new ones run the initializer, those that go their finalizer. Returns at once; futures stay as
        they are. For what tasks leave in a process: memory, handles, modules that have changed on disk.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        InheritedError
            In a forked child of the process that made the executor.
        """
        self._check_usable()
        self._pool.restart()

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more tasks, and end when those that were submitted are finished.

        Parameters
        ----------
        wait : bool, optional
            Return only when all futures are done.
        cancel_futures : bool, optional
            Cancel the futures that have not started.
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            If tasks run that long. They go on; `kill_workers` ends them.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
            if not wait:
                raise ValueError(
                    f"timeout={timeout!r} was refused: with wait=False there is nothing to wait for"
                )
        over = self._pool.shutdown(wait=wait, cancel=cancel_futures, timeout=timeout)
        if timeout is not None and not over:
            raise TimeoutError(
                f"shutdown: after {timeout:g} s {self._pool.pending} tasks are not finished, or finalizers "
                "run. They go on: wait again, or end them with kill_workers()"
            )

    def terminate_workers(self) -> None:
        """End the workers by SIGTERM: futures that run fail, those that wait are cancelled."""
        self._force_shutdown(operation="terminate")

    def kill_workers(self) -> None:
        """End the workers by SIGKILL: futures that run fail, those that wait are cancelled."""
        self._force_shutdown(operation="kill")

    def _force_shutdown(self, operation: str) -> None:
        """Do what both do; programs that know the standard class of 3.14 find it here."""
        if operation not in _ENDINGS:
            raise ValueError(f"operation must be 'terminate' or 'kill', got {operation!r}")
        if self._pool.hub.pid == os.getpid():
            known = list(self._pool.handles.values())
            self._pool.kill(_ENDINGS[operation])
            for process in known:
                getattr(process, operation)()  # somebody may have put something of their own there
        self._pool.shutdown(wait=False, cancel=True)

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        # After Ctrl-C nobody wants the rest of the queue to be computed first.
        interrupted = exc_type is not None and issubclass(exc_type, KeyboardInterrupt)
        if interrupted:
            self._pool.interrupt()
        self.shutdown(wait=True, cancel_futures=interrupted)

    # ------------------------------------------------------------------ who and what

    def report(self) -> TaskReport:
        """Return what the executor has done so far: a text or a table, `plot()`, `to_chrome_trace()`.

        Returns
        -------
        TaskReport
            Also after `shutdown`.

        Raises
        ------
        ValueError
            If the executor was made without ``record=True``.
        """
        if (recorder := self._pool.recorder) is None:
            raise ValueError("report needs an executor that records: ProcessPoolExecutor(…, record=True)")
        with self._pool.hub.lock:
            return recorder.report(self._max_workers)

    def workers(self) -> list[WorkerStatus]:
        """Return what each worker that is there now is at: its process, what it runs and since when.

        Returns
        -------
        list of WorkerStatus
            With attributes `pid`, `state`, `running`, `since`, `waiting`, `done`, `own_bytes` and
            `peak_bytes`. Empty before the first task and after the last one of an executor that was shut
            down.

        Examples
        --------
        >>> import time
        >>> import ndshare
        >>> with ndshare.ProcessPoolExecutor(1) as executor:
        ...     future = executor.submit(time.sleep, 0.5)
        ...     while not future.running():
        ...         time.sleep(0.01)
        ...     [status.running for status in executor.workers()]
        ['time.sleep()']
        """
        from ndshare._pool.workers import statuses

        return statuses(self._pool)

    @property
    def start_method(self) -> str:
        """Where its workers come from: "clean", or "fork" if they are forked from this program."""
        return "fork" if self._pool.inherited else "clean"

    @property
    def start_reason(self) -> str:
        """A sentence that says why they are forked; empty if they are not."""
        return self._pool.reason

    @property
    def _processes(self) -> dict[int, WorkerProcess]:  # type: ignore[override]
        """The workers by process number, where programs look for those of the standard class."""
        from ndshare._pool.workers import processes

        return processes(self._pool)

    @property
    def _executor_manager_thread(self) -> Ending:  # type: ignore[override]
        """What can be joined after `shutdown`; so can `_call_queue`."""
        from ndshare._pool.workers import Ending

        return Ending(self._pool)

    _call_queue = _executor_manager_thread

    @property
    def _mp_context(self) -> Any:  # type: ignore[override]
        """The start method of `multiprocessing` whose workers are like these."""
        return multiprocessing.get_context("fork" if self._pool.inherited else "spawn")

    @property
    def usable(self) -> bool:
        """Whether it takes tasks: it was made in this process and has not been shut down."""
        return self._pool.hub.pid == os.getpid() and not self._pool.closed

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a ProcessPoolExecutor stays in its process, and cannot be sent to a worker; let the task return "
            "what is to be done next, or make an executor in the task"
        )

    def _check_usable(self) -> None:
        pool = self._pool
        if pool.hub.pid != os.getpid():
            raise InheritedError("this ProcessPoolExecutor", pool.hub.pid, os.getpid())
        if pool.closed:
            error = RuntimeError("cannot schedule new futures after shutdown")
            error.add_note(
                "ndshare: this executor has ended, by shutdown() or with its `with`. Make another: workers "
                "are kept warm, so that it costs little"
            )
            raise error
        if sys.is_finalizing():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")


def _check_sizes(chunksize: object, buffersize: object) -> None:
    if isinstance(chunksize, str):
        if chunksize != "auto":
            raise ValueError(f"chunksize must be an integer or 'auto', got {chunksize!r}")
    else:
        check_count("chunksize", chunksize, 1)
    if buffersize is not None:  # the texts are those of Python 3.14
        if isinstance(buffersize, bool) or not isinstance(buffersize, numbers.Integral):
            raise TypeError(f"buffersize must be an integer or None, got {buffersize!r}")
        if buffersize < 1:
            raise ValueError(f"buffersize must be None or > 0, got {buffersize}")


def _counted(results: Iterator[Any], drawing: Drawing) -> Iterator[Any]:
    finished = 0
    everything = False
    try:
        for finished, result in enumerate(results, 1):
            drawing.show(finished)
            yield result
        everything = True
    finally:
        drawing.end(finished if everything else None)


def _call_all(fn: Callable[..., Any], group: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in group]


def _results(
    tasks: collections.deque[Any],
    more: Iterator[Any],
    deadline: float | None,
    is_finalizing: Callable[[], bool] = sys.is_finalizing,
) -> Iterator[Any]:
    try:
        while tasks:
            results = tasks[0].result(None if deadline is None else deadline - time.monotonic())
            tasks.popleft()
            results.reverse()
            while results:
                if len(results) == 1 and (task := next(more, None)) is not None:
                    tasks.append(task)
                yield results.pop()
    finally:
        if not is_finalizing():  # else nothing is left to cancel with
            for task in tasks:
                task.cancel()
