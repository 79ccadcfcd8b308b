"""Who does the calls of a workspace: workers of this machine.

::

    Workspace ──► Staff ── PoolStaff       workers of a pool, with the values by reference
                        └─ ClusterStaff    `ndshare._workspace.on_cluster`
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from ndshare._pool import PoolSettings, Repeats, new_pool
from ndshare._processes import SetUp
from ndshare._workspace.calls import Handle, PoolHandle, wait_for
from ndshare.errors import InheritedError

#: A worker that does not react to Ctrl-C is killed after 0.6 s; it may have begun another call by then.
_GIVE_UP_S = 3.0
_INTERRUPT_AGAIN_S = 0.1


class Staff(Protocol):
    """Workers that know the names of one workspace."""

    @property
    def num_workers(self) -> int:
        """How many there are."""

    def check(self, what: str) -> None:
        """Refuse what they cannot do (any more)."""

    def handle(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
        """Return the handle of a call that is yet to be submitted."""

    def submit(self, handle: Any) -> None:
        """Have a call done."""

    def begin_round(self) -> None:
        """Note that what is called from now on is evaluated together."""

    def give_up(self, handles: list[Any]) -> None:
        """After Ctrl-C, cancel calls, and wait until none of them runs any more as far as possible."""

    def abandon(self) -> None:
        """End without waiting: nobody refers to the workspace."""

    def close(self, exc_type: type[BaseException] | None) -> None:
        """End: finish what was called; after an exception only what has begun."""


class PoolStaff:
    """Workers of this machine.

    Parameters
    ----------
    settings : PoolSettings
        How many, and what they are like.
    values : dict
        Names and what they stand for, shared.
    snapshot : {"submit", "start"}
        When arguments are read.
    """

    def __init__(self, settings: PoolSettings, values: dict[str, Any], snapshot: str) -> None:
        self._snapshot = snapshot
        self._repeats = Repeats()
        self.pool = new_pool(
            replace(
                settings,
                initializer=SetUp(values, settings.initializer, settings.initargs),
                initargs=(),
                withheld=frozenset(values),
            )
        )
        try:
            self.pool.start_workers()
        except BaseException as error:
            self.close(type(error))
            raise

    @property
    def num_workers(self) -> int:
        """See `Staff`."""
        return self.pool.settings.max_workers

    def check(self, what: str) -> None:
        """See `Staff`."""
        if self.pool.hub.pid != os.getpid():
            raise InheritedError("this Workspace", self.pool.hub.pid, os.getpid())
        if self.pool.closed:
            raise RuntimeError(
                f"{what} was refused: ndshare.shutdown() has ended the workers of this Workspace; "
                "enter a new one"
            )

    def handle(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> PoolHandle:
        """See `Staff`."""
        if not self._repeats.told:
            self._repeats.warn(function, args, kwargs)
        handle = PoolHandle(self.pool, function, args, kwargs)
        if self._snapshot == "submit":
            handle.read_now(private=self.pool.may_retry(handle))
        return handle

    def submit(self, handle: PoolHandle) -> None:
        """See `Staff`."""
        self.pool.submit(handle)

    def begin_round(self) -> None:
        """See `Staff`; memory is the same for all."""

    def give_up(self, handles: list[PoolHandle]) -> None:
        """See `Staff`.

        What was running has been interrupted already. A worker may have begun the next call since.
        """
        for handle in handles:
            handle.drop()
        deadline = time.monotonic() + _GIVE_UP_S
        for handle in handles:
            while not wait_for(handle, _INTERRUPT_AGAIN_S) and time.monotonic() < deadline:
                self.pool.interrupt()

    def abandon(self) -> None:
        """See `Staff`."""
        self.pool.abandon()

    def close(self, exc_type: type[BaseException] | None) -> None:
        """See `Staff`."""
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self.pool.interrupt()
        self.pool.shutdown(wait=True, cancel=exc_type is not None)
