"""What rows per worker and per block hold when a share begins, so that the death of its worker takes it back.

::

    worker   note the share ─► open ─► items ─► copy the rows ─► close: this copy holds from now on
                                │ killed anywhere here
    caller   rows from the copy that holds ─► items of the share are not done ─► closed ─► handed out again

A worker has two copies of its rows, see `ndshare._system.board`. Of rows per block one copy is enough, taken
when the map begins: a block belongs to one share, and a share is run again as a whole.

Guarantees
----------
- Each item is in the rows once, if it is done, and not at all, if it is not; whoever is killed, and when.

Not guaranteed
--------------
- What the items of such a share have written elsewhere is written again. An item that *raises* has not died:
  what it had added by then stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndshare._map.job import Job
from ndshare._map.rows import known_rows
from ndshare._map.used import which_used
from ndshare._memory import readable_bytes
from ndshare._system import Board

Flat = NDArray[np.uint8]
"""The bytes of rows: shape (rows, bytes of each), of rows per block (rows, pieces, bytes of each)."""
Blocks = tuple[tuple[Flat, int], ...]
"""Rows per block, and the items of each."""

_LOOK_S = 1e-4
#: Longer than a copy takes; after that the caller sees by itself that it has to begin again.
_PAUSE_MOST_S = 5.0


class Rows:
    """The rows that a map adds to and keeps, or why it keeps none.

    Parameters
    ----------
    workers : tuple of ndarray
        Rows per worker.
    blocks : tuple of (ndarray, int)
        Rows per block.
    reason : str
        Why what dead workers have added to rows is not taken back; empty if it is, or if there are none.
    """

    def __init__(self, workers: tuple[Flat, ...] = (), blocks: Blocks = (), reason: str = "") -> None:
        self.workers = workers
        self.blocks = blocks
        self.reason = reason

    @property
    def nbytes(self) -> int:
        """Bytes of the rows of one worker."""
        return sum(flat.shape[1] for flat in self.workers)


NO_ROWS = Rows()


def rows_to_keep(kernel: Callable[..., object], *, asked: bool = False) -> Rows:
    """Return the rows that a kernel uses, if all are to be kept: a share runs again for all or none.

    Parameters
    ----------
    kernel : callable
        Of the map.
    asked : bool, optional
        Whether large ones are kept as well.
    """
    known = known_rows.all()
    if not known:
        return NO_ROWS
    workers, blocks = [], []
    for array in which_used(kernel, known):
        noted = known_rows.of(array)
        if noted is None or not array.nbytes:
            continue
        order, per_block = noted
        backwards = order == "F" and array.flags.f_contiguous
        dense: NDArray[Any] = np.asarray(array.T if backwards else array)
        if not (known_rows.keeps(array, asked=asked) and dense.flags.c_contiguous):
            size = readable_bytes(array.nbytes // array.shape[-1 if backwards and per_block is None else 0])
            return Rows(
                reason=f"rows of {size} are not kept, so what a worker that dies had added for its last item "
                "stays; alloc(…, rollback=True) keeps them"
            )
        content = dense.reshape(-1).view(np.uint8)
        if per_block is None:
            workers.append(content.reshape(len(dense), -1))
        elif backwards:  # of a row each element lies by itself
            blocks.append((content.reshape(-1, len(array), array.itemsize).transpose(1, 0, 2), per_block))
        else:
            blocks.append((content.reshape(len(dense), 1, -1), per_block))
    return Rows(tuple(workers), tuple(blocks))


class Savepoint:
    """A worker's copies of its rows.

    Parameters
    ----------
    board : Board
        Has the copies.
    rows : sequence of ndarray
        Of all workers.
    worker_id : int
        Which one.
    blocks, mirrors
        As of a `Job` with a checkpoint.
    """

    def __init__(
        self,
        board: Board,
        rows: Sequence[Flat],
        worker_id: int,
        blocks: Blocks = (),
        mirrors: Sequence[Flat] = (),
    ) -> None:
        self._board = board
        self._worker_id = worker_id
        self._rows = rows
        self._saves = board.saves[worker_id]
        self._mirrored = list(zip(blocks, mirrors, strict=False))  # without a checkpoint there are none

    def open(self) -> None:
        """Begin the share that was noted."""
        self._board.open(self._worker_id)

    def close(self) -> None:
        """End it: all of its items have added what they add."""
        board, worker_id = self._board, self._worker_id
        holds, _ = board.savepoint(worker_id)
        save_rows(self._rows, worker_id, self._saves[1 - holds])
        if self._mirrored:
            start, end = board.share_of(worker_id)
            for (flat, items), mirror in self._mirrored:
                part = slice(start // items, -(-end // items))
                mirror[part] = flat[part]
        deadline = time.monotonic() + _PAUSE_MOST_S
        while board.is_paused() and time.monotonic() < deadline:  # the caller copies what is on the board
            time.sleep(_LOOK_S)
        board.close(worker_id, saved=True)


def save_rows(rows: Sequence[Flat], worker_id: int, copy: Flat) -> None:
    """Copy the rows of a worker."""
    at = 0
    for flat in rows:
        if worker_id < len(flat):
            copy[at : at + flat.shape[1]] = flat[worker_id]
        at += flat.shape[1]


def restore_rows(rows: Sequence[Flat], worker_id: int, copy: Flat) -> None:
    """Copy them back."""
    at = 0
    for flat in rows:
        if worker_id < len(flat):
            flat[worker_id] = copy[at : at + flat.shape[1]]
        at += flat.shape[1]


class Rollback:
    """Takes back what workers that died have added to rows.

    Parameters
    ----------
    job : Job
        The map; none of its workers has begun.
    """

    def __init__(self, job: Job) -> None:
        self._board = job.board
        self._rows = job.rows
        self._blocks = [(flat, items, flat.copy()) for flat, items in job.blocks]
        for worker_id in range(self._board.num_workers):
            save_rows(self._rows, worker_id, self._board.saves[worker_id, 0])

    def undo(self, worker_id: int) -> tuple[int, int] | None:
        """Take back the share that a dead worker had begun; returns its items, None if it had ended all."""
        board = self._board
        holds, is_open = board.savepoint(worker_id)
        if not is_open:
            return None
        start, end = board.share_of(worker_id)
        restore_rows(self._rows, worker_id, board.saves[worker_id, holds])
        for flat, items, before in self._blocks:
            part = slice(start // items, -(-end // items))
            flat[part] = before[part]
        board.count(worker_id, -board.reopen(start, end))
        board.close(worker_id, saved=False)
        return start, end

    def whole(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return ranges of items that are not done so that each block is in one of them."""
        if not self._blocks:
            return ranges
        found: list[tuple[int, int]] = []
        block = int(np.lcm.reduce([items for _, items, _ in self._blocks]))
        for start, end in ranges:
            low, high = start // block * block, min(-(-end // block) * block, self._board.items)
            if found and low < found[-1][1]:
                found[-1] = found[-1][0], high
            else:
                found.append((low, high))
        return found
