"""A task and its future, in one object: one allocation less per task."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ndshare import transport
from ndshare.errors import InheritedError

if TYPE_CHECKING:
    from ndshare.pool import Pool

_PENDING = "PENDING"
_FINISHED = "FINISHED"


class TaskFuture(concurrent.futures.Future[Any]):
    """A `concurrent.futures.Future` whose `result` receives the result itself.

    Everything of the standard class holds: `as_completed`, `wait`, callbacks, `asyncio.wrap_future`.
    """

    # What most tasks leave as it is lives in the class: a task is made in two microseconds.
    token = 0  # of the function, for records of kind ITEMS
    items: Sequence[tuple[Any, ...]] = ()  # their arguments
    parcel: transport.Parcel | None = None  # arguments that were read at submit
    dispatched = False  # at least once: the future is running
    attempts = 0  # workers that died with it
    modules_tried: frozenset[str] = frozenset()  # sent by value for it

    def __init__(
        self, pool: Pool, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self.pool: Pool | None = pool
        self.function: Callable[..., Any] | None = function
        self.args = args
        self.kwargs = kwargs

    # ------------------------------------------------------------------ the caller's side

    def result(self, timeout: float | None = None) -> Any:
        """Return what the task returned, or raise what it raised; see `concurrent.futures.Future.result`."""
        if self._state != _FINISHED:
            self._await(timeout)
        if self._exception is not None:  # super() overlooks exceptions that are false, before Python 3.13
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642 - no cycle through the traceback
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None; see `concurrent.futures.Future.exception`."""
        if self._state != _FINISHED:
            self._await(timeout)
        return super().exception(0)

    def _await(self, timeout: float | None) -> None:
        """Receive until this future is done, or wait while another thread receives."""
        pool = self.pool
        if pool is None:  # its outcome is about to be set
            with self._condition:
                self._condition.wait_for(self.done, timeout)
            return
        if pool.hub.pid != os.getpid():
            raise InheritedError("a future of an executor", pool.hub.pid, os.getpid())
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if pool.held:
                pool.pump()
            pool.hub.drive(self.done, deadline)
            if not self.done() and (deadline is None or time.monotonic() < deadline):
                pool.hub.wait(self._condition, self.done, deadline)
        except KeyboardInterrupt:
            pool.interrupt()
            raise

    def cancel(self) -> bool:
        """Cancel the task if it has not been sent to a worker; its arguments are let go at once."""
        if not super().cancel():
            return False
        pool = self.pool
        if pool is not None:
            pool.forget_cancelled(self)
        return True

    # ------------------------------------------------------------------ the pool's side

    def draft(self) -> transport.Draft:
        """What travels: the function with its arguments, or only the items."""
        if self.token:
            return transport.pack(self.items)
        return transport.pack((self.function, self.args, self.kwargs))

    def read_now(self, *, private: bool) -> None:
        """Read the arguments at once; `private` if they may be needed again after a worker had them."""
        parcel = self.draft().settle()
        if not private:
            self.parcel = parcel
            return
        content = transport.unpack(parcel.data, parcel.descriptors())
        parcel.release()
        if self.token:
            self.items = content
        else:
            self.function, self.args, self.kwargs = content

    def let_go(self) -> None:
        """Drop the function, its arguments and the pool."""
        self.function = self.pool = None
        self.args = ()
        self.kwargs = {}
        if self.token:
            self.items = ()
        if self.parcel is not None:
            self.parcel.release()
            self.parcel = None

    def describe(self) -> str:
        """Name it for a message."""
        return describe(self.function)


def describe(function: Any) -> str:
    """Readable name of something callable."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}()" if module else f"{name}()"


class RemoteTracebackError(Exception):
    """The worker's traceback, as the cause of the exception that a task raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
