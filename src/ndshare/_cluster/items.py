"""The items of a cluster executor's `map`: several in each task, so that short ones cost little.

::

    items ──► batches, sized by what items took so far ──► engine ──► results, in order
                 └── its worker has died: each item of it in a task of its own
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ndshare._cluster.calls import Calls, Packed, crates_of
from ndshare._cluster.flights import ShareSize
from ndshare._node import BatchTask
from ndshare._pool import describe
from ndshare._processes import without_options
from ndshare._transport import Manifest, by_value_modules, with_traceback
from ndshare.errors import WorkerDiedError

#: What makes every item fail, not one of them.
_OF_ALL = (concurrent.futures.CancelledError, concurrent.futures.BrokenExecutor)

_Args = tuple[Any, ...]
_Future = concurrent.futures.Future[Any]


class _Batch:
    """Some consecutive items; what became of them, up to the first error, is a list of value and error."""

    def __init__(self, items: list[_Args]) -> None:
        self.items = items
        self.answers: list[_Future] = []
        self.done: concurrent.futures.Future[list[tuple[Any, BaseException | None]]]
        self.done = concurrent.futures.Future()


class Items:
    """One `map`.

    Parameters
    ----------
    calls : Calls
        How tasks are sent.
    function : callable
        What is called.
    items : list of tuple
        Arguments of the calls.
    chunksize : int or None
        Items per task; None: found out.

    Raises
    ------
    Exception
        Whatever pickling the function raises.
    """

    def __init__(
        self, calls: Calls, function: Callable[..., Any], items: list[_Args], chunksize: int | None
    ) -> None:
        self._calls = calls
        self._asked = calls.options_of(function)
        self._function = without_options(function)
        if self._asked.timeout is not None:
            chunksize = 1
        self._left = collections.deque(items)
        self._chunksize = chunksize
        groups = calls.engine.processes() * calls.engine.threads() if chunksize is None and items else 1
        self._sizes = ShareSize(groups, 1)
        self._groups = groups
        self._under_way = 0
        self._filling = False
        self._changed = threading.Condition()
        self._batches: collections.deque[_Batch] = collections.deque()
        self._pack_function()

    def _pack_function(self) -> None:
        self._by_value = frozenset(by_value_modules)
        self._manifest = Manifest()
        self._crates = crates_of(self._function, self._manifest)
        self._manifest.keep_all()

    # ------------------------------------------------------------------ sending

    def fill(self) -> None:
        """Send tasks as long as there is room."""
        with self._changed:
            if self._filling:  # in another thread, or further up in this one
                return
            self._filling = True
        try:
            while (batch := self._take()) is not None:
                self._send(batch, batch.items, functools.partial(self._landed, batch))
        except BaseException:  # Ctrl-C
            self._filling = False
            raise

    def _take(self) -> _Batch | None:
        """Take the items of the next task."""
        with self._changed:
            most = None if self._chunksize else self._groups * self._sizes.depth
            if not self._left or (most is not None and self._under_way >= most):
                self._filling = False
                return None
            count = min(self._chunksize or self._sizes.next(len(self._left)), len(self._left))
            batch = _Batch([self._left.popleft() for _ in range(count)])
            self._under_way += 1
            self._batches.append(batch)
            self._changed.notify_all()
            return batch

    def _send(self, batch: _Batch, items: list[_Args], landed: Callable[[_Future], None]) -> None:
        answer: _Future = concurrent.futures.Future()
        answer.set_running_or_notify_cancel()
        batch.answers.append(answer)
        answer.add_done_callback(landed)
        try:
            self._calls.submit(answer, functools.partial(self._pack, items))
        except Exception as error:
            answer.set_exception(error)

    def _pack(self, items: list[_Args]) -> Packed:
        if self._by_value != by_value_modules:
            self._pack_function()
        manifest = self._manifest.extended()
        crates = [*self._crates, *crates_of(items, manifest)]
        manifest.keep_all()
        name, blocks = describe(self._function), manifest.blocks_of(crates)
        return BatchTask("", name, crates, blocks, {}, asked=self._asked), manifest

    # ------------------------------------------------------------------ what comes back

    def _landed(self, batch: _Batch, answer: _Future) -> None:
        error = answer.exception()
        if error is None:
            outcomes, seconds = answer.result()
            batch.done.set_result([_outcome(*outcome) for outcome in outcomes])
            with self._changed:
                self._sizes.took(len(outcomes), seconds)
        elif len(batch.items) > 1 and (isinstance(error, WorkerDiedError) or not isinstance(error, _OF_ALL)):
            self._split(batch)
        else:
            batch.done.set_result([(None, error)])
        with self._changed:
            self._under_way -= 1
        self.fill()

    def _split(self, batch: _Batch) -> None:
        """Send each item in a task of its own: one of them has made the task fail as a whole."""
        outcomes: list[Any] = [None] * len(batch.items)
        left = list(range(len(batch.items)))

        def landed(number: int, answer: _Future) -> None:
            error = answer.exception()
            outcomes[number] = (None, error) if error is not None else _outcome(*answer.result()[0][0])
            with self._changed:
                left.remove(number)
                done = not left
            if done:
                batch.done.set_result(outcomes)

        for number, item in enumerate(batch.items):
            self._send(batch, [item], functools.partial(landed, number))

    def results(self, deadline: float | None) -> Iterator[Any]:
        """Yield the results in order.

        Parameters
        ----------
        deadline : float or None
            On the monotonic clock: after that `TimeoutError` is raised.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._batches or not self._left, _left(deadline))
                    if not self._batches:
                        break
                    batch = self._batches[0]
                for value, error in batch.done.result(_left(deadline)):
                    if error is not None:
                        raise error
                    yield value
                self._batches.popleft()
        finally:
            self._stop()

    def _stop(self) -> None:
        """Give up what has not begun."""
        with self._changed:
            self._left.clear()
            answers = [answer for batch in self._batches for answer in batch.answers]
        for answer in answers:
            if not answer.done():
                self._calls.revoke(answer)


def _outcome(value: Any, failure: tuple[BaseException, str] | None) -> tuple[Any, BaseException | None]:
    return value, None if failure is None else with_traceback(*failure)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
