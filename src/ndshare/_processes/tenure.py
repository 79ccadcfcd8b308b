"""A worker's time with one executor: what it keeps for it, and what it does when it leaves.

::

    Opening(initializer, finalizer)   once per worker, as the initializer ─► the finalizer is kept
    worker_state()                    a dict that lasts as long
    end()                             the worker leaves: the finalizer runs, and is forgotten
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

_state: dict[Any, Any] = {}
_finalizers: list[Callable[[], object]] = []
_LOGGER = logging.getLogger("ndshare")


def worker_state() -> dict[Any, Any]:
    """Return a dict that belongs to the worker in which this is called, and to the executor it works for.

    Page: docs/executor.md.

    Returns
    -------
    dict
        Empty at first. What the initializer puts there, tasks and the finalizer find. It is never shared
        with other workers, and a worker that goes to another executor has a new one. Outside of workers it
        is a dict of this process.

    Examples
    --------
    >>> import ndshare
    >>> def open_model(name):
    ...     ndshare.worker_state()["model"] = name.upper()
    >>> def predict(x):
    ...     return ndshare.worker_state()["model"], x
    >>> with ndshare.ProcessPoolExecutor(1, initializer=open_model, initargs=("net",)) as executor:
    ...     executor.submit(predict, 1).result()
    ('NET', 1)
    """
    return _state


class Opening:
    """The initializer of workers that have a finalizer, too: runs the one, and keeps the other.

    Parameters
    ----------
    initializer : callable or None
        Messages about a failure name it.
    initargs : tuple
        Its arguments.
    finalizer : callable
        Takes none.
    """

    def __init__(
        self,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        finalizer: Callable[[], object],
    ) -> None:
        self._initializer = initializer
        self._initargs = initargs
        self._finalizer = finalizer
        named = finalizer if initializer is None else initializer
        for name in ("__module__", "__qualname__"):
            if hasattr(named, name):
                setattr(self, name, getattr(named, name))

    def __call__(self) -> None:
        """Do it, in a worker."""
        if self._initializer is not None:
            self._initializer(*self._initargs)
        _finalizers[:] = [self._finalizer]


def begin() -> None:
    """Begin to work for another executor: nothing is left of the one before."""
    global _state
    _state = {}
    _finalizers.clear()


def end() -> None:
    """Run the finalizer, if there is one; what it raises is logged.

    Then what the worker has kept is let go, so that files are written and closed.
    """
    while _finalizers:
        finalizer = _finalizers.pop()
        try:
            finalizer()
        except BaseException:
            _LOGGER.exception("exception in the finalizer %r of a worker", finalizer)
        _state.clear()
        gc.collect()
