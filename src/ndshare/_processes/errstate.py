"""How NumPy treats floating-point errors, taken along from where work is handed out to where it runs.

``np.seterr`` and ``np.errstate`` hold for one thread. With forked workers, those of the standard library, a
script that begins with ``np.seterr(all="raise")`` has that in its workers, too; so it is here, in every
context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

# As NumPy has them, and each worker.
_USUAL = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}

_NOTHING_TO_DO = contextlib.nullcontext()

ErrorState = tuple[Any, Any] | None
"""Modes as of `numpy.geterr` and what `numpy.geterrcall` returns; None for what is usual."""


def current() -> ErrorState:
    """Return what holds in this thread."""
    modes = np.geterr()
    if modes == _USUAL:
        return None
    uses_call = "call" in modes.values() or "log" in modes.values()
    return dict(modes), np.geterrcall() if uses_call else None


def entered(state: ErrorState) -> contextlib.AbstractContextManager[object]:
    """Return a context manager inside of which it holds."""
    if state is None:
        return _NOTHING_TO_DO
    modes, call = state
    return np.errstate(call=call, **modes)


def call(state: ErrorState, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function in it."""
    with entered(state):
        return fn(*args, **kwargs)
