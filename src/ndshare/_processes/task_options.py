"""What a function's tasks may ask of whoever runs them: a time limit, tries, a place in the queue.

::

    options(fn, timeout=3) ── WithOptions ──► submit, map, Workspace.register ──► read off, by `options_of`
                                   │
                                   └── called: fn

It lies here, where workers find it too, because a module that decorates its functions is imported by them.
"""

from __future__ import annotations

import functools
import numbers
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, overload

from ndshare._system import check_callable, check_count, check_seconds

_T = TypeVar("_T")


class TaskOptions(NamedTuple):
    """Options of the tasks of a function; None leaves it to who runs them."""

    timeout: float | None = None
    retries: int | None = None
    priority: int | None = None


class WithOptions:
    """A function that says how its tasks are to be run; called, it is that function.

    Parameters
    ----------
    function : callable
        What it calls.
    options : TaskOptions
        How its tasks are to be run.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        functools.update_wrapper(self, function, updated=() if isinstance(function, type) else ("__dict__",))
        self.options = options

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function, here and now."""
        return self.__wrapped__(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        bound = getattr(self.__wrapped__, "__get__", None)
        if bound is None or (instance is None and isinstance(self.__wrapped__, types.FunctionType)):
            return self
        return WithOptions(bound(instance, owner), self.options)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By name if it stands under it in its module, as functions do."""
        if self.is_named():
            return str(vars(self)["__qualname__"])
        return WithOptions, (self.__wrapped__, self.options)

    def is_named(self) -> bool:
        """Whether it is what other processes find in its module under its name."""
        module = getattr(self, "__module__", None)
        if not isinstance(module, str) or module in {"__main__", "__mp_main__"}:
            return False
        found: Any = sys.modules.get(module)
        for name in getattr(self, "__qualname__", "<none>").split("."):
            found = vars(found).get(name) if hasattr(found, "__dict__") else None
        return found is self

    def __repr__(self) -> str:
        said = ", ".join(
            f"{name}={value!r}" for name, value in self.options._asdict().items() if value is not None
        )
        return f"<{self.__wrapped__!r} with {said or 'no options'}>"


@overload
def options(
    fn: Callable[..., _T],
    /,
    *,
    timeout: float | None = None,
    retries: int | None = None,
    priority: int | None = None,
) -> Callable[..., _T]: ...
@overload
def options(
    fn: None = None,
    /,
    *,
    timeout: float | None = None,
    retries: int | None = None,
    priority: int | None = None,
) -> Callable[[Callable[..., _T]], Callable[..., _T]]: ...
def options(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    timeout: float | None = None,
    retries: int | None = None,
    priority: int | None = None,
) -> Callable[..., Any]:
    """Return a function whose tasks have a time limit, are tried again, or come first.

    Page: docs/executor.md.

    Parameters
    ----------
    fn : callable, optional
        The function. Without it, a decorator is returned.
    timeout : float, optional
        Seconds that a task of it may take. The worker that runs it for longer is killed, and its future
        fails with `TaskTimeoutError`; no other task notices. By default the `task_timeout` of the executor.
    retries : int, optional
        How often a task of it is tried again whose *worker died*, or was killed because the task took too
        long. One that raises is never tried again. By default the `retries` of the executor.
    priority : int, optional
        Of the tasks that wait, those with the higher one are sent to workers first; 0 by default, and it
        may be negative. What a worker was sent already is not called back for it.

    Returns
    -------
    callable
        For ``submit`` and ``map`` of a `ProcessPoolExecutor` or `ClusterExecutor` and for
        `Workspace.register`. Called plainly, it calls `fn`. It has the name and the docstring of `fn`, which
        is its ``__wrapped__``, and can be pickled if `fn` can. Options of options add up.

    Raises
    ------
    TypeError, ValueError
        For options of the wrong kind.

    Notes
    -----
    A task's time begins when a worker takes it: neither waiting nor the initializer counts. The tasks of a
    ``map`` with a limit are single items, whatever its `chunksize`.

    Examples
    --------
    >>> import time
    >>> import ndshare
    >>> with ndshare.ProcessPoolExecutor(1) as executor:
    ...     future = executor.submit(ndshare.options(time.sleep, timeout=0.1), 60)
    ...     type(future.exception()).__name__
    'TaskTimeoutError'
    """
    asked = TaskOptions(timeout, retries, priority)
    _check(asked)
    if fn is None:
        return functools.partial(with_options, asked=asked)
    return with_options(fn, asked)


def with_options(fn: Callable[..., Any], asked: TaskOptions) -> Callable[..., Any]:
    """Return a function whose tasks are to be run so."""
    check_callable("fn", fn)
    if isinstance(fn, WithOptions):
        said = {name: value for name, value in asked._asdict().items() if value is not None}
        return WithOptions(fn.__wrapped__, fn.options._replace(**said))
    if (carry := getattr(type(fn), "__with_options__", None)) is not None:  # it enqueues its calls itself
        carried: Callable[..., Any] = carry(fn, asked)
        return carried
    return WithOptions(fn, asked)


def _check(asked: TaskOptions) -> None:
    if asked.timeout is not None:
        check_timeout("timeout", asked.timeout)
    if asked.retries is not None:
        check_count("retries", asked.retries, 0)
    priority: Any = asked.priority
    if priority is not None and (isinstance(priority, bool) or not isinstance(priority, numbers.Integral)):
        raise TypeError(f"priority must be an integer, the higher the sooner, got {priority!r}")


def check_timeout(name: str, value: Any) -> None:
    """Refuse what no task can be done in."""
    check_seconds(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be more than 0 seconds, got {value!r}; None sets no limit")


_NONE = TaskOptions()


def options_of(fn: Any) -> TaskOptions:
    """Return how the tasks of a function are to be run."""
    return fn.options if type(fn) is WithOptions else _NONE


def without_options(fn: Any) -> Any:
    """Return what is sent for a function whose options were read: itself if others find it by its name."""
    return fn.__wrapped__ if type(fn) is WithOptions and not fn.is_named() else fn
