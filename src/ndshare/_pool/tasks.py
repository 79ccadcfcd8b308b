"""Tasks: what a pool sends to its workers, and what becomes of it.

::

    Task ── TaskFuture   one call; also a `concurrent.futures.Future`
       └─── QuietTask    nobody but ndshare sees it, so it costs less
              └── ItemsTask   some items of an executor's `map`
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ndshare._processes import TaskOptions, Worker, frames
from ndshare._system import _wire, callable_name, within_partials
from ndshare._transport import Draft, Parcel, pack, unpack

_T = TypeVar("_T")

#: Instead of its number at a worker: the task is being sent, and may be cancelled still.
LEAVING = -1

_FINISHED = "FINISHED"
_DONE = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED", _FINISHED})
#: Where the standard library logs what callbacks raise.
_LOGGER = logging.getLogger("concurrent.futures")


class Awaited(Protocol):
    """Something to wait for."""

    def done(self) -> bool:
        """Whether that is over."""


class TaskPool(Protocol):
    """What a task needs of its pool."""

    @property
    def withheld(self) -> frozenset[str]:
        """Variables whose values its workers have already."""

    def withdraw(self, task: Any) -> bool:
        """Let go of a task that its user cancels; False if a worker has begun it."""

    def is_running(self, task: Any) -> bool:
        """Whether a worker has begun a task."""

    def heed(self, task: Any, asked: TaskOptions) -> None:
        """Have a task that is yet to be submitted run as its user wants."""

    def kill_task(self, task: Any) -> bool:
        """End a task that runs, and its worker; False if it does not."""

    def wait_for(self, task: Any, condition: threading.Condition, timeout: float | None) -> None:
        """Receive until a task is done, or wait while another thread receives."""

    def ring(self) -> None:
        """Make a thread that receives look whether what it waits for has happened."""


class Task:
    """What all tasks have in common: content, pool, history.

    A pool calls `succeed` or `fail`, once; unless the task was withdrawn before.
    """

    # What most tasks leave as it is lives in the class: a task is made in a microsecond or two.
    token = 0  # of a function that a worker is sent once; 0: the function travels with the arguments
    record = frames.CALL  # as what it is sent
    parcel: Parcel | None = None  # arguments that were read at submit
    worker: Worker | None = None  # that it was sent to last,
    seq = 0  # and its number there; `LEAVING` while it is being sent
    attempts = 0  # workers that died with it
    submitted = 0.0  # when, if that is recorded
    splits = False  # in the queue it is what is left of many items: a piece of it is sent at a time
    limit: float | None = None  # seconds that it may run
    retries: int | None = None  # how many deaths of workers it may survive; None: what its pool says
    priority = 0  # the higher, the sooner it is sent
    on_done: Callable[[], None] | None = None  # called before the callbacks
    brings: frozenset[str] = frozenset()  # names of `__main__` that its parcel defines itself
    modules_tried: frozenset[str] = frozenset()  # sent by value for it
    pool: TaskPool | None  # None: it is off the books
    function: Callable[..., Any] | None
    content: Any

    def succeed(self, value: Any) -> None:
        """Give the result to whoever waits."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """Give the error to whoever waits."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        raise NotImplementedError

    def cancel(self) -> bool:
        """Cancel it if no worker has begun it; its arguments are let go at once."""
        _wire.shield()  # Ctrl-C between taking the lock of a future and noting it would leave it taken
        try:
            pool = self.pool
            if pool is None or not pool.withdraw(self):
                return self.cancelled()
            try:
                self.call_off()
            finally:
                pool.ring()
            return True
        finally:
            _wire.unshield()

    def call_off(self) -> None:
        """Tell whoever waits that it was cancelled: it is off the books already."""
        raise NotImplementedError

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        raise NotImplementedError

    def draft(self) -> Draft:
        """What travels for this task."""
        withheld = self.pool.withheld if self.pool is not None else frozenset[str]()
        return pack(self.content, withheld=withheld)

    def read_now(self, *, private: bool) -> None:
        """Read the arguments at once; `private` if they may be needed again after a worker had them."""
        self.parcel = self.draft().settle()
        if private:
            self.read_again()

    def read_again(self) -> None:
        """Let it be pickled anew when it is sent, from the arguments that were read at once."""
        if self.parcel is not None:
            parcel, self.parcel = self.parcel, None
            try:
                self.content = unpack(parcel.data, parcel.descriptors())
            finally:
                parcel.release()

    def has_callbacks(self) -> bool:
        """Whether code of the user's runs when it is done."""
        return False

    def piece(self) -> Task:
        """Take off what is to be sent next, if it `splits` (under the lock); itself if that is all."""
        return self

    def seal(self) -> bool:
        """Take no callbacks until it is resolved, which is to come at once; False if there are some."""
        return True

    def let_go(self) -> None:
        """Drop the function, its arguments and the pool."""
        self.function = self.content = self.pool = self.worker = None
        if self.parcel is not None:
            self.parcel.release()
            self.parcel = None

    def describe(self) -> str:
        """Name it for a message."""
        return describe(self.function)

    def _await(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait until this task is done; at most for `timeout` seconds."""
        if (pool := self.pool) is not None:
            pool.wait_for(self, condition, timeout)
        else:  # another thread is just resolving it
            with condition:
                condition.wait_for(self.done, timeout)


class TaskFuture(Task, concurrent.futures.Future[Any]):
    """A `concurrent.futures.Future` whose `result` receives the result itself.

    Everything of the standard class holds: `as_completed`, `wait`, callbacks, `asyncio.wrap_future`.
    """

    _done_callbacks: list[Callable[[concurrent.futures.Future[Any]], object]]
    _sealed = False  # a thread that runs no callbacks is just resolving it

    def __init__(
        self, pool: TaskPool, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        concurrent.futures.Future.__init__(self)
        self.pool = pool
        self.function = function
        self.content = function, args, kwargs

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

    def call_off(self) -> None:
        """See `Task.call_off`."""
        try:
            concurrent.futures.Future.cancel(self)
        finally:
            self.set_running_or_notify_cancel()  # tells those that wait for many

    cancelled = concurrent.futures.Future.cancelled

    def running(self) -> bool:
        """Whether a worker has begun the task, as far as is known here."""
        pool = self.pool
        if pool is None:  # another thread is just resolving it
            return not self.done()
        return pool.is_running(self)

    def kill(self) -> bool:
        """End the task if it runs: its worker is killed, and the future fails with `TaskKilledError`.

        Returns
        -------
        bool
            Whether that was done. False if no worker has begun the task, for which there is `cancel`, or if
            it is done.

        Notes
        -----
        Other tasks do not notice: the worker is replaced, and what it had not begun runs elsewhere. A task
        that was killed so is not tried again.
        """
        _wire.shield()
        try:
            pool = self.pool
            return pool is not None and pool.kill_task(self)
        finally:
            _wire.unshield()

    def __repr__(self) -> str:
        text = concurrent.futures.Future.__repr__(self)
        return text.replace("state=pending", "state=running") if self.running() else text

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


class QuietTask(Task):
    """A task that nobody but ndshare sees; its outcome lies in plain attributes."""

    finished = False
    error: BaseException | None = None
    value: Any = None

    def succeed(self, value: Any) -> None:
        """See `Task.succeed`."""
        self.value = value
        self._finish()

    def fail(self, error: BaseException) -> None:
        """See `Task.fail`."""
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._tell()

    def _tell(self) -> None:
        """Wake whoever waits for it."""
        raise NotImplementedError

    def done(self) -> bool:
        """See `Task.done`."""
        return self.finished

    def call_off(self) -> None:
        """See `Task.call_off`."""
        self.fail(concurrent.futures.CancelledError())

    def cancelled(self) -> bool:
        """See `Task.cancelled`."""
        return isinstance(self.error, concurrent.futures.CancelledError)


class MapRun:
    """What the tasks of one call of `map` share: the function, which workers are sent once."""

    asked: TaskOptions | None = None  # how they are to be run

    def __init__(self, pool: TaskPool, function: Callable[..., Any], token: int) -> None:
        self.pool = pool
        self.function = function
        self.token = token
        self.condition = threading.Condition()
        self.waited_for = False


class ItemsTask(QuietTask):
    """A few items of a `map`, for the function that the map's workers have been sent.

    Parameters
    ----------
    run : MapRun
        What the items of one map share.
    items : sequence of tuple
        Arguments of the calls.
    """

    record = frames.ITEMS

    def __init__(self, run: MapRun, items: Sequence[tuple[Any, ...]]) -> None:
        self.run = run
        self.pool = run.pool
        self.function = run.function
        self.token = run.token
        self.content = items
        if run.asked is not None:
            run.pool.heed(self, run.asked)

    def _tell(self) -> None:
        if self.run.waited_for:
            with self.run.condition:
                self.run.condition.notify_all()

    def result(self, timeout: float | None) -> Any:
        """Return the results of the items, or raise what one of them raised.

        Raises
        ------
        TimeoutError
            If they are not there in time.
        """
        if not self.finished:
            self.run.waited_for = True
            self._await(self.run.condition, timeout)
            if not self.finished:
                raise TimeoutError(f"map: the next result was not there in time ({self.describe()})")
        if self.error is not None:
            raise self.error
        return self.value


def describe(function: Any) -> str:
    """Readable name of something callable, with that of its module."""
    function = within_partials(function)
    try:
        module = function.__module__
    except Exception:  # it may answer attributes as it likes
        module = type(function).__module__
    name = callable_name(function)
    return f"{module}.{name}()" if type(module) is str else f"{name}()"


def _shielded(function: Callable[..., _T], *args: Any) -> _T:
    """Call what takes the lock of a future: Ctrl-C between taking and noting that would leave it taken."""
    _wire.shield()
    try:
        return function(*args)
    finally:
        _wire.unshield()
