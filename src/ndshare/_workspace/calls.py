"""Calls of a workspace: what enqueues them, and how one of them is followed."""

from __future__ import annotations

import concurrent.futures
import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ndshare._pool import TaskFuture, describe
from ndshare._processes import invoke

if TYPE_CHECKING:
    from ndshare._pool import Pool


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
        super().__init__(pool, function, args, kwargs)
        self.content = invoke, self.content, {}
        self.name = describe(function)

    def drop(self) -> None:
        """Cancel the call unless a worker has begun it."""
        pool = self.pool
        if not self.done() and not self.cancel() and pool is not None and pool.withdraw(self):
            self.fail(concurrent.futures.CancelledError())
