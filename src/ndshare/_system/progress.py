"""Progress: a function of what is finished and of all there is; a bar of tqdm is one."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from ndshare._system.arguments import check_runs

Progress = Callable[[int, int], object]


def progress_of(progress: bool | Progress | None) -> Progress | None:
    """Return what is to be called with (finished, all): a new bar for True, None for what is false."""
    if progress is True:
        return Bar()
    if not progress:
        return None
    check_runs("progress", progress)
    return progress


class Bar:
    """Draws (finished, all) with tqdm, in notebooks too. Closes itself when all is finished.

    Parameters
    ----------
    unit : str, optional
        What is counted.

    Notes
    -----
    No thread and no process is started for it, and bars of the user's own are not changed. It is drawn by the
    thread that counts; between two calls nothing of it is locked.
    """

    def __init__(self, unit: str = "item") -> None:
        self._unit = unit
        self._bar: Any = None
        self._open_end = False

    def expect_any(self) -> None:
        """Show no total: nobody knows how many there will be, and `total` is only more than `finished`."""
        self._open_end = True

    def __call__(self, finished: int, total: int) -> None:
        """Draw."""
        if self._bar is None:
            self._bar = _bar_class()(total=None if self._open_end else total, unit=self._unit, miniters=1)
        if finished >= total:
            self._bar.n = finished  # drawn by close, once
            self.close()
        else:
            self._bar.update(finished - self._bar.n)

    def close(self) -> None:
        """End the bar where it is."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.close()


@functools.cache
def _bar_class() -> Any:
    """Return tqdm's class for where the program runs, made fit for programs that fork."""
    from tqdm import auto

    class Quiet(auto.tqdm):  # type: ignore[misc]  # of no known type
        """A bar without the thread that would stay and make forks unsafe."""

        monitor_interval = 0

    if not hasattr(Quiet, "_lock"):  # tqdm's own has a semaphore, for which a process may be started
        Quiet._lock = threading.RLock()
    return Quiet
