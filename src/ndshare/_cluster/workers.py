"""Workers of a map on other machines, through an engine: the caller's side.

::

    board ──► share ──► engine ──► node ──► result ──► merged into the caller's arrays, once
      ▲                    │                  │
      └── items not done ◄─┘ lost             └─ lacks contents: sent again, with them

The slots of a map, one per worker, are divided into *groups*: one per process of the engine. A group that
has rows runs one share at a time: the rows of its workers go out with a share, come back with it, and go out
with the next one. Whatever is lost or runs twice, each share counts once.

Guarantees
----------
- A share is merged at most once, and only what it has changed.
- A share that is lost begins again from what was merged: its rows are as if it had never run.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import sys
import time
from collections.abc import Collection
from typing import Any

import numpy as np

from ndshare._cluster.cargo import Cargo
from ndshare._cluster.engines import Engine
from ndshare._cluster.flights import DEPTH, LOST_MOST, Carriage, Flight, Landing, ShareSize
from ndshare._map import Death, ItemError, Job, Outcome, Ranges, Savepoint, Traffic, WorkerReport
from ndshare._node import ShareTask, TaskResult
from ndshare._system import _wire
from ndshare._transport import by_value_modules, open_reply, with_traceback
from ndshare.errors import add_note


class _Results:
    """Results of the shares of one map.

    Parameters
    ----------
    job : Job
        The map.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._places: dict[tuple[str, int], int] = {}  # number of each worker process, for the report

    def enter(self, start: int, end: int, first_worker: int, result: TaskResult) -> list[Outcome]:
        """Enter a share's result on the board of the map.

        Parameters
        ----------
        start, end : int
            The items.
        first_worker : int
            Number of the first of its workers.
        result : TaskResult
            With an outcome.

        Returns
        -------
        list
            What the map is to hear: reports, errors and deaths, with its own indices, numbers and times.
        """
        board, job = self._job.board, self._job
        assert result.outcome is not None
        reports, errors, deaths = open_reply(result.outcome)
        mask = np.frombuffer(result.mask, np.uint8)
        board.mask[start:end] = mask
        finished = int(np.count_nonzero(mask))
        _wire.add_u64(board.memory, board.slot(0), finished)
        if finished < mask.size and not board.is_stopped() and job.on_error == "raise":
            board.stop()
        now = time.monotonic()
        outcomes: list[Outcome] = []
        ends = [end for report in reports for *_, end in report.timeline]
        shift = now - max(ends) if ends else 0.0  # clocks of machines differ
        for report in reports:
            report.worker_id = self._places.setdefault((result.machine, report.pid), len(self._places))
            report.node = result.node
            report.errors = [(start + index, error, text) for index, error, text in report.errors]
            report.timeline = [(a, b, c + shift, d + shift) for a, b, c, d in report.timeline]
            report.failures = [(index, at + shift) for index, at in report.failures]
            outcomes.append(report)
        for index, error, text in errors:
            outcomes.append(ItemError(start + index, with_traceback(error, text)))
            if job.on_error == "raise":
                board.stop()
        for death in deaths:
            worker_id = None if death.worker_id is None else death.worker_id + first_worker
            outcomes.append(Death(worker_id, death.pid, death.index, now, death.rolled_back))
        if job.on_error == "raise" and any(report.errors for report in reports):
            board.stop()
        return outcomes


#: Results of shares that land within so long of each other are fetched together: each time costs the caller,
#: and the node, as much as an engine takes for an empty task.
_TOGETHER_S = 20e-3
#: Of all shares that may be under way, this part is sent together, for the same reason.
_SENT_TOGETHER = 4


@dataclasses.dataclass(eq=False, slots=True)
class _Share(Flight):
    """Some items on their way."""

    group: int = 0
    start: int = 0
    end: int = 0


class Remote:
    """Workers behind an engine.

    Parameters
    ----------
    job : Job
        The map.
    engine : Engine
        Where shares run.
    groups : int
        Shares that are under way at a time.
    per_group : int
        Workers of each.
    """

    start_method = "cluster"
    rolls_back = False  # nodes do

    def __init__(self, job: Job, engine: Engine, groups: int, per_group: int) -> None:
        self._job = job
        self._engine = engine
        self._per_group = per_group
        self._free: collections.deque[int] | None = None  # groups, known when the kernel is packed
        self._cancelled = False
        self._groups = groups
        self._depth = 0  # so many shares of each group may be under way
        self._again: collections.deque[tuple[int, int]] = collections.deque()
        self._flights: dict[int, _Share] = {}  # by id of the future
        self._carriage: Carriage[_Share] = Carriage()
        self._results = _Results(job)
        self._landing = Landing()
        self._sizes = ShareSize(groups, per_group, job.usual_ns * 1e-9)
        self._cargo = Cargo(job, per_group)

    @property
    def captured(self) -> dict[str, Traffic]:
        """See `MapWorkers`; what was sent so far."""
        return self._cargo.account()

    def pack(self) -> None:
        """Pack kernel and functor.

        Raises
        ------
        Exception
            Whatever pickling raises.
        """
        self._cargo.pack()

    # ------------------------------------------------------------------ sending

    @property
    def running(self) -> int:
        """See `MapWorkers`."""
        return len(self._flights) + len(self._carriage.parked)

    def start(self, _count: int, ranges: Ranges = ()) -> None:
        """See `MapWorkers`; there are always as many as there are groups."""
        if self._free is None:
            self._free = collections.deque()
        self._again.extend(ranges)
        self._fill()

    def _fill(self) -> None:
        """Send shares for all groups that have none, or not enough."""
        board = self._job.board
        free = self._free
        while free is not None and self._depth < self._most():
            free.extend(range(self._groups))
            self._depth += 1
        # One share each: a group that is free has nothing to do.
        together = self._groups * self._depth // _SENT_TOGETHER if self._depth > 1 else 1
        if free and len(free) < together and self._flights and not self._again:
            return  # they have enough to do; the next shares go out together
        flights: list[_Share] = []
        while free and not board.is_stopped():
            share = self._again.popleft() if self._again else self._take()
            if share is None:
                break
            flights.append(_Share(group=free.popleft(), start=share[0], end=share[1]))
        tasks = [self._task(flight) for flight in flights]
        try:
            futures = self._engine.submit_all(tasks, self._landing.put) if tasks else []
        except concurrent.futures.BrokenExecutor as error:
            add_note(error, _lost_items(flights[0]))
            raise
        for flight, future in zip(flights, futures, strict=True):
            flight.future = future
            self._flights[id(future)] = flight

    def _most(self) -> int:
        """How many shares of a group may be under way."""
        if self._cargo.has_rows:
            return 1
        return DEPTH if self._job.share_items else self._sizes.depth

    def _task(self, flight: _Share, contents: Collection[bytes] = ()) -> ShareTask:
        first_worker = flight.group * self._per_group
        return self._cargo.task(flight.start, flight.end, first_worker, self._sizes.per_item_s, contents)

    def _take(self) -> tuple[int, int] | None:
        job, board = self._job, self._job.board
        while (left := board.items - board.taken) > 0:
            count = job.share_items * self._per_group or self._sizes.next(left)
            count = -(-count // job.block) * job.block
            start = board.take(count)
            if start >= board.items:
                break
            share = start, min(start + count, board.items)
            if not job.resumed:
                return share
            if parts := board.undone(*share):
                self._again.extend(parts[1:])
                return parts[0]
        return None

    def _send(self, flight: _Share, contents: Collection[bytes] = (), address: Any = None) -> None:
        try:
            flight.future = self._engine.submit(self._task(flight, contents), self._landing.put, address)
        except concurrent.futures.BrokenExecutor as error:
            add_note(error, _lost_items(flight))
            raise
        self._flights[id(flight.future)] = flight

    # ------------------------------------------------------------------ what comes back

    def wait(self, seconds: float | None) -> list[Outcome]:
        """See `MapWorkers`."""
        outcomes: list[Outcome] = []
        landed = self._next_landed(seconds)
        if not self._cargo.has_rows:
            until = time.monotonic() + _TOGETHER_S
            while landed and self._flights and (left := until - time.monotonic()) > 0:
                landed += self._next_landed(left)
        results = self._engine.results([flight.future for flight in landed])
        for flight, result in zip(landed, results, strict=True):
            outcomes += self._land(flight, result)
        if self._job.board.is_stopped():
            self._cancel()
        self._fill()
        return outcomes

    def _next_landed(self, seconds: float | None) -> list[_Share]:
        """Wait for shares to land; the next ones go out before the results of these come in."""
        landed = [self._flights.pop(id(future), None) for future in self._landing.take(seconds)]
        flights = [flight for flight in landed if flight is not None]
        if self._free is not None and not self._cargo.has_rows:
            self._free.extend(flight.group for flight in flights)
            self._fill()
        return flights

    def _cancel(self) -> None:
        """Give up the shares that are still under way."""
        self._carriage.parked.clear()
        if self._flights and not self._cancelled:
            self._cancelled = True
            self._engine.cancel([flight.future for flight in self._flights.values()])
            self._engine.stop(self._cargo.map_id)
            for key, flight in list(self._flights.items()):
                if flight.future.cancelled():
                    del self._flights[key]

    def _land(self, flight: _Share, result: TaskResult | BaseException) -> list[Outcome]:
        """Merge a share and free its group; or send it again."""
        for other in self._carriage.unload(flight):
            self._send(other)
        if isinstance(result, BaseException):
            return self._lose(flight, result)
        if result.lacks:
            if self._carriage.load(flight, result.machine, result.lacks):
                self._send(flight, result.lacks, result.address)
            return []
        if result.failure is not None:
            return self._fail(flight, *open_reply(result.failure))
        self._release(flight)
        savepoint = self._savepoint(flight)
        self._cargo.merge(result.changes)
        first_worker = flight.group * self._per_group
        outcomes = self._results.enter(flight.start, flight.end, first_worker, result)
        if savepoint is not None:
            savepoint.close()
        reports = [outcome for outcome in outcomes if isinstance(outcome, WorkerReport)]
        self._sizes.took(sum(report.items for report in reports), sum(report.busy for report in reports))
        return outcomes

    def _savepoint(self, flight: _Share) -> Savepoint | None:
        """Note in a checkpoint that a share is being merged: all of it is, or it runs again."""
        job = self._job
        if not job.saved_rows and not job.mirrors:
            return None
        savepoint = Savepoint(job.board, job.saved_rows, flight.group, job.blocks, job.mirrors)
        job.board.begin(flight.group, flight.start, flight.end)
        savepoint.open()
        return savepoint

    def _release(self, flight: _Share) -> None:
        """Let a group with rows run its next share."""
        if self._free is not None and self._cargo.has_rows:
            self._free.append(flight.group)

    def _lose(self, flight: _Share, error: BaseException) -> list[Outcome]:
        """Send a share again whose node is gone."""
        flight.lost += 1
        broken = isinstance(error, concurrent.futures.BrokenExecutor)
        if broken or flight.lost >= LOST_MOST or self._job.board.is_stopped():
            if self._job.board.is_stopped():
                self._release(flight)
                return []
            add_note(error, _lost_items(flight))
            raise error
        self._send(flight)
        return [Death(None, 0, None, time.monotonic())]

    def _fail(self, flight: _Share, error: BaseException, text: str) -> list[Outcome]:
        """Deal with a share that could not be run at all."""
        name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if name in sys.modules and name not in by_value_modules:
            by_value_modules.add(name)
            self._cargo.pack()
        flight.tries += 1
        if name in by_value_modules and flight.tries < LOST_MOST:
            self._send(flight)
            return []
        raise with_traceback(error, text)

    # ------------------------------------------------------------------ the end

    def kill(self, pid: int) -> None:
        """Never called: nodes keep the time limits."""
        raise NotImplementedError

    def close(self) -> None:
        """See `MapWorkers`."""
        if self.running:
            self._cancel()
            self._flights.clear()
        elif self._cargo.has_bases:
            self._engine.stop(self._cargo.map_id)


def _lost_items(flight: _Share) -> str:
    return f"ndshare: items {flight.start} to {flight.end - 1} could not be run: the engine lost them"
