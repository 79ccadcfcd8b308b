"""`MapContext`: arrays to write to, maps, reduction; and its subclasses whose maps run in this process."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from ndshare import _arrays, functors
from ndshare._arrays import in_file
from ndshare._map import mapping
from ndshare._map.alignment import check_align
from ndshare._map.contexts.layouts import Shape, resolved
from ndshare._map.job import Job
from ndshare._map.report import MapReport
from ndshare._map.rows import in_memory, known_rows, reduce_rows
from ndshare._map.workers.base import MapWorkers
from ndshare._map.workers.local import Caller, Threads
from ndshare._system import (
    Board,
    Progress,
    check_count,
    check_runs,
    check_seconds,
    default_workers,
    progress_of,
)

Kernel = Callable[..., object]


class MapContext(abc.ABC):
    """Where maps run. Subclasses say with which workers.

    Page: docs/map.md.

    Parameters
    ----------
    num_workers : int
        How many workers a map has at most; the rows of an array with ``per_worker=True``.
    """

    #: Whether one item can be ended without ending the program.
    can_kill = False
    #: Workers whose rows go out and come back together.
    rows_together = 1
    #: Whether `ndshare.lock` works in kernels: on one machine it does.
    can_lock = True

    def __init__(self, num_workers: int) -> None:
        check_count("num_workers", num_workers, 1)
        self.num_workers = int(num_workers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_workers={self.num_workers})"

    @abc.abstractmethod
    def make_workers(self, job: Job, tell: Callable[[], None], /) -> tuple[MapWorkers, str]:
        """Make the workers of one map, and say why they are what they are if that is not as usual.

        Parameters
        ----------
        job : Job
            The map.
        tell : callable
            To be called now and then by workers that keep the calling thread.
        """

    def make_board(self, items: int, kept: int = 0) -> Board:
        """Make the board of a map, with room for so many bytes of rows of each worker."""
        memory = np.zeros(Board.nbytes(self.num_workers, items, kept), np.uint8)
        return Board(memory, self.num_workers, items, kept)

    def drop_board(self, board: Board) -> None:  # noqa: B027 - there is nothing to do as a rule
        """Take the board of a map back that has come to its end: no worker uses it any more."""

    # ------------------------------------------------------------------ alloc

    def alloc(
        self,
        shape: Shape | None = None,
        dtype: npt.DTypeLike | None = None,
        *,
        order: Literal["C", "F"] | None = None,
        fill: object = None,
        like: Any = None,
        per_worker: bool = False,
        per_block: int | None = None,
        rollback: bool | None = None,
        path: str | os.PathLike[str] | None = None,
        mode: Literal["x", "w", "r+", "a"] = "x",
    ) -> npt.NDArray[Any]:
        """Make an array that kernels write their results to.

        Page: docs/map.md.

        Parameters
        ----------
        shape : int or iterable of int
            Its shape; may be ``()`` or contain zeros.
        dtype : dtype-like, optional
            By default float64.
        order : {"C", "F"}, optional
            Memory layout; by default "C".
        fill : scalar or array_like, optional
            What it is filled with, by NumPy's rules of broadcasting. By default zeros.
        like : array-like, optional
            Where shape, dtype and order are taken from, as far as they are not given: any array,
            Series, DataFrame, tensor or list of numbers. What does not define what is needed is refused.
        per_worker : bool, optional
            Make one such array for each worker: along the first axis of the result for order "C", along the
            last for "F". The kernel writes to that of its `worker_id`.
        per_block : int, optional
            The first number of `shape` is the number of items, and the result has one row for each block of
            so many of them: the kernel writes to row ``index // per_block``. A block is never split between
            workers.
        rollback : bool, optional
            Whether the death of a worker takes back what it has added to its rows since its share began; the
            share then runs again, so that rows count each item once. By default where a row has 64 KiB or
            less (and all rows per block 16 MiB): that costs a copy of the row per share. A kernel
            that uses several such arrays has all of them taken back, or none.
        path : path-like, optional
            Of a file in which the array lies, mapped into memory: a .npy file if the name ends so, else its
            bytes alone. It may be larger than memory, and takes no room on the disk until it is written to.
            What kernels write is in the file at once for other processes, and on the disk when a map ends.
        mode : {"x", "w", "r+", "a"}, optional
            "x" makes the file and refuses one that exists; "w" replaces one; "r+" opens one that exists, "a"
            that or else makes it. What a file that exists holds stays, without `fill`; shape, dtype
            and order are those of a .npy file if they are not given, and have to be the same if they are.

        Returns
        -------
        numpy.ndarray
            A shared array, see `ndshare.empty`.

        Raises
        ------
        TypeError
            If neither `shape` nor `like` is given; if `like` has no shape, or a dtype that NumPy has not;
            for object dtypes.
        ValueError
            For an unknown order; if `per_worker` and `per_block` are given together, or `rollback` without
            one of them; if a file holds another array, or the mode is none of these.
        FileExistsError, FileNotFoundError
            If `mode` does not allow it.
        CapacityError
            If memory, or the file system, has not so much room.

        Notes
        -----
        Arrays of every context are the same: what one has made, every other can map over.
        """
        if per_worker and per_block is not None:
            raise ValueError("alloc: per_worker and per_block exclude each other; give one of them")
        if rollback is not None and not per_worker and per_block is None:
            raise ValueError(
                f"alloc: rollback={rollback!r} is about rows; it goes with per_worker=True or per_block=n"
            )
        if per_block is not None:
            check_count("per_block", per_block, 1)

        def arranged() -> tuple[tuple[int, ...], np.dtype[Any], str]:
            given, kind, layout = resolved(shape, dtype, order, like)
            if per_worker:
                given = (self.num_workers, *given) if layout == "C" else (*given, self.num_workers)
            if per_block is not None:
                if not given:
                    raise ValueError(
                        "alloc: with per_block the first number of shape is the number of items; it is ()"
                    )
                given = (-(-given[0] // per_block), *given[1:])
            return given, kind, layout

        if path is None:
            if mode != "x":
                raise ValueError(f"alloc: mode={mode!r} is about a file; give its path as well")
            laid = arranged()
            array, layout = self._alloc(*laid), laid[2]
        else:
            free = shape is None and dtype is None and order is None and like is None
            array, layout, new = in_file(path, mode, arranged, free=free)
            if not new:
                fill = None
        if fill is not None:
            array[...] = fill
        if per_worker or per_block is not None:
            known_rows.note(array, layout, per_block, rollback)
        elif path is None:
            in_memory.note(array)
        return array

    def _alloc(self, shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> npt.NDArray[Any]:
        """Make an array of zeros that all workers can write to."""
        return _arrays.zeros(shape, dtype, cast("Literal['C', 'F']", order))

    # ------------------------------------------------------------------ map

    def map(
        self,
        kernel: Kernel,
        functor: object,
        *,
        progress: bool | Progress = False,
        on_error: Literal["raise", "collect"] = "raise",
        timeout: float | None = None,
        retries: int = 0,
        seed: int | None = None,
        shares: int | None = None,
        trace: bool = False,
        align: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> MapReport:
        """Call ``kernel(worker_id, index, value)`` for every item of a collection.

        Page: docs/map.md.

        Parameters
        ----------
        kernel : callable
            Any callable; what it returns is dropped. It writes its results to arrays from `alloc`.
        functor : Functor or collection
            What to map over; see `ndshare.functors`.
        progress : bool or callable, optional
            Show a progress bar, or call ``progress(finished, all)``.
        on_error : {"raise", "collect"}, optional
            After the first error, begin nothing more and raise it; or go on and put the errors in the report.
        timeout : float, optional
            Seconds for one item. A worker that takes longer is killed; the item fails with `TimeoutError`.
        retries : int, optional
            How often an item is tried again whose *worker died*. One that raises is never tried again.
        seed : int, optional
            Of `ndshare.item_rng`.
        shares : int, optional
            Cut the collection into so many shares of equal length, instead of by the time that items take.
        trace : bool, optional
            Note when each share ran, for `MapReport.plot`.
        align : int, array with chunks, or list of these, optional
            Let no share end within so many items, or within a chunk (a shard) of this zarr array or HDF5
            dataset: what the kernel writes to it is written a chunk at a time. Zarr arrays that the kernel
            captures and that have as many rows as there are items are respected by themselves.
        checkpoint : path-like, optional
            Of a file that has what is done, item by item, and rows per worker or per block: after a kill of
            all processes the same call does what is left. Results have to be in arrays from ``alloc(path=)``,
            in rows, or in files of the kernel's own. The file is removed when the map has come to its end.

        Returns
        -------
        MapReport

        Raises
        ------
        Exception
            What the kernel raised for the first item that failed, with a note of its index.
        TypeError
            If the kernel uses something that cannot be sent to workers.
        """
        check_runs("kernel", kernel, "; it comes first: map(kernel, functor)")
        if on_error not in ("raise", "collect"):
            raise ValueError(f"on_error must be 'raise' or 'collect', got {on_error!r}")
        if timeout is not None:
            check_seconds("timeout", timeout)
            if not self.can_kill:
                raise ValueError(
                    f"timeout={timeout!r}: a {type(self).__name__} cannot end an item that takes too long; "
                    "use a ProcessContext"
                )
        check_count("retries", retries, 0)
        if shares is not None:
            check_count("shares", shares, 1)
        if seed is not None:
            check_count("seed", seed, 0)
        check_align(align)
        options = mapping.Options(
            on_error, timeout, retries, seed, shares, trace, progress_of(progress), align, checkpoint
        )
        return mapping.run(self, kernel, functors.find(functor), options)

    def reduce(self, array: npt.NDArray[Any], op: Callable[[Any, Any], Any] = np.add) -> Any:
        """Combine the rows of an array made with ``per_worker`` or ``per_block``.

        Parameters
        ----------
        array : ndarray
            From `alloc`.
        op : ufunc or callable, optional
            Takes two rows and returns one; by default they are added.

        Returns
        -------
        ndarray or scalar
            An ordinary array without the axis of the rows.

        Raises
        ------
        ValueError
            If `array` was not made with ``per_worker`` or ``per_block``, or is only a part of it.

        Notes
        -----
        Rows per block are combined as a fixed tree: the bits of the result depend on neither the number of
        workers nor timing. Those of floating-point rows per worker do, in the last places.
        """
        noted = known_rows.of(array)
        if noted is None:
            raise ValueError(
                "reduce takes a whole array that alloc(per_worker=True) or alloc(per_block=n) has made; for "
                "others use the ufunc's own reduce, such as np.add.reduce(array)"
            )
        order, per_block = noted
        axis = array.ndim - 1 if per_block is None and order == "F" else 0
        return reduce_rows(array, op, axis, tree=per_block is not None)


class SerialContext(MapContext):
    """Maps run in the calling thread, one item after the other.

    Page: docs/map.md.

    Parameters
    ----------
    *_ignored, **_options
        Those of other contexts are accepted and ignored: there is one worker.
    """

    def __init__(self, *_ignored: object, **_options: object) -> None:
        super().__init__(1)

    def make_workers(self, job: Job, tell: Callable[[], None]) -> tuple[MapWorkers, str]:
        """See `MapContext`."""
        return Caller(job, tell), ""


class ThreadContext(MapContext):
    """Maps run in threads of this process, made for each map.

    Page: docs/map.md.

    Parameters
    ----------
    num_workers : int, optional
        By default the number of processors.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        super().__init__(default_workers() if num_workers is None else num_workers)

    def make_workers(self, job: Job, _tell: Callable[[], None]) -> tuple[MapWorkers, str]:
        """See `MapContext`."""
        return Threads(job), ""
