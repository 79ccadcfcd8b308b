"""What the methods of a `Pool` return, and the tasks that these wait for."""

from __future__ import annotations

import collections
import logging
import multiprocessing
import multiprocessing.pool
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ndshare._pool import EachRun, EachTask, QuietTask
from ndshare._pool import Pool as Tasks
from ndshare.errors import WorkerError, set_cause

Callback = Callable[[Any], object]

_LOGGER = logging.getLogger("ndshare")


class Owner(Protocol):
    """What a job needs of the pool it belongs to."""

    _tasks: Tasks
    _cache: dict[int, Any]
    _state: str


class CallTask(QuietTask):
    """One call of `apply`."""

    def __init__(self, job: Job, function: Callable[..., Any], content: tuple[Any, ...]) -> None:
        self.job = job
        self.pool = job.tasks
        self.function = function
        self.content = content

    def _tell(self) -> None:
        self.job.note(0, self.value, self.error)

    def has_callbacks(self) -> bool:
        """See `Task.has_callbacks`."""
        return self.job.calls_back

    def seal(self) -> bool:
        """See `Task.seal`."""
        return not self.job.calls_back


class JobTask(EachTask):
    """Some items of a job."""

    def __init__(self, run: EachRun, job: Job, index: int, items: list[tuple[Any, ...]]) -> None:
        super().__init__(run, items)
        self.job = job
        self.index = index

    def _tell(self) -> None:
        values, error = self.outcome()
        values.reverse()
        self.job.note(self.index, values, error)

    def has_callbacks(self) -> bool:
        """See `Task.has_callbacks`."""
        return self.job.calls_back

    def seal(self) -> bool:
        """See `Task.seal`."""
        return not self.job.calls_back


class Job:
    """What is waited for as a whole.

    Parameters
    ----------
    owner : Pool
        Keeps it on its books until it has ended; kept until then.
    """

    calls_back = False  # whether code of the user's runs when it ends

    def __init__(self, owner: Owner) -> None:
        self.tasks = owner._tasks
        self._owner: Owner | None = owner
        self._condition = threading.Condition()
        self._ended = False
        owner._cache[id(self)] = self

    def note(self, index: int, value: Any, error: BaseException | None) -> None:
        """Take down what became of a task."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended

    def drop(self) -> None:
        """Take it off the books: it ends here, or nobody will hear of it."""
        if (owner := self._owner) is not None:
            owner._cache.pop(id(self), None)
            self._owner = None

    def _end(self) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify_all()
        self.drop()
        self.tasks.ring()


def as_theirs(error: BaseException) -> BaseException:
    """Give an exception of a worker the cause that `multiprocessing.Pool` gives it."""
    text = getattr(error.__cause__, "tb", None)
    if isinstance(text, str):
        cause = multiprocessing.pool.RemoteTraceback(text)  # type: ignore[attr-defined]  # not in typeshed
        set_cause(error, cause)
    return error


class AsyncResult(Job, multiprocessing.pool.AsyncResult):  # type: ignore[type-arg]  # generic for types only
    """What `Pool.apply_async` returns.

    Parameters
    ----------
    owner : Pool
        Whose job it is.
    callback, error_callback : callable or None
        Called with the result, or with what was raised, before it is ready.
    """

    def __init__(self, owner: Owner, callback: Callback | None, error_callback: Callback | None) -> None:
        Job.__init__(self, owner)
        self._callback = callback
        self._error_callback = error_callback
        self.calls_back = callback is not None or error_callback is not None
        self._success = True
        self._value: Any = None

    def note(self, _index: int, value: Any, error: BaseException | None) -> None:
        """See `Job.note`."""
        self._success = error is None
        self._value = value if error is None else as_theirs(error)
        self._conclude()

    def _conclude(self) -> None:
        callback = self._callback if self._success else self._error_callback
        self._callback = self._error_callback = None
        try:
            if callback is not None and self._owner is not None and self._owner._state != "TERMINATE":
                callback(self._value)
        except BaseException:
            _LOGGER.exception("exception calling callback %r", callback)
        finally:
            self._end()

    def ready(self) -> bool:
        """Whether it is done."""
        return self._ended

    def successful(self) -> bool:
        """Whether it is done and nothing was raised; `ValueError` if it is not done."""
        if not self._ended:
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is done, at most for `timeout` seconds."""
        if not self._ended:
            self.tasks.wait_for(self, self._condition, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Return the result, or raise what was raised; `multiprocessing.TimeoutError` if it is not done."""
        self.wait(timeout)
        if not self._ended:
            raise multiprocessing.TimeoutError
        if self._success:
            return self._value
        try:
            raise self._value
        finally:
            self = None  # type: ignore[assignment]  # else the traceback keeps what it belongs to


class MapResult(AsyncResult):
    """What `Pool.map_async` returns.

    Parameters
    ----------
    owner, callback, error_callback
        As for `AsyncResult`.
    length : int
        Number of items.
    chunksize : int
        Items in a task.
    """

    def __init__(
        self,
        owner: Owner,
        callback: Callback | None,
        error_callback: Callback | None,
        length: int,
        chunksize: int,
    ) -> None:
        super().__init__(owner, callback, error_callback)
        self._value = [None] * length
        self._chunksize = chunksize
        self._left = -(-length // chunksize)
        if not self._left:
            self._end()

    def note(self, index: int, value: Any, error: BaseException | None) -> None:
        """See `Job.note`; the first error counts, and it is ready when all tasks are done."""
        with self._condition:
            self._left -= 1
            if error is not None and self._success:
                self._success = False
                self._value = as_theirs(error)
            elif self._success:
                self._value[index * self._chunksize : index * self._chunksize + len(value)] = value
            is_last = not self._left
        if is_last:
            self._conclude()


class IMapIterator(Job):
    """What `Pool.imap` returns: results in their order.

    Parameters
    ----------
    owner : Pool
        Whose job it is.
    ordered : bool
        Whether results wait for those before them.
    single : bool
        Whether each task has one item: then results go on after an error, else it ends there.
    """

    def __init__(self, owner: Owner, *, ordered: bool, single: bool) -> None:
        super().__init__(owner)
        self._ordered = ordered
        self._single = single
        self._results: collections.deque[tuple[bool, Any]] = collections.deque()  # success, value
        self._early: dict[int, list[tuple[bool, Any]]] = {}  # of tasks that wait for those before them
        self._next = 0  # index of the task whose results come next
        self._unfinished = 0
        self._length: int | None = None  # number of tasks, once that is known
        self._closing: BaseException | None = None  # what the input raised
        self._over = False  # an error has ended it

    def wait_for_room(self, most: int, stopped: Callable[[], bool]) -> None:
        """Wait until fewer tasks are unfinished, or the pool was terminated."""
        with self._condition:
            self._condition.wait_for(lambda: self._unfinished < most or stopped())

    def wake(self) -> None:
        """Have whoever waits for room look whether the pool was terminated."""
        with self._condition:
            self._condition.notify_all()

    def expect(self, count: int) -> None:
        """Say that so many tasks more are on their way."""
        with self._condition:
            self._unfinished += count

    def close_input(self, length: int, error: BaseException | None) -> None:
        """Say how many tasks there are, and what the input raised after them."""
        with self._condition:
            self._length = length
            self._closing = error
            is_last = self._next == length
            if is_last:
                self._add_closing()
        if is_last:
            self._end()

    def _add_closing(self) -> None:
        if self._closing is not None:
            self._results.append((False, self._closing))
            self._closing = None

    def note(self, index: int, value: Any, error: BaseException | None) -> None:
        """See `Job.note`."""
        outcome = [(True, one) for one in value or ()]
        if error is not None:
            outcome.append((False, as_theirs(error)))
        with self._condition:
            self._unfinished -= 1
            if self._ordered:
                self._early[index] = outcome
                while self._next in self._early:
                    self._results.extend(self._early.pop(self._next))
                    self._next += 1
            else:
                self._results.extend(outcome)
                self._next += 1
            is_last = self._next == self._length
            if is_last:
                self._add_closing()
            self._condition.notify_all()
        if is_last:
            self._end()

    def __iter__(self) -> IMapIterator:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result; `multiprocessing.TimeoutError` if it is not there in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._over:
            try:
                success, value = self._results.popleft()
            except IndexError:
                if self._ended and not self._results:
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise multiprocessing.TimeoutError from None
                self.tasks.wait_for(_Moment(self), self._condition, left)
                continue
            if success:
                return value
            self._over = not self._single
            raise value
        raise StopIteration

    __next__ = next  # noqa: A003 - its name, as of the original


class _Moment:
    """The next result, or the end."""

    def __init__(self, job: IMapIterator) -> None:
        self._job = job

    def done(self) -> bool:
        """Whether it is there."""
        return bool(self._job._results) or self._job._ended


def terminated() -> WorkerError:
    """Return what the reader of an input gets that was not read to its end."""
    return WorkerError("the pool was terminated before its input was read to the end")
