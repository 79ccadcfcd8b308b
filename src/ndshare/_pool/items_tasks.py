"""The tasks of an executor's `map`: a few items each, for one function that workers are sent once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ndshare._pool.tasks import QuietTask

if TYPE_CHECKING:
    from ndshare._pool.pool import Pool


class ItemsTask(QuietTask):
    """A few items of a `map`, for the function that the map's workers have been sent.

    Parameters
    ----------
    run : MapRun
        What the items of one map share.
    items : sequence of tuple
        Arguments of the calls.
    """

    def __init__(self, run: MapRun, items: Sequence[tuple[Any, ...]]) -> None:
        self.run = run
        self.pool = run.pool
        self.function = run.function
        self.token = run.token
        self.content = items

    def _tell(self) -> None:
        if self.run.waited_for:
            with self.run.condition:
                self.run.condition.notify_all()

    def result(self, timeout: float | None) -> Any:
        """Return the results of the items, or raise what one of them raised.

        Raises
        ------
        TimeoutError
            If they are not there in time.
        """
        if not self.finished:
            self.run.waited_for = True
            self._await(self.run.condition, timeout)
            if not self.finished:
                raise TimeoutError(f"map: the next result was not there in time ({self.describe()})")
        if self.error is not None:
            raise self.error
        return self.value


class MapRun:
    """What the tasks of one call of `map` share."""

    def __init__(self, pool: Pool, function: Callable[..., Any], token: int) -> None:
        self.pool = pool
        self.function = function
        self.token = token
        self.condition = threading.Condition()
        self.waited_for = False
