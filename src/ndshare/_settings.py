"""What a pool was asked to be: fixed when its executor is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ndshare import cpus, segments
from ndshare._arguments import variables
from ndshare.tasks import describe

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

    @property
    def own(self) -> bool:
        """Whether the workers are of no use to other pools."""
        return bool(self.initializer or self.limit or self.env or self.preload)

    @property
    def threads_each(self) -> int:
        """BLAS and OpenMP threads of a worker."""
        return self.threads or max(1, cpus.default_workers() // self.max_workers)

    @property
    def idle_limit(self) -> int:
        """Bytes of idle memory that a worker may keep."""
        return max(_IDLE_LEAST_BYTES, segments.stats().idle_limit // max(2, self.max_workers))

    @property
    def setup(self) -> str:
        """Name of the initializer; empty if there is none."""
        return describe(self.initializer) if self.initializer is not None else ""

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
