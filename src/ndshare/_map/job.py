"""One map as its workers see it, what each of them reports, and how one of them ended.

A job travels as its facts: plain values, for each class that a pickle names takes as long as twenty items.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._pickling import local_functions
from ndshare._processes import errstate
from ndshare._system import Board
from ndshare.functors import Functor, SequenceFunctor, numbers_of

#: A map that took less than this last time has one worker.
TINY_NS = 250_000


@dataclasses.dataclass(slots=True)
class Job:
    """One map, as its workers see it.

    Attributes
    ----------
    kernel : callable
        Called as ``kernel(worker_id, *entry)``.
    functor : Functor
        What yields the entries.
    board : Board
        Shared by all workers of the map.
    on_error : {"raise", "collect"}
        Whether an error ends the map.
    share_items : int
        Items per share; 0: found out.
    block : int
        No share begins or ends within a block of so many items.
    timed : bool
        Whether the beginning of each item is noted.
    trace : bool
        Whether each share is noted.
    seed : int or None
        Of `ndshare.item_rng`.
    first : int
        Index of the first item, in a map that goes over several boards.
    usual_ns : float
        What an item took last time; 0: not known.
    errors : tuple, optional
        How the caller has floating-point errors treated; see `ndshare._processes.errstate`.
    timeout : float or None
        Seconds for one item.
    retries : int
        How often an item is tried again whose worker died.
    first_worker : int
        Number that the kernel is given for the first worker.
    rows : tuple of ndarray of uint8, shape (workers, bytes)
        Rows per worker that the death of a worker takes back.
    blocks : tuple of (ndarray of uint8, shape (rows, pieces, bytes), int)
        Rows per block that it takes back, and the items of each.
    mirrors : tuple of ndarray
        Where the rows of each of `blocks` are copied when a share ends, if the map has a checkpoint.
    resumed : bool
        Whether items may be done before the map begins.
    saved_rows : tuple of ndarray
        Rows per worker as a checkpoint saves them: on a cluster those of a share are one.
    """

    kernel: Callable[..., object]
    functor: Functor
    board: Board
    on_error: str = "raise"
    share_items: int = 0
    block: int = 1
    timed: bool = False
    trace: bool = False
    seed: int | None = None
    first: int = 0
    usual_ns: float = 0.0
    errors: errstate.ErrorState = None
    timeout: float | None = None
    retries: int = 0
    first_worker: int = 0
    rows: tuple[Any, ...] = ()
    blocks: tuple[tuple[Any, int], ...] = ()
    mirrors: tuple[Any, ...] = ()
    resumed: bool = False
    saved_rows: tuple[Any, ...] = ()

    @property
    def is_tiny(self) -> bool:
        """Whether the map took so little last time that one worker does it, at first."""
        return 0 < self.usual_ns * self.board.items < TINY_NS

    def facts(self) -> tuple[Any, ...]:
        """Return what `of_facts` makes the same job of; its board is the same memory."""
        board = self.board
        kernel: Any = self.kernel
        functor: Any = self.functor
        if (numbers := numbers_of(functor)) is not None:
            functor = (numbers.start, numbers.stop, numbers.step) if type(numbers) is range else numbers
            if self.errors is None:  # else its handler may share a variable with the kernel
                kernel = local_functions.apart(kernel) or kernel
        return kernel, functor, board.memory, (board.num_workers, board.items, board.kept), *_options_of(self)

    @classmethod
    def of_facts(
        cls, kernel: Any, functor: Any, memory: Any, sizes: tuple[int, int, int], *options: Any
    ) -> Job:
        """Return the job that `facts` has taken apart: each class that is pickled by name takes a while."""
        if type(functor) is tuple:
            functor = SequenceFunctor(range(*functor))
        elif type(functor) is np.ndarray:
            functor = SequenceFunctor(functor)
        if type(kernel) is tuple:
            kernel = local_functions.together(kernel)
        return cls(kernel, functor, Board(memory, *sizes), *options)


_options_of = operator.attrgetter(*Job.__slots__[3:])  # in the order of the fields


@dataclasses.dataclass(slots=True)
class WorkerReport:
    """What one worker did.

    Attributes
    ----------
    worker_id, pid : int
        Which one.
    items, shares : int
        How many it finished, in how many shares.
    busy : float
        Seconds inside shares.
    peak_bytes : int
        Largest resident memory of its process so far.
    errors : list of (int, BaseException, str)
        Index, exception, traceback.
    lost_writes : list of (str, str)
        Name and kind of captured objects that the kernel wrote to although they are not shared.
    timeline : list of (int, int, float, float)
        First item, end, start and end in seconds (monotonic clock) of each share, if asked for.
    failures : list of (int, float)
        Index and time of each error, if asked for.
    node : str
        The machine, where a map runs on several.
    """

    worker_id: int
    pid: int
    items: int = 0
    shares: int = 0
    busy: float = 0.0
    peak_bytes: int = 0
    errors: list[tuple[int, BaseException, str]] = dataclasses.field(default_factory=list)
    lost_writes: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    timeline: list[tuple[int, int, float, float]] = dataclasses.field(default_factory=list)
    failures: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    node: str = ""

    def plus(self, other: WorkerReport) -> WorkerReport:
        """Return what both did together."""
        return WorkerReport(
            self.worker_id,
            self.pid,
            self.items + other.items,
            self.shares + other.shares,
            self.busy + other.busy,
            max(self.peak_bytes, other.peak_bytes),
            self.errors + other.errors,
            self.lost_writes + other.lost_writes,
            self.timeline + other.timeline,
            self.failures + other.failures,
            self.node,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerReport, _fields_of_report(self)

    def facts(self) -> list[Any]:
        """Return the fields, without those at the end of a report of nothing special: they are empty."""
        special = self.errors or self.lost_writes or self.timeline or self.failures or self.node
        return list(_fields_of_report(self) if special else _figures_of_report(self))


_fields_of_report = operator.attrgetter(*WorkerReport.__slots__)
_figures_of_report = operator.attrgetter(*WorkerReport.__slots__[:6])


@dataclasses.dataclass(frozen=True, slots=True)
class Death:
    """A worker that ended without a report.

    Attributes
    ----------
    worker_id : int or None
        Which one; None if it had not yet taken part.
    pid : int
        Its process.
    index : int or None
        The item it was at, if at any.
    at : float
        When the caller learned of it, in seconds of the monotonic clock.
    rolled_back : (int, int) or None
        The share that it had begun, first item and end, if what it had added to rows was taken back: the
        rows are what they were when the share began, and all of it runs again. None if there was no share, or
        if the map keeps no rows.
    """

    worker_id: int | None
    pid: int
    index: int | None
    at: float
    rolled_back: tuple[int, int] | None = None
