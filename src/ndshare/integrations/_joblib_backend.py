"""The backend that joblib talks to: `ndshare.integrations.joblib` registers it.

joblib hands over batches of calls and wants a future for each; the futures are those of an
`ndshare.ProcessPoolExecutor`. Arrays that many batches have in common are copied once (
`ndshare._transport.inputs`).
"""

from __future__ import annotations

import copy
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import joblib
from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, SequentialBackend
from joblib.parallel import ParallelBackendBase

from ndshare._pool import ProcessPoolExecutor
from ndshare._transport import Inputs
from ndshare.errors import RemoteError

#: Options of `ProcessPoolExecutor` that are of use here.
_OPTIONS = frozenset({"initializer", "initargs", "max_tasks_per_child", "env", "preload", "retries"})
#: What joblib tells every backend for the sake of memory-mapped files, workers it keeps itself, and hints.
_MOOT = frozenset(
    {
        "temp_folder",
        "max_nbytes",
        "mmap_mode",
        "verbose",
        "prefer",
        "require",
        "context",
        "idle_worker_timeout",
    }
)


class NdshareBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc, unused-ignore]
    """joblib on the workers of ndshare.

    Parameters
    ----------
    nesting_level : int, optional
        How many parallel calls this one lies in; set by joblib.
    inner_max_num_threads : int, optional
        BLAS and OpenMP threads of each worker; by default usable CPUs divided by jobs.
    **options
        Those of `ndshare.ProcessPoolExecutor`: `initializer`, `initargs`, `max_tasks_per_child`, `env`,
        `preload`, `retries`.

    Raises
    ------
    TypeError
        On an unknown option.
    """

    supports_inner_max_num_threads = True
    supports_retrieve_callback = True
    default_n_jobs = 1

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        _checked(options)
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **options)
        self.parallel: Any = None  # whose backend this is
        self._lock = threading.Lock()  # batches are submitted by the caller and by the thread of callbacks
        self._executor: ProcessPoolExecutor | None = None
        self._called = False  # a call is under way that was not aborted
        self._options: dict[str, Any] = {}
        self._workers = 1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers ``n_jobs`` stands for; -1 is all processors."""
        if n_jobs == 0:
            raise ValueError(
                "n_jobs == 0 in Parallel has no meaning; use 1 for one job, -1 for all processors"
            )
        if n_jobs is None:
            return 1
        return max(joblib.cpu_count() + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **options: Any
    ) -> int:
        """Prepare for calls of one `joblib.Parallel`; return the number of workers.

        All that are made under one `joblib.parallel_config` are given the same backend. Each goes on with a
        copy, so that one which is aborted does not take the workers of another.
        """
        del prefer, require
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if self.parallel is not parallel:
            raise FallbackToBackend(self._copy_for(parallel))
        merged = {**self.backend_kwargs, **options}
        _checked(merged)
        self.terminate()
        self._workers = workers
        self._options = {name: value for name, value in merged.items() if name in _OPTIONS}
        self._options["threads_per_worker"] = self.inner_max_num_threads
        return workers

    def _copy_for(self, parallel: Any) -> NdshareBackend:
        made = copy.copy(self)
        made.parallel = parallel
        made._lock = threading.Lock()
        made._executor = None
        made._called = False
        made.reset_batch_stats()
        return made

    def start_call(self) -> None:
        """Begin a call: arrays may have changed since the last one.

        A `joblib.Parallel` that is used again after an error would run what it had read before the error, and
        return it with the results (joblib 1.6).
        """
        if not getattr(self.parallel, "_calling", False):
            self.parallel._ready_batches = queue.Queue()
        with self._lock:
            self._called = True
            if self._executor is not None:
                self._executor._pool.delivery.inputs = Inputs()

    def stop_call(self) -> None:
        """End a call: its inputs are not needed any more."""
        with self._lock:
            if self._executor is not None:
                self._executor._pool.delivery.inputs = None

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Have a worker run a batch; `callback` gets the future when it is done.

        The thread of callbacks may come with the next batch of a call that was just aborted: nobody would
        end the workers that were started for it.
        """
        with self._lock:
            if not self._called:
                return _dropped()
            if self._executor is None:
                self._executor = ProcessPoolExecutor(self._workers, **self._options)
            executor = self._executor
            if executor._pool.delivery.inputs is None:
                executor._pool.delivery.inputs = Inputs()
        try:
            future: Future[Any] = executor.submit(func)
        except RuntimeError:
            if getattr(threading, "_SHUTTING_DOWN", False) or sys.is_finalizing():  # nobody waits for it
                return _dropped()
            raise
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch, or raise what it raised."""
        try:
            return out.result()
        except BaseException as error:
            try:
                error.__traceback__ = None  # as joblib does next; where that fails, it waits without end
            except Exception as refusal:
                name = type(error).__qualname__
                raise RemoteError(name, str(error), f"joblib cannot keep it: {refusal}") from error
            raise

    def terminate(self) -> None:
        """End a `joblib.Parallel`: its workers go back to ndshare, warm, when they have finished."""
        executor = self._take_executor()
        if executor is not None:
            executor.shutdown(wait=False)
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Kill the workers of this call, and drop what waits; the next call gets new ones."""
        del ensure_ready  # new workers are started when something is submitted
        executor = self._take_executor()
        if executor is not None:
            executor.kill_workers()

    def _take_executor(self) -> ProcessPoolExecutor | None:
        with self._lock:
            executor, self._executor = self._executor, None
            self._called = False
            return executor


def _dropped() -> Future[Any]:
    """Return the future of a batch that does not run."""
    dropped: Future[Any] = Future()
    dropped.cancel()
    return dropped


def _checked(options: dict[str, Any]) -> None:
    unknown = sorted(options.keys() - _OPTIONS - _MOOT)
    if unknown:
        raise TypeError(
            f"the joblib backend of ndshare has no option {', '.join(map(repr, unknown))}; allowed are "
            f"{', '.join(sorted(_OPTIONS))}"
        )
