"""Many items of one function: how they become tasks, and how their results come back.

::

    map(chunksize="auto")   RestTask, in the pool's queue ── piece by piece ──► EachTask ──► InOrder
    map(progress=)          as many tasks as there are chunks ────────────────► EachTask ──► InOrder
    imap_unordered          read no further than the buffer goes ─────────────► EachTask ──► Unordered

Guarantees
----------
- What an item raises comes in its place; results of items before it in the same chunk are not lost.
- After an error, and when the iterator is closed or dropped, nothing more begins.
- Chunks of `RestTask` are cut when they are sent, by what items have taken until then.

Not guaranteed: if the worker of a chunk dies, or one item of it cannot be sent, the chunk fails as a whole.
"""

from __future__ import annotations

import collections
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ndshare._pool.pool import Pool
from ndshare._pool.tasks import ItemsTask, MapRun
from ndshare._processes import frames
from ndshare._system import Bar, Progress
from ndshare._transport import with_traceback

_T = TypeVar("_T")
Item = tuple[Any, ...]

#: A chunk of measured size takes about so long: a hundred times what it costs to send it, and short enough
#: that the next one waits at the worker (`ndshare._pool.roster`).
_CHUNK_S = 15e-3
#: Nor does it have more than so many bytes of arrays that are copied for it.
_CHUNK_BYTES = 4 << 20
#: How often progress is drawn while nothing comes.
_TICK_S = 0.1
#: So many chunks are read ahead for each worker, if nothing else is said.
_AHEAD = 4


class ChunkSize:
    """How many items go into a task: from one on, twice as many each time until that takes `_CHUNK_S`.

    Parameters
    ----------
    pool : Pool
        Which counts the bytes that are copied.
    most : int, optional
        Items at most.
    """

    def __init__(self, pool: Pool, most: int | None = None) -> None:
        self._pool = pool
        self._most = most
        self._copied = pool.delivery.bytes_copied
        self._given = 0
        self._finished = 0
        self._size = 1
        self._each_s = 0.0

    def note(self, count: int, seconds: float) -> None:
        """Learn from a task that has run so many items."""
        each_s = max(seconds / max(1, count), 1e-9)
        self._each_s = each_s if not self._finished else (self._each_s + each_s) / 2
        self._finished += count
        ideal = max(1, int(_CHUNK_S / self._each_s))
        if ideal < self._size:
            self._size = ideal
        elif 2 * count >= self._size:  # one that was sent at this size, not one of before
            self._size = min(ideal, 2 * self._size)

    def now(self) -> int:
        """Return how many items the next task is to have."""
        size = self._size if self._most is None else min(self._size, self._most)
        copied = self._pool.delivery.bytes_copied - self._copied
        if copied > _CHUNK_BYTES and self._given:
            size = min(size, max(1, _CHUNK_BYTES * self._given // copied))
        return size

    def give(self, count: int) -> None:
        """Note that a task was made of so many items."""
        self._given += count


class EachRun(MapRun):
    """What the tasks of one call have in common, and what of them is finished.

    Parameters
    ----------
    pool : Pool
        Who runs them.
    function : callable
        What is called with each item.
    sized : ChunkSize, optional
        What measures how long the items take.
    """

    pool: Pool

    def __init__(self, pool: Pool, function: Callable[..., Any], sized: ChunkSize | None = None) -> None:
        super().__init__(pool, function, next(pool.crew.tokens))
        pool.delivery.follow(self)
        self.sized = sized
        self.begun: collections.deque[EachTask] = collections.deque()  # in the order of their items
        self.arrived: collections.deque[EachTask] = collections.deque()  # in the order in which they finish
        self.finished = 0  # items

    def note(self, task: EachTask) -> None:
        """Take down that a task is finished, and wake whoever waits."""
        with self.condition:
            self.finished += task.count
            self.arrived.append(task)
            self.condition.notify_all()

    def wait(self, moment: Callable[[], bool], deadline: float | None, drawing: Drawing | None) -> None:
        """Wait until something is so, and draw meanwhile.

        Raises
        ------
        TimeoutError
            After the deadline.
        """
        while not moment():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            most = left if drawing is None else _TICK_S if left is None else min(left, _TICK_S)
            self.pool.wait_for(_Moment(moment), self.condition, most)
            if drawing is not None:
                drawing.show(self.finished)
            if left is not None and time.monotonic() >= deadline and not moment():  # type: ignore[operator]
                raise TimeoutError(f"the next result was not there in time ({self.describe()})")

    def describe(self) -> str:
        """Name what is called, for a message."""
        return ItemsTask(self, ()).describe()


class _Moment:
    """Something to wait for."""

    def __init__(self, done: Callable[[], bool]) -> None:
        self.done = done


class EachTask(ItemsTask):
    """Some items; what they returned is there even if one has raised.

    Attributes
    ----------
    count : int
        How many items.
    """

    record = frames.EACH
    failure: BaseException | None = None  # what an item raised, after those whose results are there

    def __init__(self, run: EachRun, items: list[Item]) -> None:
        super().__init__(run, items)
        self.each = run
        self.count = len(items)
        if run.sized is not None and not self.splits:
            run.sized.give(self.count)

    def succeed(self, value: Any) -> None:
        """See `Task.succeed`."""
        seconds, failure = value.pop(), value.pop()
        if failure is not None:
            self.failure = with_traceback(*failure)
        if (sized := self.each.sized) is not None:
            sized.note(len(value) + (failure is not None), seconds)
        super().succeed(value)

    def _tell(self) -> None:
        self.each.note(self)

    def outcome(self) -> tuple[list[Any], BaseException | None]:
        """Return the results, the last of them first, and what was raised after them; and let go of them."""
        values, error = self.value or [], self.failure or self.error
        self.value = self.failure = self.error = None
        values.reverse()
        return values, error


class RestTask(EachTask):
    """What is left of many items, at the end of a pool's queue: it counts as one task of it.

    Being cancelled, failed or shut out it takes what is left with it. The last piece is the task itself.
    """

    splits = True

    def __init__(self, run: EachRun, items: list[Item]) -> None:
        items.reverse()
        super().__init__(run, items)

    def piece(self) -> EachTask:
        """Take the next items off (under the hub's lock)."""
        size = self.each.sized.now() if self.each.sized is not None else 1
        if size >= len(self.content):
            self.content.reverse()
            self._end_here()
            return self
        items = self.content[-size:]
        items.reverse()
        del self.content[-size:]
        self.count -= size
        piece = EachTask(self.each, items)
        self.each.begun.append(piece)
        return piece

    def _end_here(self) -> None:
        self.each.begun.append(self)
        self.splits = False  # after that: who sees it finds the task there

    def _tell(self) -> None:
        if self.splits:  # it was cancelled, or failed
            self._end_here()
        super()._tell()


class Drawing:
    """Progress of one call.

    Parameters
    ----------
    draw : callable
        Is told (finished, all).
    total : int or None
        None if nobody knows it beforehand: then a bar shows no end, and all are one more than finished.
    """

    def __init__(self, draw: Progress, total: int | None) -> None:
        self._draw = draw
        self._total = total
        self._shown = -1
        if total is None and isinstance(draw, Bar):
            draw.expect_any()
        self.show(0)

    def show(self, finished: int) -> None:
        """Draw, if there is something new."""
        if finished != self._shown:
            self._shown = finished
            self._draw(finished, finished + 1 if self._total is None else self._total)

    def end(self, finished: int | None = None) -> None:
        """Draw the last state, if it came so far; a bar ends here."""
        if finished is not None and self._total is None:
            self._total = finished
            self._shown = -1
        if finished is not None:
            self.show(finished)
        if isinstance(self._draw, Bar):
            self._draw.close()


def length_of(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return how many items there are, if all iterables know how many they have."""
    try:
        return min([len(one) for one in iterables], default=0)  # type: ignore[arg-type]  # it raises TypeError
    except TypeError:
        return None


def chunks(items: Iterator[Item], size: int | ChunkSize) -> Iterator[list[Item]]:
    """Yield lists of so many items."""
    while chunk := list(itertools.islice(items, size if isinstance(size, int) else size.now())):
        yield chunk


def in_order(
    run: EachRun,
    rest: RestTask | None,
    more: Iterator[EachTask],
    deadline: float | None,
    drawing: Drawing | None,
    is_finalizing: Callable[[], bool] = sys.is_finalizing,
) -> Iterator[Any]:
    """Yield the results of a run's tasks in the order of their items."""
    begun = run.begun
    everything = False
    try:
        while True:
            splits = rest is not None and rest.splits  # looked at first: what follows is put there before
            if not begun:
                if not splits:
                    break
                run.wait(lambda: bool(begun), deadline, drawing)
            head = begun[0]
            run.wait(head.done, deadline, drawing)
            begun.popleft()
            values, error = head.outcome()
            del head
            while values:
                if len(values) == 1 and error is None and (task := next(more, None)) is not None:
                    begun.append(task)
                yield values.pop()
            if error is not None:
                try:
                    raise error
                finally:
                    del error
            run.arrived.clear()  # nobody asks for it here
        everything = True
    finally:
        if drawing is not None:
            drawing.end(run.finished if everything else None)
        if not everything and not is_finalizing():
            _cancel((rest, *begun) if rest is not None else tuple(begun))


def _cancel(tasks: Iterable[ItemsTask]) -> None:
    for task in tasks:
        task.cancel()


class Unordered(Iterator[_T]):
    """Results as they come; what `ProcessPoolExecutor.imap_unordered` returns. One thread at a time.

    Parameters
    ----------
    run : EachRun
        Function and pool.
    items : iterator of tuple
        Arguments, read as far as the buffer goes.
    take : callable
        Makes a task of some items.
    submit : callable
        Hands a task to the pool.
    chunksize : int or ChunkSize
        Items in a task.
    buffersize : int or None
        Items that have been read and whose results have not been given, at most.
    deadline : float or None
        As of `time.monotonic`.
    drawing : Drawing or None
        Progress.
    """

    def __init__(
        self,
        run: EachRun,
        items: Iterator[Item],
        take: Callable[[list[Item]], EachTask],
        submit: Callable[[EachTask], object],
        chunksize: int | ChunkSize,
        buffersize: int | None,
        deadline: float | None,
        drawing: Drawing | None,
    ) -> None:
        self._run = run
        self._items: Iterator[Item] | None = items
        self._take = take
        self._submit = submit
        self._chunksize = chunksize
        self._buffersize = buffersize
        self._deadline = deadline
        self._drawing = drawing
        self._open: dict[EachTask, None] = {}  # not given yet
        self._ahead = 0  # items read whose results were not given
        self._values: list[_T] = []  # of the task that is being given, the last one first
        self._errors: collections.deque[BaseException] = collections.deque()  # to be raised next
        self._last: BaseException | None = None  # what the input raised, or the pool: comes after all results
        self._begin()

    def _begin(self) -> None:
        self._fill()
        error = self._last
        if error is not None and not self._open:
            self.close()
            raise error

    def __next__(self) -> _T:
        while True:
            if self._values:
                value = self._values.pop()
                self._ahead -= 1
                self._fill()
                return value
            if self._errors:
                self._stop()
                self._end_drawing()
                raise self._errors.popleft()
            if not self._open:
                self._fill()
            if not self._open:
                self._end()
            try:
                self._run.wait(lambda: bool(self._run.arrived), self._deadline, self._drawing)
            except BaseException:
                self._stop()
                raise
            task = self._run.arrived.popleft()
            if task in self._open:  # else it was cancelled here
                del self._open[task]
                self._values, error = task.outcome()
                self._ahead -= task.count - len(self._values)
                if error is not None:
                    self._errors.append(error)

    def _end(self) -> None:
        self._end_drawing(self._run.finished if self._last is None else None)
        if self._last is not None:
            error, self._last = self._last, None
            raise error
        raise StopIteration

    def _most(self, size: int) -> int:
        if self._buffersize is not None:
            return self._buffersize
        return _AHEAD * self._run.pool.settings.max_workers * size

    def _fill(self) -> None:
        """Read as far as the buffer goes, and submit that."""
        if self._items is None:
            return
        while self._items is not None:
            size = self._chunksize if isinstance(self._chunksize, int) else self._chunksize.now()
            most = self._most(size)
            size = min(size, most)
            if most - self._ahead < size:
                break
            group: list[Item] = []
            try:
                for item in itertools.islice(self._items, size):
                    group.append(item)  # noqa: PERF402 - what was read before it raised counts
            except Exception as error:
                self._last, self._items = error, None
            if len(group) < size:
                self._items = None
            if group:
                task = self._take(group)
                try:
                    self._submit(task)
                except RuntimeError as error:  # it was shut down
                    self._last, self._items = error, None
                    return
                self._open[task] = None
                self._ahead += len(group)

    def _stop(self) -> None:
        """Read no more, and begin nothing more; what has begun is given still."""
        self._items = None
        for task in list(self._open):
            if task.cancel():
                del self._open[task]

    def close(self) -> None:
        """Cancel what has not begun, and give nothing more."""
        self._stop()
        self._open.clear()
        self._values.clear()
        self._errors.clear()
        self._last = None
        self._end_drawing()

    def _end_drawing(self, finished: int | None = None) -> None:
        if self._drawing is not None:
            drawing, self._drawing = self._drawing, None
            drawing.end(finished)

    def __del__(self, is_ending=sys.is_finalizing) -> None:  # type: ignore[no-untyped-def]
        if not is_ending() and (tasks := tuple(getattr(self, "_open", ()))):
            self._run.pool.hub.from_finalizer(functools.partial(_cancel, tasks))
