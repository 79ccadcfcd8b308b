"""The future of a task: its result is received by whoever asks for it."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ndshare._pool.tasks import Task
from ndshare._system import _wire

if TYPE_CHECKING:
    from ndshare._pool.pool import Pool

_T = TypeVar("_T")

_FINISHED = "FINISHED"
_DONE = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED", _FINISHED})
#: Where the standard library logs what callbacks raise.
_LOGGER = logging.getLogger("concurrent.futures")


class TaskFuture(Task, concurrent.futures.Future[Any]):
    """A `concurrent.futures.Future` whose `result` receives the result itself.

    Everything of the standard class holds: `as_completed`, `wait`, callbacks, `asyncio.wrap_future`.
    """

    _done_callbacks: list[Callable[[concurrent.futures.Future[Any]], object]]
    _sealed = False  # a thread that runs no callbacks is just resolving it

    def __init__(
        self, pool: Pool, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        concurrent.futures.Future.__init__(self)
        self.pool = pool
        self.function = function
        self.content = function, args, kwargs

    start = concurrent.futures.Future.set_running_or_notify_cancel
    succeed = concurrent.futures.Future.set_result  # type: ignore[assignment]  # names of parameters
    fail = concurrent.futures.Future.set_exception  # type: ignore[assignment]

    def done(self) -> bool:
        """Whether it has succeeded, failed or been cancelled; takes no lock."""
        return self._state in _DONE

    def has_callbacks(self) -> bool:
        """See `Task.has_callbacks`."""
        return bool(self._done_callbacks)

    def seal(self) -> bool:
        """See `Task.seal`."""
        condition = self._condition
        condition.acquire()  # with a `with` it takes three times as long
        self._sealed = sealed = not self._done_callbacks
        condition.release()
        return sealed

    def _invoke_callbacks(self) -> None:
        """Call the user's callbacks: all of them, whatever one does. Ctrl-C is let through."""
        interrupt = None
        if self.on_done is not None:  # the result is there for all that wait, before the callbacks have run
            self.on_done()
        # They often refer to the future, as joblib's: its result would stay until the garbage is collected.
        callbacks, self._done_callbacks = self._done_callbacks, []
        for callback in callbacks:
            opening = 0
            try:
                try:
                    opening = _wire.window()
                except KeyboardInterrupt as error:  # came before: this callback is called all the same
                    interrupt = error
                try:
                    callback(self)
                finally:
                    _wire.curtain(opening)
            except KeyboardInterrupt as error:
                interrupt = error
            except BaseException:
                _LOGGER.exception("exception calling callback for %r", self)
        if interrupt is not None:
            if threading.current_thread() is threading.main_thread():
                raise interrupt
            _LOGGER.error("exception calling callback for %r", self, exc_info=interrupt)  # somebody's own

    def result(self, timeout: float | None = None) -> Any:
        """Return what the task returned, or raise what it raised; see `concurrent.futures.Future.result`."""
        if self._state != _FINISHED:
            self._await(self._condition, timeout)
        if self._state != _FINISHED:  # cancelled, or out of time
            return _shielded(concurrent.futures.Future.result, self, 0)
        if self._exception is not None:  # the base class overlooks exceptions that are false, before 3.13
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]
        return self._result  # it changes no more: no lock

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None; see `concurrent.futures.Future.exception`."""
        if self._state != _FINISHED:
            self._await(self._condition, timeout)
        if self._state != _FINISHED:
            return _shielded(concurrent.futures.Future.exception, self, 0)
        return self._exception

    def cancel(self) -> bool:
        """Cancel the task if it has not been sent to a worker; its arguments are let go at once."""
        return _shielded(self._cancel)

    def _cancel(self) -> bool:
        pool = self.pool  # who finds it cancelled lets go of it
        if not concurrent.futures.Future.cancel(self):
            return False
        if pool is not None:
            pool.withdraw(self)
            pool.hub.ring()
        return True

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Call `fn` when the future is done; see `concurrent.futures.Future.add_done_callback`."""
        if self._state not in _DONE:
            _shielded(self._add_callback, fn)
        else:
            concurrent.futures.Future.add_done_callback(self, fn)

    def _add_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        with self._condition:
            if self._sealed:
                self._condition.wait_for(self.done)
            if self._state not in _DONE:
                self._done_callbacks.append(fn)
                return
        concurrent.futures.Future.add_done_callback(self, fn)


def _shielded(function: Callable[..., _T], *args: Any) -> _T:
    """Call what takes the lock of a future: Ctrl-C between taking and noting that would leave it taken."""
    _wire.shield()
    try:
        return function(*args)
    finally:
        _wire.unshield()
