"""A progress bar for what is counted by somebody else."""

from __future__ import annotations

from typing import Any


class Bar:
    """Draws (finished, all) with tqdm, in notebooks too. Closes itself when all is finished.

    Parameters
    ----------
    description : str, optional
        Shown in front.
    """

    def __init__(self, description: str | None = None) -> None:
        self._description = description
        self._bar: Any = None

    def __call__(self, finished: int, total: int) -> None:
        """Draw."""
        if self._bar is None:
            from tqdm import auto

            auto.tqdm.monitor_interval = 0  # no thread that stays and makes forks unsafe
            self._bar = auto.tqdm(total=total, desc=self._description)
        self._bar.update(finished - self._bar.n)
        if finished >= total:
            self.close()

    def close(self) -> None:
        """End the bar where it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
