"""contextshare 0.1.0 on ndshare: named arrays in shared memory, registered functions that use the names.

::

    SharedMemory({"D": D}, nworkers)     ndshare.Workspace: shares the arrays, starts the workers
    f = sm.register(f);  f(x) -> None    notes the call
    sm.evaluate()                        sends the calls to the workers, returns results in order

A program says ``from ndshare.compat import contextshare as shared``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import ndshare

__all__ = ["SharedMemory"]


class SharedMemory:
    """Arrays that registered functions use by their names, in worker processes.

    Parameters
    ----------
    vars : mapping of str to numpy.ndarray
        Names and arrays. Each is copied to shared memory once, on entering, unless it is there already.
    nworkers : int
        Number of processes; they start on entering the ``with`` block and end on leaving it.

    Examples
    --------
    >>> import numpy as np
    >>> from ndshare.compat import contextshare as shared
    >>> with shared.SharedMemory({"D": np.eye(3), "b": np.arange(3.0)}, nworkers=2) as sm:
    ...     @sm.register
    ...     def scaled(factor):
    ...         return float(factor * (D @ b).sum())
    ...     for factor in (1, 2, 3):
    ...         scaled(factor)
    ...     sm.evaluate()
    [3.0, 6.0, 9.0]
    """

    def __init__(self, vars: Mapping[str, Any], nworkers: int) -> None:  # noqa: A002 - contextshare's word
        self._workspace = ndshare.Workspace(vars, nworkers, snapshot="start")
        self._calls: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        self._workspace.__enter__()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._calls = []
        self._workspace.__exit__(exc_type)

    def __call__(self, *_ignored: Any, **_options: Any) -> None:
        """Do nothing, as in contextshare."""

    def register(self, func: Callable[..., Any]) -> Callable[..., None]:
        """Return a function that notes calls of `func` and returns None; as a decorator or by a call.

        Parameters
        ----------
        func : callable
            Anything that can be pickled, and lambdas, closures, functions of a script or notebook.

        Returns
        -------
        callable
        """
        registered = self._workspace.register(func)

        def enqueue(*args: Any, **kwargs: Any) -> None:
            self._calls.append(functools.partial(registered, *args, **kwargs))

        return functools.update_wrapper(enqueue, func)

    def evaluate(self, progress: bool = False) -> list[Any]:
        """Run the calls that were noted since the last evaluation.

        Parameters
        ----------
        progress : bool, optional
            Show a bar.

        Returns
        -------
        list
            Of results, in the order of the calls; empty if there was none.

        Raises
        ------
        Exception
            What the first failing call raised. The queue is empty then, too.
        """
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        return self._workspace.evaluate(progress=progress)
