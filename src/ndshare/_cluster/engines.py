"""Engines: what runs tasks on other machines, seen through four verbs.

::

    Engine ── FuturesEngine    anything with `submit` and futures; those without callbacks are polled
           ├─ RayEngine        Ray, by its own tasks
           └─ DaskEngine       a `distributed.Client`: bulk data goes straight between client and workers
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import itertools
import math
import operator
import types
import uuid
from collections.abc import Callable
from typing import Any

from ndshare._cluster.polling import Poller
from ndshare._node import (
    CallTask,
    TaskResult,
    kept_memory,
    limit_memory,
    release_memory,
    relieve_memory,
    run_task,
    stop_map,
)

#: A Dask task with more bytes than this is sent past the scheduler.
_SCATTER_MIN = 256 * 1024
#: What a Dask worker tells the scheduler with each heartbeat is called so.
_METRIC = "ndshare"
#: Nodes let go of what they keep when a worker has reached this part of what Dask begins to spill at.
_RELIEVE_AT = 0.9


class Engine(abc.ABC):
    """Where shares run."""

    #: Whether tasks may have priorities.
    ranks = False

    @abc.abstractmethod
    def processes(self) -> int:
        """How many processes run shares, as far as that is known now; at least 1."""

    @abc.abstractmethod
    def threads(self) -> int:
        """How many workers each of them should have."""

    @abc.abstractmethod
    def submit(self, task: CallTask, tell: Callable[[Any], object], address: Any = None, /) -> Any:
        """Send a task, to where `address` says if the engine can.

        `tell` is called with the future when it is done, in any thread.
        """

    @abc.abstractmethod
    def result(self, future: Any) -> TaskResult:
        """Return what became of a share that is done, or raise what the engine says."""

    def submit_all(self, tasks: list[Any], tell: Callable[[Any], object]) -> list[Any]:
        """Send several tasks; returns their futures."""
        return [self.submit(task, tell) for task in tasks]

    def results(self, futures: list[Any]) -> list[TaskResult | BaseException]:
        """Return what became of several tasks that are done: results, or what the engine says."""
        found: list[TaskResult | BaseException] = []
        for future in futures:
            try:
                found.append(self.result(future))
            except (Exception, concurrent.futures.CancelledError) as error:
                found.append(error)
        return found

    def cancel(self, futures: list[Any]) -> None:
        """Give shares up: those that have not begun do not run."""
        for future in futures:
            future.cancel()

    def revoke(self, future: Any) -> bool:
        """Keep one task from running; False if it has begun, as far as that is known, or is done."""
        return bool(future.cancel())

    def stop(self, map_id: str) -> None:  # noqa: B027 - most engines have no way to reach all processes
        """End what still runs of a map, and let nodes drop its memory."""

    @abc.abstractmethod
    def release(self) -> None:
        """Have nodes let go of the contents that they keep, as far as the engine reaches them."""

    def close(self) -> None:  # noqa: B027 - what the user has made, the user closes
        """Close what was made for this engine."""


class FuturesEngine(Engine):
    """An executor with the interface of `concurrent.futures`.

    Parameters
    ----------
    executor : Executor
        Its workers must be able to import ndshare. Futures need `done` and `result`; if they have no
        `add_done_callback`, a thread asks for them.
    processes : int, optional
        How many it has, if it does not say.
    """

    def __init__(self, executor: Any, processes: int | None = None) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(
                f"ClusterContext: engine is {executor!r} ({type(executor).__name__}); give a Dask client, "
                "the address of a Dask scheduler, or an executor with the interface of concurrent.futures"
            )
        self._executor = executor
        self._processes = processes
        self._poller = Poller()

    def processes(self) -> int:
        """See `Engine`."""
        if self._processes is not None:
            return self._processes
        for name in ("num_workers", "_max_workers", "max_workers"):
            try:
                count = operator.index(getattr(self._executor, name))
            except (AttributeError, TypeError):
                continue
            if count > 0:
                return count
        raise ValueError(
            f"ClusterContext: {type(self._executor).__name__} does not say how many processes it has; pass "
            "processes=n"
        )

    def threads(self) -> int:
        """See `Engine`."""
        return 1

    def submit(self, task: CallTask, tell: Callable[[Any], object], _address: Any = None) -> Any:
        """See `Engine`."""
        future = self._executor.submit(run_task, task)
        if not hasattr(future, "add_done_callback"):
            future = self._poller.follow(future)
        future.add_done_callback(tell)
        return future

    def result(self, future: Any) -> TaskResult:
        """See `Engine`."""
        result: TaskResult = future.result()
        return result

    def release(self) -> None:
        """See `Engine`; one task for each process, which may go to another one."""
        with contextlib.suppress(Exception):  # it has been shut down: so have its processes
            for _ in range(self.processes()):
                self._executor.submit(release_memory)


class DaskEngine(Engine):
    """A client of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Connected, and not asynchronous.
    own : bool
        Whether it was made for this engine.
    """

    ranks = True

    def __init__(self, client: Any, *, own: bool = False) -> None:
        if client.asynchronous:
            raise ValueError(
                "ClusterContext: the Dask client is asynchronous; make one with asynchronous=False"
            )
        self._client = client
        self._own = own
        self._numbers = itertools.count()
        self._session = uuid.uuid4().hex[:12]

    def _workers(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return found

    def processes(self) -> int:
        """See `Engine`."""
        workers = self._workers()
        if not workers:
            self._client.wait_for_workers(1)
            workers = self._workers()
        return len(workers)

    def threads(self) -> int:
        """See `Engine`."""
        return max((worker["nthreads"] for worker in self._workers().values()), default=1)

    def _key(self) -> str:
        # Short: it is in every message about a task. What is before the number is its group on the dashboard.
        return f"ndshare-{self._session}-{next(self._numbers)}"

    def submit_all(self, tasks: list[Any], tell: Callable[[Any], object]) -> list[Any]:
        """See `Engine`; small ones in one message."""
        if len(tasks) < 2 or any(task.nbytes() > _SCATTER_MIN for task in tasks):
            return super().submit_all(tasks, tell)
        keys = [self._key() for _ in tasks]
        futures: list[Any] = self._client.map(_run_on_dask, tasks, key=keys, pure=False)
        for future in futures:
            future.add_done_callback(tell)
        return futures

    def submit(self, task: CallTask, tell: Callable[[Any], object], address: Any = None) -> Any:
        """See `Engine`."""
        key = self._key()
        content: Any = task
        if task.nbytes() > _SCATTER_MIN:
            content = self._client.scatter(task, workers=address, direct=True, hash=False)
        options = {} if address is None else {"workers": address, "allow_other_workers": True}
        if task.asked.priority:
            options["priority"] = int(task.asked.priority)
        future = self._client.submit(_run_on_dask, content, key=key, pure=False, **options)
        future.add_done_callback(tell)
        return future

    def result(self, future: Any) -> TaskResult:
        """See `Engine`."""
        error = future.exception() if future.status == "error" else None
        if error is not None:
            raise error
        result: TaskResult = self._client.gather(future, direct=True)
        return result

    def results(self, futures: list[Any]) -> list[TaskResult | BaseException]:
        """See `Engine`; one message to each worker for all of them."""
        if all(future.status == "finished" for future in futures):
            with contextlib.suppress(Exception):  # one by one, then: some of them are lost
                found: list[TaskResult | BaseException] = self._client.gather(futures, direct=True)
                return found
        return super().results(futures)

    def cancel(self, futures: list[Any]) -> None:
        """See `Engine`."""
        self._client.cancel(futures, force=True)

    def revoke(self, future: Any) -> bool:
        """See `Engine`; it may have begun."""
        if future.done():
            return False
        self.cancel([future])
        return True

    def stop(self, map_id: str) -> None:
        """See `Engine`."""
        with contextlib.suppress(Exception):  # workers that are gone just now have nothing to stop
            self._client.run(stop_map, map_id, on_error="ignore")

    def release(self) -> None:
        """See `Engine`; also of workers that are paused."""
        with contextlib.suppress(Exception):
            self._client.run(release_memory, on_error="ignore")

    def close(self) -> None:
        """See `Engine`."""
        if self._own:
            self._client.close()


def _run_on_dask(task: CallTask) -> TaskResult:
    """Run a task in a Dask worker."""
    import distributed

    worker: Any = distributed.get_worker()
    if _METRIC not in worker.metrics:
        if limit := worker.memory_manager.memory_limit:
            limit_memory(limit)
        worker.metrics[_METRIC] = _account
    result = run_task(task)
    result.address = worker.address
    return result


def _account(worker: Any) -> dict[str, int]:
    """Return what a worker keeps; asked for with each heartbeat, also by a worker that is paused."""
    manager = worker.memory_manager
    part = manager.memory_spill_fraction or manager.memory_pause_fraction
    most = _RELIEVE_AT * part * manager.memory_limit if part and manager.memory_limit else math.inf
    if worker.monitor.get_process_memory() > most:
        relieve_memory()
    return kept_memory()


class RayEngine(Engine):
    """Ray, which this program is connected to or starts on this machine.

    Each share is a task of Ray's, never tried again by Ray: ndshare does that, and knows what was merged.

    Parameters
    ----------
    address : str, optional
        That of a cluster (``ray://host:port``); by default the one that Ray finds, or a new one here.
    processes : int, optional
        How many tasks run at a time. By default as many as the cluster has processors.
    """

    def __init__(self, address: str | None = None, processes: int | None = None) -> None:
        import ray

        self._ray: Any = ray
        self._own = not ray.is_initialized()
        if self._own:
            options = {"include_dashboard": False} if address is None else {}
            ray.init(address, log_to_driver=False, **options)
        elif address is not None:
            raise ValueError(
                f"ClusterContext: engine is {address!r}, and Ray is connected already; give 'ray' for that"
            )
        self._processes = processes
        self._run = ray.remote(num_cpus=1, max_retries=0)(_run_on_ray)
        self._release = ray.remote(num_cpus=0, max_retries=0)(release_memory)

    def processes(self) -> int:
        """See `Engine`."""
        return self._processes or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def threads(self) -> int:
        """See `Engine`."""
        return 1

    def submit(self, task: CallTask, tell: Callable[[Any], object], address: Any = None) -> Any:
        """See `Engine`."""
        run = self._run
        if address is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            run = run.options(scheduling_strategy=NodeAffinitySchedulingStrategy(address, soft=True))
        reference = run.remote(task)
        future = reference.future()
        future.reference = reference
        future.add_done_callback(tell)
        return future

    def result(self, future: Any) -> TaskResult:
        """See `Engine`."""
        try:
            result: TaskResult = future.result()
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        return result

    def cancel(self, futures: list[Any]) -> None:
        """See `Engine`."""
        for future in futures:
            self.revoke(future)

    def revoke(self, future: Any) -> bool:
        """See `Engine`; it may have begun."""
        if future.done():
            return False
        self._ray.cancel(future.reference)
        return True

    def release(self) -> None:
        """See `Engine`; a task for each node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        with contextlib.suppress(Exception):  # nodes that are gone keep nothing
            for node in self._ray.nodes():
                if node["Alive"]:
                    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    self._release.options(scheduling_strategy=strategy).remote()

    def close(self) -> None:
        """See `Engine`."""
        if self._own:
            self._ray.shutdown()


def _run_on_ray(task: CallTask) -> TaskResult:
    """Run a task in a worker of Ray's."""
    import ray

    result = run_task(task)
    result.address = ray.get_runtime_context().get_node_id()
    return result


def find_engine(engine: Any, processes: int | None) -> Engine:
    """Return the engine of what a user has given."""
    if isinstance(engine, str) and (engine == "ray" or engine.startswith("ray://")):
        return RayEngine(None if engine == "ray" else engine, processes)
    if isinstance(engine, types.ModuleType) and engine.__name__ == "ray":
        return RayEngine(None, processes)
    if isinstance(engine, str):
        import distributed

        client: Any = distributed.Client
        return DaskEngine(client(engine), own=True)
    if type(engine).__module__.partition(".")[0] == "distributed" and hasattr(engine, "scheduler_info"):
        return DaskEngine(engine)
    return FuturesEngine(engine, processes)
