"""What a pool was asked to be: fixed when its executor is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ndshare._memory import idle_limit, parse_size
from ndshare._pool.tasks import describe
from ndshare._processes import Opening, check_timeout
from ndshare._system import (
    check_count,
    check_environment,
    check_runs,
    cpu_sets,
    default_workers,
    module_names,
    tuple_of,
    variables,
)

Environment = Mapping[str, str] | Sequence[Mapping[str, str]] | Callable[[int], Mapping[str, str]] | None

#: Idle memory that a worker may keep at least.
_IDLE_LEAST_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class PoolSettings:
    """Options of a pool, checked; `ndshare.ProcessPoolExecutor` says what they mean."""

    max_workers: int
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    limit: int | None = None  # tasks per worker
    env: Environment = None
    preload: tuple[str, ...] = ()
    threads: int | None = None
    retries: int = 0
    start: str = "auto"  # where its workers come from
    task_timeout: float | None = None  # seconds that a task may take
    finalizer: Callable[[], object] | None = None  # the initializer brings it to the workers
    memory_limit: int | None = None  # bytes that a worker may have of its own
    cpus: tuple[tuple[int, ...], ...] = ()  # which processors each worker may use
    withheld: frozenset[str] = frozenset()  # variables whose values the initializer brings
    record: bool = False  # whether what tasks take is noted

    @property
    def own(self) -> bool:
        """Whether the workers are of no use to other pools."""
        kind = self.initializer or self.limit or self.env or self.preload or self.memory_limit
        return bool(kind) or self.start == "fork"

    @property
    def threads_each(self) -> int:
        """BLAS and OpenMP threads of a worker."""
        if self.cpus:
            return self.threads or min(map(len, self.cpus))
        return self.threads or max(1, default_workers() // self.max_workers)

    @property
    def idle_limit(self) -> int:
        """Bytes of idle memory that a worker may keep."""
        return max(_IDLE_LEAST_BYTES, idle_limit() // max(2, self.max_workers))

    @property
    def setup(self) -> str:
        """Name of the initializer; empty if there is none."""
        return describe(self.initializer) if self.initializer is not None else ""

    def pinned(self, number: int) -> dict[str, set[int]]:
        """What the worker with this number is told of its processors, if they are not the caller's."""
        return {"processors": set(self.cpus[number % len(self.cpus)])} if self.cpus else {}

    def overlay(self, number: int) -> dict[str, str]:
        """Environment variables of the worker with this number, on top of the caller's."""
        env = self.env
        if env is None:
            return {}
        if callable(env):
            env = env(number)
        elif not isinstance(env, Mapping):
            env = env[number % len(env)]
        return variables(env)


def checked_settings(
    name: str,
    workers: int | None,
    *,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks_per_child: int | None,
    snapshot: str,
    threads_per_worker: int | None,
    env: Environment,
    preload: Iterable[str],
    retries: int,
    start: str = "auto",
    task_timeout: float | None = None,
    finalizer: Callable[[], object] | None = None,
    cpus: Any = None,
    memory_limit: int | str | None = None,
    record: bool = False,
) -> PoolSettings:
    """Check what a user asks for; `name` is what the number of workers is called there."""
    if workers is None:
        workers = default_workers()
    if name == "max_workers" and isinstance(workers, int) and workers < 1:
        raise ValueError(f"max_workers must be greater than 0, got {workers!r}")  # a text that programs know
    check_count(name, workers, 1)
    if max_tasks_per_child is not None:
        check_count("max_tasks_per_child", max_tasks_per_child, 1)
    if threads_per_worker is not None:
        check_count("threads_per_worker", threads_per_worker, 1)
    check_count("retries", retries, 0)
    if task_timeout is not None:
        check_timeout("task_timeout", task_timeout)
    if initializer is not None:
        check_runs("initializer", initializer)
    initargs = tuple_of("initargs", initargs)
    if finalizer is not None:
        check_runs("finalizer", finalizer)
        initializer, initargs = Opening(initializer, initargs, finalizer), ()
    if not (isinstance(snapshot, str) and snapshot in {"start", "submit"}):
        raise ValueError(f"snapshot must be 'start' or 'submit', got {snapshot!r}")
    if not (isinstance(start, str) and start in {"clean", "fork", "auto"}):
        raise ValueError(f"start must be 'clean', 'fork' or 'auto', got {start!r}")
    check_environment(env)
    if not isinstance(record, bool):
        raise TypeError(f"record must be True or False, got {record!r}")
    return PoolSettings(
        int(workers),
        initializer=initializer,
        initargs=initargs,
        limit=max_tasks_per_child,
        env=env,
        preload=module_names(preload),
        threads=threads_per_worker,
        retries=retries,
        start=start,
        task_timeout=task_timeout,
        finalizer=finalizer,
        cpus=cpu_sets(cpus) if cpus is not None else (),
        memory_limit=_size("memory_limit", memory_limit),
        record=record,
    )


def _size(name: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    nbytes = parse_size(value, name) if isinstance(value, str) else value
    check_count(name, nbytes, 1)
    return int(nbytes)
