"""`Pool`: the interface of `multiprocessing.Pool`, on the workers and the memory of executors.

::

    Pool ── apply ───────────────► CallTask ──┐
         ── map, starmap ──► chunks: JobTask ──┼──► a pool of tasks ──► workers
         ── imap ──► Feeder ──► JobTask ───────┘         │
    AsyncResult, IMapIterator ◄── callbacks ◄── note ◄───┘

Guarantees
----------
- Every job ends: a worker's death, a pool that is terminated, an input that raises are errors of the job.
- Callbacks have run when a job is ready, and when `join` returns; what one raises is logged and harms nobody.
- An input with a length is read at the call; any other one in a thread of its own, a few items ahead of the
  workers.

Not guaranteed: the order of callbacks.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import multiprocessing.pool
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from ndshare._pool import EachRun, Environment, Repeats, WorkerProcess, checked_settings, new_pool, processes
from ndshare._processes import TaskOptions, WithOptions, errstate, options_of, without_options
from ndshare._system import check_callable, check_count
from ndshare.errors import InheritedError
from ndshare.integrations._results import (
    AsyncResult,
    Callback,
    CallTask,
    IMapIterator,
    JobTask,
    MapResult,
    terminated,
)

Item = tuple[Any, ...]

# As in `multiprocessing.pool`, where programs compare with them.
_RUN, _CLOSE, _TERMINATE = "RUN", "CLOSE", "TERMINATE"

#: Tasks of an input without a length that are at the workers or wait for them, for each worker.
_AHEAD = 16
#: A task that does not react to `terminate` within this time is killed.
_INSIST_S = 1.0


_open: weakref.WeakSet[Pool] = weakref.WeakSet()


def _terminate_at_exit(pool: Pool) -> None:
    """Do so before the workers are waited for: what is registered last is called first."""
    _open.add(pool)
    atexit.unregister(_terminate_all)
    atexit.register(_terminate_all)


def _terminate_all() -> None:
    for pool in list(_open):
        pool.terminate()


class Pool(multiprocessing.pool.Pool):
    """Run jobs in a pool of worker processes, with the interface of `multiprocessing.Pool`.

    Page: docs/pool.md.

    Parameters
    ----------
    processes : int, optional
        Number of workers. By default the smaller of the CPU affinity and the container's CPU quota.
    initializer : callable, optional
        Called with `initargs` in each worker before its first task.
    initargs : tuple, optional
        Arguments of the initializer.
    maxtasksperchild : int, optional
        A worker ends after so many tasks (chunks count as one) and is replaced.
    context : optional
        A context of `multiprocessing`. With that of "fork" workers are forked from this program as it is when
        the first one is wanted; with any other, and by default, from a clean process that is kept warm.
    retries : int, optional
        How often a task whose *worker died* is tried again. A task that raises is never tried again.
    task_timeout : float, optional
        Seconds that a call may take; then its worker is killed, and its job fails with `TaskTimeoutError`.
        `ndshare.options` around a function gives its calls another limit. Items with a limit are tasks of
        their own, whatever the chunks.
    threads_per_worker : int, optional
        BLAS and OpenMP threads in each worker; by default the number of processors divided by `processes`.
    env : mapping, sequence of mappings or callable, optional
        Environment variables of the workers; as for `ndshare.ProcessPoolExecutor`.
    preload : iterable of str, optional
        Names of modules that are imported before workers are forked.

    Notes
    -----
    Shared arrays arrive as the same memory, results cost no copy, and functions may be lambdas or those of a
    notebook, all as with `ndshare.ProcessPoolExecutor`. A worker that dies fails its task with
    `WorkerDiedError`, where the original waits for ever. Workers start when they are wanted, or at once if
    there is an initializer. `terminate`, and so leaving a ``with`` block, kills workers only if tasks run;
    else they stay warm for the next pool.

    References
    ----------
    The interface is that of `multiprocessing.pool.Pool`.

    Examples
    --------
    >>> import ndshare
    >>> with ndshare.Pool(2) as pool:
    ...     pool.starmap(pow, [(2, 3), (3, 2)])
    [8, 9]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        threads_per_worker: int | None = None,
        env: Environment = None,
        preload: Iterable[str] = (),
    ) -> None:
        self._state = "INIT"
        if isinstance(processes, int) and processes < 1:
            raise ValueError(f"Number of processes must be at least 1, got {processes}")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild < 1):
            raise ValueError(f"maxtasksperchild must be a positive int or None, got {maxtasksperchild!r}")
        settings = checked_settings(
            "processes",
            processes,
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks_per_child=maxtasksperchild,
            snapshot="start",
            threads_per_worker=threads_per_worker,
            env=env,
            preload=preload,
            retries=retries,
            start=_start(context),
            task_timeout=task_timeout,
        )
        self._processes = settings.max_workers
        self._tasks = new_pool(settings)
        self._cache: dict[int, Any] = {}  # jobs that have not ended; programs look at its length
        self._feeders: set[threading.Thread] = set()
        self._books = threading.Lock()  # of the feeders and the state
        self._repeats = Repeats()
        self._timed = task_timeout is not None
        self._state = _RUN
        _terminate_at_exit(self)
        if initializer is not None:  # which is to run whether or not there is a job
            self._tasks.start_workers(wait=False)

    # The original's methods are replaced one and all: it is the base for `isinstance`.

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._state == _RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
            self._tasks.abandon()

    def __repr__(self) -> str:
        return f"<ndshare.Pool state={self._state} pool_size={self._processes}>"

    # ------------------------------------------------------------------ one call

    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> Any:
        """Return ``func(*args, **kwds)``, called in a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Call ``func(*args, **kwds)`` in a worker, and return at once what its result can be had from."""
        self._check_running()
        check_callable("func", func)
        asked, func = self._asked(func)
        args, kwds = tuple(args), dict(kwds or {})
        if not self._repeats.told:
            self._repeats.warn(func, args, kwds)
        content = (func, args, kwds)
        if (errors := errstate.current()) is not None:
            content = (errstate.call, (errors, func, *args), kwds)
        job = AsyncResult(self, callback, error_callback)
        task = CallTask(job, func, content)
        if asked is not None:
            self._tasks.heed(task, asked)
        self._submit(job, [task])
        return job

    # ------------------------------------------------------------------ many, as a whole

    def map(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Return the list of ``func(item)`` for all items."""
        found: list[Any] = self._map(func, zip(iterable), chunksize).get()
        return found

    def map_async(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> MapResult:
        """Do what `map` does, and return at once what its result can be had from."""
        return self._map(func, zip(iterable), chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """Return the list of ``func(*item)`` for all items."""
        found: list[Any] = self._map(func, map(tuple, iterable), chunksize).get()
        return found

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> MapResult:
        """Do what `starmap` does, and return at once what its result can be had from."""
        return self._map(func, map(tuple, iterable), chunksize, callback, error_callback)

    def _map(
        self,
        func: Callable[..., Any],
        items: Iterator[Item],
        chunksize: int | None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> MapResult:
        self._check_running()
        everything = list(items)
        if chunksize is None:  # four tasks for each worker
            chunksize = max(1, -(-len(everything) // (4 * self._processes)))
        check_count("chunksize", chunksize, 1)
        run = self._run(func)
        if self._is_limited(run):
            chunksize = 1
        job = MapResult(self, callback, error_callback, len(everything), chunksize)
        starts = range(0, len(everything), chunksize)
        groups = [everything[start : start + chunksize] for start in starts]
        self._look(func, everything)
        self._submit(job, [JobTask(run, job, index, group) for index, group in enumerate(groups)])
        return job

    # ------------------------------------------------------------------ many, one by one

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:  # type: ignore[override]
        """Return an iterator of ``func(item)``, in the order of the items; its `next` takes a timeout."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(  # type: ignore[override]
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """Return an iterator of ``func(item)``, as they come; its `next` takes a timeout."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> IMapIterator:
        self._check_running()
        check_count("chunksize", chunksize, 1)
        items = iter(iterable)
        run = self._run(func)
        if self._is_limited(run):
            chunksize = 1
        job = IMapIterator(self, ordered=ordered, single=chunksize == 1)
        feeder = _Feeder(self, job, run, items, chunksize)
        if hasattr(iterable, "__len__"):
            feeder.feed_at_once()
        else:
            self._start(feeder)
        return job

    def _start(self, feeder: _Feeder) -> None:
        def work() -> None:
            try:
                feeder.feed(_AHEAD * self._processes)
            finally:
                with self._books:
                    self._feeders.discard(thread)
                    is_last = self._state == _CLOSE and not self._feeders
                if is_last:
                    self._tasks.shutdown(wait=False, cancel=False)

        thread = threading.Thread(target=work, name="ndshare-imap", daemon=True)
        with self._books:
            self._check_running()
            self._feeders.add(thread)
        thread.start()

    # ------------------------------------------------------------------ what all jobs need

    def _check_running(self) -> None:
        if self._tasks.hub.pid != os.getpid():
            raise InheritedError("this Pool", self._tasks.hub.pid, os.getpid())
        if self._state != _RUN:
            raise ValueError("Pool not running")

    def _run(self, func: Callable[..., Any]) -> EachRun:
        check_callable("func", func)
        asked, func = self._asked(func)
        if (errors := errstate.current()) is not None:
            func = functools.partial(errstate.call, errors, func)
        run = EachRun(self._tasks, func)
        run.asked = asked
        return run

    def _asked(self, func: Any) -> tuple[TaskOptions | None, Any]:
        """Return how the tasks of a function are to be run, if that was said, and what is sent for it."""
        if type(func) is not WithOptions and not self._timed:
            return None, func
        return options_of(func), without_options(func)

    def _is_limited(self, run: EachRun) -> bool:
        return self._timed or (run.asked is not None and run.asked.timeout is not None)

    def _look(self, func: Callable[..., Any], items: list[Item]) -> None:
        for item in items:
            if self._repeats.told:
                break
            self._repeats.warn(func, item, {})

    def _submit(self, job: Any, tasks: list[Any]) -> None:
        try:
            self._tasks.submit_all(tasks)
        except BaseException as error:  # closed by another thread, or Ctrl-C: nobody hears of the job
            job.drop()
            if isinstance(error, RuntimeError) and self._tasks.closed:
                raise ValueError("Pool not running") from None
            raise

    # ------------------------------------------------------------------ the end

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def close(self) -> None:
        """Take no more jobs; the workers are given back when those that were taken are done."""
        with self._books:
            if self._state == _RUN:
                self._state = _CLOSE
            feeds = bool(self._feeders)
        if not feeds:
            self._tasks.shutdown(wait=False, cancel=False)

    def terminate(self) -> None:
        """End all jobs: tasks that run are killed, those that have not begun are cancelled."""
        with self._books:
            self._state = _TERMINATE
        tasks = self._tasks
        tasks.shutdown(wait=False, cancel=True)
        if tasks.pending and tasks.hub.pid == os.getpid():
            tasks.kill(signal.SIGTERM)
            tasks.hub.later(_INSIST_S, functools.partial(_insist, tasks))
        for job in list(self._cache.values()):
            if isinstance(job, IMapIterator):
                job.wake()

    def join(self) -> None:
        """Wait until all jobs are done and the workers are given back; `close` or `terminate` it first."""
        if self._state == _RUN:
            raise ValueError("Pool is still running")
        if self._state not in {_CLOSE, _TERMINATE}:
            raise ValueError("In unknown state")
        for feeder in tuple(self._feeders):
            feeder.join()
        self._tasks.shutdown(wait=True, cancel=False)
        for job in list(self._cache.values()):
            self._tasks.wait_for(job, job._condition, None)

    # ------------------------------------------------------------------ where programs look

    @property
    def size(self) -> int:
        """Number of workers, where samplers look for it."""
        return self._processes

    @property
    def _pool(self) -> list[WorkerProcess]:
        """The workers, with `pid`, `is_alive`, `exitcode`; those that have not started yet start here."""
        if self._state == _RUN:
            self._repopulate_pool()
        return list(processes(self._tasks).values())

    def _repopulate_pool(self) -> None:
        self._tasks.start_workers()


class _Feeder:
    """Reads the input of an `imap`.

    Parameters
    ----------
    owner : Pool
        Whose job it is.
    job : IMapIterator
        Who gets the results.
    run : EachRun
        The function.
    items : iterator
        What is read.
    chunksize : int
        Items in a task.
    """

    def __init__(
        self, owner: Pool, job: IMapIterator, run: EachRun, items: Iterator[Any], chunksize: int
    ) -> None:
        self._owner = owner
        self._job = job
        self._run = run
        self._items = items
        self._chunksize = chunksize

    def feed_at_once(self) -> None:
        """Read to the end, in the calling thread."""
        groups: list[list[Item]] = []
        error: BaseException | None = None
        try:
            groups.extend(self._groups())
        except Exception as reason:
            error = reason
        tasks = [JobTask(self._run, self._job, index, group) for index, group in enumerate(groups)]
        self._job.expect(len(tasks))
        for group in groups:
            self._owner._look(self._run.function, group)
        self._owner._submit(self._job, tasks)
        self._job.close_input(len(tasks), error)

    def feed(self, most: int) -> None:
        """Read to the end; at most so many tasks are unfinished."""
        count = 0
        error: BaseException | None = None
        try:
            for group in self._groups():
                self._job.wait_for_room(most, self._stopped)
                if self._stopped():
                    error = terminated()
                    break
                self._job.expect(1)
                self._owner._tasks.submit(JobTask(self._run, self._job, count, group))
                count += 1
        except Exception as reason:
            error = terminated() if self._stopped() else reason
        finally:
            self._job.close_input(count, error)

    def _stopped(self) -> bool:
        return self._owner._state == _TERMINATE

    def _groups(self) -> Iterator[list[Item]]:
        while group := [(item,) for item in itertools.islice(self._items, self._chunksize)]:
            yield group


def _start(context: Any) -> str:
    if context is None:
        return "auto"
    method = getattr(context, "get_start_method", None)
    if method is None:
        raise TypeError(
            f"context must be a context of multiprocessing or None, got {context!r}; "
            "multiprocessing.get_context makes one"
        )
    return "fork" if method() == "fork" else "auto"


def _insist(tasks: Any) -> None:
    if not tasks.over:
        tasks.kill(signal.SIGKILL)
