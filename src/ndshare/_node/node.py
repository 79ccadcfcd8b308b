"""One process of an engine: runs shares that come from another machine on warm workers of its own.

::

    ShareTask ──► contents here?  no ──► TaskResult(lacks=…), the caller sends the share again with them
                      │ yes
                  twins of the arrays ──► workers of this process ──► what changed ──► TaskResult
                      ▲                                                    │
                      └──────────────── reset ◄────────────────────────────┘

One share runs at a time, on all workers of the process: others of the engine's threads wait, with their
message already here.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Container
from typing import Any

import numpy as np

from ndshare._map import Drive, Job, Outcome, PoolWorkers, ProcessContext, Ranges, Traffic
from ndshare._memory import block_of, decode_dtype, set_idle_limit, stats, trim
from ndshare._node.link import machine_name
from ndshare._node.shares import BatchTask, CallTask, NamedTask, ShareTask, TaskResult
from ndshare._node.store import Store
from ndshare._node.twins import Change, Patch, Twin
from ndshare._node.worker import Named, call_function, call_items, run_part
from ndshare._node.workspace import NodeWorkspaces
from ndshare._pickling import CopyOnWrite, Placed
from ndshare._pool import Pool, ProcessPoolExecutor
from ndshare._processes import with_options
from ndshare._system import Board
from ndshare._transport import (
    BLOCK,
    READ_ONLY,
    Crate,
    Draft,
    Piece,
    arrays_of,
    pack,
    portable,
    reply,
    traceback_of,
)
from ndshare.functors import Functor

#: How often a share looks whether its map was given up.
_LOOK_S = 0.25


def never(*_entry: object) -> None:
    """Stands for the kernel, which only workers unpickle."""
    raise NotImplementedError


class MapStoppedError(Exception):
    """The caller has given the map or the workspace up."""


class ShareWorkers(PoolWorkers):
    """Workers of this process's pool that open crates instead of unpickling a job."""

    def __init__(
        self, job: Job, pool: Pool, task: ShareTask, crates: list[Any], stopped: Container[str]
    ) -> None:
        super().__init__(job, pool)
        self._task = task
        self._crates = crates
        self._stopped = stopped

    def wait(self, seconds: float | None) -> list[Outcome]:
        """See `PoolWorkers`; now and then looks whether the caller still wants the map."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
            outcomes = super().wait(max(left, 0.0))
            if self._task.map_id in self._stopped:
                raise MapStoppedError(f"map {self._task.map_id} was given up by its caller")
            if outcomes or (deadline is not None and time.monotonic() >= deadline):
                return outcomes

    def message(self, ranges: Ranges) -> tuple[Draft, frozenset[str]]:
        """See `PoolWorkers`."""
        task = self._task
        options = task.options
        if self.job.rows or self.job.blocks:
            options = {**options, "rows": self.job.rows, "blocks": self.job.blocks}
        arguments = self.job.board, options, task.start, task.end, ranges, self._crates
        return pack((run_part, arguments, {})), frozenset()

    def account(self) -> dict[str, Traffic]:
        """Nothing: the caller does that."""
        return {}


#: So many maps and workspaces are remembered that were given up.
_STOPPED_MOST = 100


class Node:
    """What this process keeps from share to share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.name = socket.gethostname()
        self.machine = f"{self.name}{machine_name()}"
        self.store = Store()
        self._map_id = ""
        self._twins: dict[int, Twin] = {}
        self._contexts: dict[int, ProcessContext] = {}
        self._executor: ProcessPoolExecutor | None = None
        self._workspaces = NodeWorkspaces(self.store)
        self._stopped: collections.deque[str] = collections.deque(maxlen=_STOPPED_MOST)
        self._released = False
        self._needed: set[bytes] = set()  # by the last task

    def run(self, task: ShareTask) -> TaskResult:
        """Run a share."""
        self._check(task)
        if lacks := self._take_in(task):
            return TaskResult(self.name, self.machine, lacks)
        if self._map_id != task.map_id:
            self.forget()
            self._map_id = task.map_id
        self._make_room(task)
        twins = self._bring_in(task)
        try:
            mask, outcome = self._work(task)
            changes: list[Change] = []
            for twin in twins:
                changes += twin.changes()
        except BaseException:
            self.forget()  # workers that were killed may not have ended yet: they have the memory mapped
            raise
        for twin in twins:
            twin.reset()
        return TaskResult(self.name, self.machine, [], mask, changes, outcome)

    def call(self, task: CallTask) -> TaskResult:
        """Call a function in a worker; any number of threads may."""
        with self.lock:
            if isinstance(task, NamedTask):
                self._check(task)
                self._workspaces.make_room(task)
            if lacks := self._take_in(task):
                return TaskResult(self.name, self.machine, lacks)
            self._make_room(task)
            twins: dict[int, Twin] = {}
            self._add_twins(twins, task)
            called = self._begin(task, functools.partial(self._place, twins))
        try:
            answer = called.result()
            changes = list(answer.changes)
            for twin in twins.values():
                changes += twin.changes()
            return TaskResult(
                self.name,
                self.machine,
                changes=changes,
                outcome=answer.outcome,
                failure=answer.failure,
                unopened=answer.unopened,
                lost=answer.lost,
            )
        finally:
            for twin in twins.values():
                twin.close()

    def _begin(self, task: CallTask, place: Callable[[Piece], Any]) -> concurrent.futures.Future[Any]:
        if isinstance(task, NamedTask):
            workspace = self._workspaces.find(task, place)
            here = functools.partial(workspace.place, other=place)
            return workspace.call(task, [(crate.stream, arrays_of(crate, here)) for crate in task.crates])
        crates = [(crate.stream, arrays_of(crate, place)) for crate in task.crates]
        if self._executor is None:
            self._executor = ProcessPoolExecutor()
        function = call_items if isinstance(task, BatchTask) else call_function
        return self._executor.submit(with_options(Named(function, task.name), task.asked), crates)

    def _check(self, task: CallTask) -> None:
        if task.map_id in self._stopped:
            raise MapStoppedError(f"{task.name} was given up by its caller")

    def _take_in(self, task: CallTask) -> list[bytes]:
        """Keep the contents that a task brings; returns what is still lacking."""
        return self.store.lacks(task.needed(), task.contents)

    def _make_room(self, task: CallTask) -> None:
        """Let go of what this task does not need, as far as the machine keeps too much."""
        self._needed = task.needed()
        while not self.store.make_room(self._needed | self._workspaces.needed()):
            if not self._workspaces.end_idle(task.map_id):
                break

    def stop(self, map_id: str) -> None:
        """End a map or a workspace; called in any thread, also while a share of it runs."""
        self._stopped.append(map_id)
        workspace = self._workspaces.end(map_id)
        if self.lock.acquire(blocking=False):  # else the share that runs sees it soon
            try:
                if workspace is not None:
                    workspace.forget()
                elif self._map_id == map_id:
                    self.forget()
            finally:
                self.lock.release()

    def forget(self) -> None:
        """Let go of the arrays of the last map."""
        self._map_id = ""
        for twin in self._twins.values():
            twin.close()
        self._twins.clear()

    # ------------------------------------------------------------------ memory

    def limit(self, nbytes: int) -> None:
        """Note how much memory the engine lets this process have."""
        self.store.limit = min(self.store.limit, nbytes // 4)
        set_idle_limit(min(stats().idle_limit, self.store.limit // 2))

    def release(self) -> None:
        """Let go of all that no task works with, after the share that runs. Called in any thread."""
        self._released = True
        if self.lock.acquire(blocking=False):
            try:
                self.after_task()
            finally:
                self.lock.release()

    def after_task(self) -> None:
        """Do what was asked for while a task ran; called under the lock."""
        if self._released:
            self._released = False
            self.forget()
            self.store.release(self._workspaces.needed())
            trim()

    def relieve(self) -> None:
        """Let go of what the last task did not need, if none runs. Called in any thread."""
        if self.lock.acquire(blocking=False):
            try:
                self.store.release(self._needed | self._workspaces.needed())
            finally:
                self.lock.release()
        trim()

    # ------------------------------------------------------------------ a share

    def _bring_in(self, task: ShareTask) -> list[Twin]:
        patches: dict[int, list[Patch]] = {}
        for number, start, content in task.patches:
            patches.setdefault(number, []).append((start, content))
        self._add_twins(self._twins, task)
        for number in task.blocks:
            self._twins[number].begin(patches.get(number, []))
        return [self._twins[number] for number in task.blocks]

    def _add_twins(self, twins: dict[int, Twin], task: CallTask) -> None:
        for number, (nbytes, base) in task.blocks.items():
            if number not in twins:
                twins[number] = Twin(number, nbytes, None if base is None else self.store.get(base))
        total = sum(twin.work.size * (1 if twin.base is None else 2) for twin in twins.values())
        for twin in twins.values():
            twin.resident = total <= self.store.limit

    def _place(self, twins: dict[int, Twin], piece: Piece) -> Any:
        where, key, offset, code, shape, steps, flags = piece
        if where == BLOCK:
            return twins[key].view(offset, decode_dtype(code), shape, steps)
        memory = self.store.get(key)
        found = block_of(memory)
        assert found is not None
        itemsize = decode_dtype(code).itemsize
        strides: Any = steps  # None is C order in a piece
        writeable = not flags & READ_ONLY
        return CopyOnWrite(Placed(found[0], offset, code, itemsize, shape, strides, writeable, private=True))

    def _rows(self, number: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        return self._twins[number].view(offset, np.dtype(np.uint8), shape, strides)

    def _work(self, task: ShareTask) -> tuple[bytes, Crate]:
        context = self._contexts.get(task.workers)
        if context is None:
            context = self._contexts[task.workers] = ProcessContext(task.workers)
        items = task.end - task.start
        rows = tuple(self._rows(*place) for place in task.rows)
        blocks = tuple((self._rows(*place), items) for *place, items in task.row_blocks)
        board: Board = context.make_board(items, sum(flat.shape[1] for flat in rows))
        job = Job(Named(never, task.name), Functor(), board, **task.options, rows=rows, blocks=blocks)
        place = functools.partial(self._place, self._twins)
        crates = [(crate.stream, arrays_of(crate, place)) for crate in task.crates]
        workers = ShareWorkers(job, context.pool(), task, crates, self._stopped)
        drive = Drive(job, workers, timeout=job.timeout, retries=job.retries)
        drive.run(min(items, task.workers))
        mask = board.mask.tobytes()
        context.drop_board(board)
        reported = {index for report in drive.reports for index, _, _ in report.errors}
        errors = [
            (index, error, traceback_of(error)) for index, error in drive.errors if index not in reported
        ]
        return mask, reply((drive.reports, errors, drive.deaths))


_node: Node | None = None
_make = threading.Lock()


def this_node() -> Node:
    """Return the node of this process; a forked child gets one of its own."""
    global _node
    with _make:
        if _node is None or _node.pid != os.getpid():
            _node = Node()
        return _node


def run_task(task: CallTask) -> TaskResult:
    """Run a share or a call in this process of an engine; what goes wrong comes back as a failure.

    Parameters
    ----------
    task : CallTask
        What to run.

    Returns
    -------
    TaskResult
    """
    node = this_node()
    try:
        if not isinstance(task, ShareTask):
            return node.call(task)
        with node.lock:
            try:
                return node.run(task)
            finally:
                node.after_task()
    except Exception as error:
        return TaskResult(node.name, node.machine, failure=reply(portable(error)))


def stop_map(map_id: str) -> None:
    """End a map or a workspace in this process of an engine, and let go of its memory."""
    this_node().stop(map_id)


def limit_memory(nbytes: int) -> None:
    """Note how much memory the engine lets this process have: a quarter of it is kept at most."""
    this_node().limit(nbytes)


def release_memory() -> None:
    """Let go of all contents that no task works with: they are sent again when they are needed."""
    this_node().release()


def relieve_memory() -> None:
    """Let go of the contents that the last task did not need, and of memory that is kept for the next one."""
    this_node().relieve()


def kept_memory() -> dict[str, int]:
    """Return how many bytes of contents this process keeps, and how many all of this machine may."""
    store = this_node().store
    return {"kept": store.nbytes, "limit": store.limit}
