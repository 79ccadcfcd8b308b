"""How numbers and warnings are treated, taken along from the caller to where its work runs.

``np.seterr`` and ``np.errstate`` hold for one thread, and so does the context of `decimal`. With forked
workers, those of the standard library, a script that begins with ``np.seterr(all="raise")`` or
``decimal.getcontext().prec = 50`` has that in its workers, too; so it is here, in every context.

Filters of warnings hold for a process, and reach workers with all else that does. Where the interpreter has
them hold for a context (``-X context_aware_warnings``, the default without the GIL), those of the caller's
come with its work; in threads of its own process, what it records comes back, too.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# As NumPy has them, and each worker.
_USUAL = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
try:
    from numpy._core._ufunc_config import _get_extobj_dict as _settings  # type: ignore[attr-defined]
except ImportError:
    _settings = np.geterr
_ALL_USUAL: dict[str, Any] = _settings()
_ALL_USUAL.update(_USUAL)
_DIGITS, _ROUNDING = 28, "ROUND_HALF_EVEN"  # as `decimal` has them

_NOTHING_TO_DO = contextlib.nullcontext()

ErrorState = tuple[Any, Any, "Filters | None", Any] | None
"""Modes (`numpy.geterr`), what `numpy.geterrcall` returns, filters of warnings, context of `decimal`.

None for what is usual.
"""

#: Whether filters of warnings belong to a context.
_CONTEXT_AWARE = bool(getattr(sys.flags, "context_aware_warnings", False))


class Filters:
    """Filters of warnings of one context, and in its own process where that records them."""

    def __init__(self, filters: list[Any], log: list[Any] | None = None) -> None:
        self.filters = filters
        self.log = log

    def __reduce__(self) -> tuple[type[Filters], tuple[list[Any]]]:
        return Filters, (self.filters,)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have them hold inside."""
        with warnings.catch_warnings():
            context = warnings._get_context()  # type: ignore[attr-defined]
            context._filters[:] = self.filters
            if self.log is not None:
                context.log = self.log
            yield


def _filters() -> Filters | None:
    context = warnings._get_context()  # type: ignore[attr-defined]
    if context._filters is warnings.filters:  # the process's
        return None
    return Filters(list(context._filters), context.log)


def current() -> ErrorState:
    """Return what holds in this thread."""
    filters = _filters() if _CONTEXT_AWARE else None
    numbers = None
    if (decimal := sys.modules.get("decimal")) is not None:
        here = decimal.getcontext()
        if here.prec != _DIGITS or here.rounding != _ROUNDING or here.traps != decimal.DefaultContext.traps:
            numbers = here.copy()
    if numbers is None and filters is None and _settings() == _ALL_USUAL:  # half the time of the next
        return None
    modes = np.geterr()
    if numbers is None and filters is None and modes == _USUAL:
        return None
    uses_call = "call" in modes.values() or "log" in modes.values()
    return dict(modes), np.geterrcall() if uses_call else None, filters, numbers


def entered(state: ErrorState) -> contextlib.AbstractContextManager[object]:
    """Return a context manager inside of which it holds."""
    if state is None:
        return _NOTHING_TO_DO
    modes, call, filters, numbers = state
    errors = np.errstate(call=call, **modes)
    if filters is None and numbers is None:
        return errors
    return _all(errors, filters, numbers)


@contextlib.contextmanager
def _all(errors: np.errstate, filters: Filters | None, numbers: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if filters is not None:
            stack.enter_context(filters.entered())
        if numbers is not None:
            stack.enter_context(importlib.import_module("decimal").localcontext(numbers))
        with errors:
            yield


def call(state: ErrorState, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function in it."""
    with entered(state):
        return fn(*args, **kwargs)
