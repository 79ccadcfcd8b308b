"""Waits for calls in their order and tells how many of them all are finished."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ndshare._map import Bar

Progress = bool | Callable[[int, int], object]

#: Between two looks at what is finished.
_PERIOD_S = 0.1

_Future = TypeVar("_Future", bound=concurrent.futures.Future[Any])


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
