"""Calls of a workspace: what enqueues them, how one is followed, how all are waited for in their order."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ndshare._pool import Pool, TaskFuture, describe
from ndshare._processes import TaskOptions, invoke, options_of, with_options, without_options
from ndshare._system import Bar

Progress = bool | Callable[[int, int], object]

#: Between two looks at what is finished.
_PERIOD_S = 0.1

_Future = TypeVar("_Future", bound=concurrent.futures.Future[Any])


class Registered:
    """A function of a workspace: calling it has a worker call the function, and returns a `Handle`.

    Wherever it is sent it is the plain function, so a registered function may call itself.
    """

    def __init__(self, enqueue: Callable[..., Handle], function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._enqueue = enqueue

    def __call__(self, /, *args: Any, **kwargs: Any) -> Handle:
        """Enqueue a call; see `Workspace.register`."""
        return self._enqueue(self.function, args, kwargs)

    def __with_options__(self, asked: TaskOptions) -> Registered:
        """Return the same function, whose calls are to be run so."""
        return Registered(self._enqueue, with_options(self.function, asked))

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        return _itself, (self.function,)

    def __repr__(self) -> str:
        return f"<{describe(self.function)} registered with a Workspace>"


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class Handle(concurrent.futures.Future[Any]):
    """One call of a registered function.

    Attributes
    ----------
    index : int
        Its place in the list that `Workspace.evaluate` returns.
    name : str
        Of the function.
    """

    index = 0
    name: str

    def failure(self) -> BaseException | None:
        """Return what the call raised; a `CancelledError` if it was cancelled."""
        try:
            return self.exception()
        except concurrent.futures.CancelledError as error:
            return error

    def drop(self) -> None:
        """Cancel the call: nobody wants it any more."""
        raise NotImplementedError


class PoolHandle(TaskFuture, Handle):
    """One call that a worker of a pool does."""

    def __init__(
        self, pool: Pool, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        asked, function = options_of(function), without_options(function)
        super().__init__(pool, function, args, kwargs)
        pool.heed(self, asked)
        self.content = invoke, self.content, {}
        self.name = describe(function)

    def drop(self) -> None:
        """Cancel the call unless a worker has begun it."""
        self.cancel()


def check_progress(value: object) -> None:
    """Refuse what shows no progress."""
    if not isinstance(value, bool) and not callable(value):
        raise TypeError(f"progress must be True, False or a function of (done, total), got {value!r}")


def in_order(futures: Sequence[_Future], progress: Progress) -> Iterator[_Future]:
    """Yield futures in their order, each when it is done; show meanwhile how many of all are.

    Everything is shown by the thread that iterates, at most ten times a second and once at the end.
    """
    if not progress:
        for future in futures:
            wait_for(future, None)
            yield future
        return
    with _display(progress, len(futures)) as show:
        open_ones = list(futures)
        shown = 0
        looked = time.monotonic()
        for future in futures:
            done = False
            while not done:
                done = wait_for(future, _PERIOD_S)
                if (now := time.monotonic()) - looked >= _PERIOD_S or future is futures[-1]:
                    looked = now
                    open_ones = [one for one in open_ones if not one.done()]
                    if (count := len(futures) - len(open_ones)) > shown:
                        shown = count
                        show(count)
            yield future


def wait_for(future: concurrent.futures.Future[Any], timeout: float | None) -> bool:
    """Wait for a future; False if it is not done in time."""
    try:
        future.exception(timeout)
    except TimeoutError:
        return False
    except concurrent.futures.CancelledError:
        pass
    return True


@contextlib.contextmanager
def _display(progress: Progress, total: int) -> Iterator[Callable[[int], object]]:
    if callable(progress):
        yield lambda done: progress(done, total)
        return
    bar = Bar(unit="call")
    try:
        yield lambda done: bar(done, total)
    finally:
        bar.close()
