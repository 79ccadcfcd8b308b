"""One map from the functor to the report, in any context; and maps over iterators, batch by batch."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from ndshare._arrays import filed_arrays, flush
from ndshare._map import runner
from ndshare._map.alignment import block_of_items
from ndshare._map.checkpoint import Checkpoint, check_checkpoint
from ndshare._map.driving import Drive, usual_ns
from ndshare._map.job import Job, WorkerReport
from ndshare._map.report import MapReport
from ndshare._map.rows import known_rows
from ndshare._map.savepoints import NO_ROWS, Rows, rows_to_keep
from ndshare._map.used import which_used
from ndshare._map.watch.captured import Traffic
from ndshare._map.workers.base import MapWorkers
from ndshare._map.workers.local import Caller
from ndshare._processes import errstate
from ndshare._system import Bar, Board, Progress, warn_caller
from ndshare.errors import SilentWriteWarning, add_note
from ndshare.functors import Functor, IteratorFunctor, SequenceFunctor, count_items

Kernel = Callable[..., object]

#: Batches of an iterator grow until the work in one takes about so long, or as long as all around it ...
_BATCH_S = 0.2
#: ... by this factor at most, and to so many items.
_BATCH_GROWTH = 4
_BATCH_MOST = 100_000


class Context(Protocol):
    """What a map asks of its context."""

    num_workers: int
    can_kill: bool
    rows_together: int

    def make_board(self, items: int, kept: int = 0) -> Board:
        """See `ndshare.MapContext`."""

    def drop_board(self, board: Board) -> None:
        """See `ndshare.MapContext`."""

    def make_workers(self, job: Job, tell: Callable[[], None], /) -> tuple[MapWorkers, str]:
        """See `ndshare.MapContext`."""


class Options(NamedTuple):
    """Options of a map, checked; `ndshare.MapContext.map` says what they mean."""

    on_error: str
    timeout: float | None
    retries: int
    seed: int | None
    shares: int | None
    trace: bool
    progress: Progress | None
    align: Any = None
    checkpoint: Any = None


def run(context: Context, kernel: Kernel, functor: Functor, options: Options) -> MapReport:
    """Run a map; see `ndshare.MapContext.map`."""
    try:
        if options.checkpoint is not None and count_items(functor) is None:
            raise ValueError(
                f"map: a checkpoint needs to know how many items there are, and {type(functor).__name__} "
                "does not say; map over a list"
            )
        if isinstance(functor, IteratorFunctor):
            report = _run_batches(context, kernel, functor, options)
        else:
            report = _run_once(context, kernel, functor, options)
    finally:
        if isinstance(options.progress, Bar):
            options.progress.close()  # wherever it is, before the traceback
    for name, what in report.lost_writes:
        warn_caller(SilentWriteWarning(name, what))
    if report.errors and options.on_error == "raise":
        index, error = report.errors[0]
        add_note(error, f"ndshare.map: item {index} of {report.items}")
        if isinstance(error, TypeError) and "positional argument" in str(error):
            add_note(error, "ndshare.map: a kernel is called as kernel(worker_id, index, value)")
        raise error
    return report


def _run_once(
    context: Context, kernel: Kernel, functor: Functor, options: Options, first: int = 0, block: int = 0
) -> MapReport:
    began = time.monotonic()
    shares = options.shares
    if options.seed is not None and count_items(functor) is None:
        raise ValueError(
            f"seed={options.seed}: {type(functor).__name__} does not say how many items it has, so that they "
            "have no numbers of their own; give it a __len__, or map over a list"
        )
    if not block:
        block = _block(kernel, options, count_items(functor))
    if options.align is not None and count_items(functor) is None:
        raise ValueError(
            f"align: {type(functor).__name__} does not say how many items it has, and divides itself in its "
            "own way; give it a __len__, or map over a list"
        )
    nested = runner.inside_kernel()
    saved = options.checkpoint is not None
    if saved and nested:
        raise ValueError("map: inside a kernel there is no checkpoint; give it to the map around it")
    rows = rows_to_keep(kernel, asked=saved) if saved or (context.can_kill and not nested) else NO_ROWS
    told = kernel
    kernel, functor, items = _sized(kernel, functor, shares or context.num_workers)
    checkpoint: Checkpoint | None = None
    if saved and items:
        check_checkpoint(told, rows)
        checkpoint = Checkpoint(
            options.checkpoint,
            told,
            functor,
            items,
            context.num_workers,
            rows,
            together=context.rows_together,
            block=block,
            seed=options.seed,
        )
        board = checkpoint.board
    else:
        board = Board.of_one(items) if nested else context.make_board(items, rows.nbytes)
    try:
        report = _run_on(context, kernel, functor, options, board, checkpoint, rows, first, block, began)
    except BaseException:
        if checkpoint is not None:
            checkpoint.leave(complete=False)
        raise
    finally:
        if filed := filed_arrays():
            for array in which_used(told, filed):
                flush(array)
    if checkpoint is not None:
        checkpoint.leave(complete=not report.errors or options.on_error == "collect")
    return report


def _run_on(
    context: Context,
    kernel: Kernel,
    functor: Functor,
    options: Options,
    board: Board,
    checkpoint: Checkpoint | None,
    rows: Rows,
    first: int,
    block: int,
    began: float,
) -> MapReport:
    """Run a map on a board."""
    items, shares = board.items, options.shares
    nested = runner.inside_kernel()
    job = Job(
        kernel,
        functor,
        board,
        on_error=options.on_error,
        share_items=-(-items // shares) if shares and items else 0,
        block=block,
        timed=options.timeout is not None,
        trace=options.trace,
        seed=options.seed,
        usual_ns=usual_ns(kernel),
        first=first,
        errors=errstate.current(),
        timeout=options.timeout,
        retries=options.retries,
        rows=rows.workers,
        blocks=rows.blocks,
        mirrors=() if checkpoint is None else checkpoint.mirrors,
        resumed=checkpoint is not None and checkpoint.resumed > 0,
        saved_rows=() if checkpoint is None else checkpoint.rows,
    )
    drive: Drive | None = None

    def tell() -> None:
        if drive is not None:
            drive.tell()

    workers: MapWorkers
    if nested:
        workers, reason = Caller(job, tell), "inside a kernel of another map"
    else:
        workers, reason = context.make_workers(job, tell)
    drive = Drive(
        job,
        workers,
        timeout=None if nested else options.timeout,
        retries=options.retries,
        progress=options.progress,
        checkpoint=checkpoint,
    )
    drive.run(min(items, 1 if nested else context.num_workers))
    if not nested and checkpoint is None:
        context.drop_board(board)
    return MapReport(
        items,
        time.monotonic() - began,
        drive.done,
        drive.errors,
        _merged(drive.reports),
        type(context).__name__,
        workers.start_method,
        reason,
        context.num_workers,
        dict(workers.captured),
        drive.deaths,
        began if options.trace else None,
        rows.reason if drive.deaths else "",
        0 if checkpoint is None else checkpoint.resumed,
    )


def _block(kernel: Kernel, options: Options, items: int | None) -> int:
    """Return how many items belong together, for arrays with rows per block and files with chunks."""
    return math.lcm(known_rows.block(), block_of_items(kernel, options.align, items))


def _merged(reports: Iterable[WorkerReport]) -> list[WorkerReport]:
    """Return one report per worker: one that has ended may have been started again."""
    workers: dict[tuple[int, int], WorkerReport] = {}
    for report in reports:
        key = report.worker_id, report.pid
        workers[key] = workers[key].plus(report) if key in workers else report
    return [workers[key] for key in sorted(workers)]


def _sized(kernel: Kernel, functor: Functor, shares: int) -> tuple[Kernel, Functor, int]:
    """Return kernel, functor and number of items; a share is an item where the length is not known."""
    items = count_items(functor)
    if items is not None:
        return kernel, functor, items
    parts = list(functor.split(shares))
    return runner.ShareKernel(kernel, functor), SequenceFunctor(parts), len(parts)


# ---------------------------------------------------------------------- iterators


class Batch(Functor):
    """Some values of a collection, with their indices in the whole.

    Parameters
    ----------
    values : sequence
        The values.
    offset : int
        Index of the first.
    """

    def __init__(self, values: Any, offset: int) -> None:
        self._batch = values
        self._offset = offset

    def part(self, start: int, stop: int) -> Batch:
        """Return a batch of some of the values."""
        return Batch(self._batch[start:stop], self._offset + start)

    def __len__(self) -> int:
        return len(self._batch)

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield entries."""
        for number in range(share.start, share.stop):
            yield self._offset + number, self._batch[number]


def _run_batches(context: Context, kernel: Kernel, functor: IteratorFunctor, options: Options) -> MapReport:
    began = time.monotonic()
    reports: list[MapReport] = []
    block = _block(kernel, options, None)
    size = _whole_blocks(2 * context.num_workers, block)
    offset = 0
    if isinstance(options.progress, Bar):
        options.progress.expect_any()

    def progress(done: int, _total: int) -> None:
        if options.progress is not None and done:
            options.progress(offset + done, offset + done + 1)  # there may be more

    while values := functor.take(size):
        told = options._replace(progress=progress if options.progress is not None else None)
        report = _run_once(context, kernel, Batch(values, offset), told, offset, block)
        report = _shifted(report, offset)
        reports.append(report)
        offset += report.items
        if report.errors and options.on_error == "raise":
            break
        size = _whole_blocks(_next_size(size, report), block)
    if options.progress is not None and (
        not reports or not reports[-1].errors or options.on_error == "collect"
    ):
        options.progress(offset, offset)
    return _together(context, reports, began, options)


def _shifted(report: MapReport, offset: int) -> MapReport:
    """Return a report with the indices that its items have in the whole."""
    workers = [
        dataclasses.replace(
            worker, errors=[(offset + index, error, text) for index, error, text in worker.errors]
        )
        for worker in report.workers
    ]
    errors = [(offset + index, error) for index, error in report.errors]
    return dataclasses.replace(report, errors=errors, workers=workers)


def _whole_blocks(size: int, block: int) -> int:
    """Return a number of items with which no block is divided between two batches."""
    return -(-size // block) * block


def _next_size(size: int, report: MapReport) -> int:
    work = max((worker.busy for worker in report.workers), default=0.0) or report.elapsed
    around = report.elapsed - work  # starting workers takes long in a large process, or beside others
    fitting = int(size * max(_BATCH_S, around) / max(work, 1e-6))
    return max(1, min(fitting, size * _BATCH_GROWTH, _BATCH_MOST))


def _together(context: Context, reports: list[MapReport], began: float, options: Options) -> MapReport:
    traffic: dict[str, Traffic] = {}
    for report in reports:
        for name, sent in report.captured.items():
            before = traffic.get(name, Traffic(0, 0, 0))
            traffic[name] = Traffic(
                max(before.shared, sent.shared), before.copied + sent.copied, before.pickled + sent.pickled
            )
    last = reports[-1] if reports else None
    return MapReport(
        sum(report.items for report in reports),
        time.monotonic() - began,
        np.concatenate([report.done for report in reports]) if reports else np.zeros(0, bool),
        [pair for report in reports for pair in report.errors],
        _merged(worker for report in reports for worker in report.workers),
        type(context).__name__,
        last.start_method if last else "serial",
        last.reason if last else "there was nothing to do",
        context.num_workers,
        traffic,
        [death for report in reports for death in report.deaths],
        began if options.trace else None,
        next((report.rows for report in reports if report.rows), ""),
    )
