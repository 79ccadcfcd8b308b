"""The board of one map: what its workers and its caller tell each other, without a message per item.

::

    header   next item · stop · pause
    slot     one per worker: state · items done · when the item began · share · process · savepoint
    mask     one byte per item
    saves    of each worker two copies of its rows, if the map has any that a death takes back

The memory is one shared byte array for processes, an ordinary one for threads. `ndshare._map._loop` writes
the first three fields of a slot and the mask while it runs a share.

Guarantees
----------
- An item is handed out once: shares are cut off by one atomic addition.
- The mask is the truth. What is neither done nor failed when all workers have ended was never finished,
  wherever they died; the caller hands it out again.
- `kill` succeeds only while the worker is at that very item; the worker then begins no other.
- Of a worker's rows one copy is whole, and says what they held when the share that is open began, or hold if
  none is: the savepoint counts the shares that have ended, and its parity says which copy. It is counted up,
  by one store, after the other copy was written; and marked open, by one store, after the share was noted.
  So whoever is killed, at any instruction, either has its share begin again or has ended it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ndshare._system import _wire

if TYPE_CHECKING:
    import numpy.typing as npt

_NEXT_AT = 0
_STOP_AT = 8
_PAUSE_AT = 16
_HEADER_BYTES = 64
_SLOT_BYTES = 128

# Fields of a slot; the first three belong to the loop in C.
_STATE_AT = 0
_COUNT_AT = 8
_BEGAN_AT = 16
_START_AT = 24
_END_AT = 32
_PID_AT = 40
_SAVEPOINT_AT = 48

_RUNNING = 1
_KILLED = 2
_STATE_BITS = 2
_OPEN = 1
_ALIGNMENT = 64

UNDONE, DONE, FAILED = 0, 1, 2


class Board:
    """A board and who may write what where.

    Parameters
    ----------
    memory : ndarray
        Zeros, of `nbytes` bytes, dtype uint8.
    num_workers : int
        Slots.
    items : int
        Bytes of the mask.
    kept : int
        Bytes of the rows of one worker.
    """

    __slots__ = ("items", "kept", "memory", "num_workers")

    def __init__(self, memory: npt.NDArray[np.uint8], num_workers: int, items: int, kept: int = 0) -> None:
        self.memory: Any = memory
        self.num_workers = num_workers
        self.items = items
        self.kept = kept

    @classmethod
    def of_one(cls, items: int) -> Board:
        """Return a board for a single worker, in this process only."""
        return cls(np.zeros(cls.nbytes(1, items), np.uint8), 1, items)

    @staticmethod
    def nbytes(num_workers: int, items: int, kept: int = 0) -> int:
        """Return how much memory a board takes."""
        nbytes = _HEADER_BYTES + num_workers * _SLOT_BYTES + items
        return _aligned(nbytes) + 2 * num_workers * kept if kept else nbytes

    # ------------------------------------------------------------------ the whole map

    @property
    def mask_at(self) -> int:
        """Offset of the mask."""
        return _HEADER_BYTES + self.num_workers * _SLOT_BYTES

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """One byte per item: `UNDONE`, `DONE` or `FAILED`."""
        mask: npt.NDArray[np.uint8] = self.memory[self.mask_at : self.mask_at + self.items]
        return mask

    @property
    def saves(self) -> npt.NDArray[np.uint8]:
        """Two copies of the rows of each worker: an array of shape (workers, 2, kept)."""
        start = _aligned(self.mask_at + self.items)
        saves = self.memory[start : start + 2 * self.num_workers * self.kept]
        return saves.reshape(self.num_workers, 2, self.kept)  # type: ignore[no-any-return]

    @property
    def taken(self) -> int:
        """How many items have been handed out; may be larger than there are."""
        return _wire.load_u64(self.memory, _NEXT_AT)

    def take(self, count: int) -> int:
        """Hand out the next items; returns the first one."""
        return _wire.add_u64(self.memory, _NEXT_AT, count)

    def stop(self) -> None:
        """Begin no new share."""
        _wire.store_u64(self.memory, _STOP_AT, 1)

    def is_stopped(self) -> bool:
        """Whether no new share is to be begun."""
        return bool(_wire.load_u64(self.memory, _STOP_AT))

    def pause(self, *, on: bool) -> None:
        """Have workers wait before they close a share, or go on."""
        _wire.store_u64(self.memory, _PAUSE_AT, on)

    def is_paused(self) -> bool:
        """Whether no share is to be closed now."""
        return bool(_wire.load_u64(self.memory, _PAUSE_AT))

    def skip(self, items: int) -> None:
        """Hand out none of the first items."""
        _wire.store_u64(self.memory, _NEXT_AT, items)

    def finished(self) -> int:
        """How many items are done or have failed."""
        cells = [self.slot(worker_id) + _COUNT_AT for worker_id in range(self.num_workers)]
        return sum([_wire.load_u64(self.memory, cell) for cell in cells])

    # ------------------------------------------------------------------ one worker

    def slot(self, worker_id: int) -> int:
        """Offset of a worker's slot."""
        return _HEADER_BYTES + worker_id * _SLOT_BYTES

    def enter(self, pid: int) -> int:
        """Take a free slot; returns the worker's number. There is always one, see `leave`."""
        for worker_id in range(self.num_workers):
            if _wire.cas_u64(self.memory, self.slot(worker_id) + _PID_AT, 0, pid):
                return worker_id
        raise RuntimeError(f"all {self.num_workers} places of this map are taken")

    def leave(self, worker_id: int) -> None:
        """Give a slot back; the caller does it for a worker that has died."""
        slot = self.slot(worker_id)
        # The share is not that of the next one here. Its end first: killed in between it has no share, not
        # all items up to its end.
        for field in (_STATE_AT, _END_AT, _START_AT, _PID_AT):
            _wire.store_u64(self.memory, slot + field, 0)

    def begin(self, worker_id: int, start: int, end: int) -> None:
        """Note the share that a worker runs from now on."""
        slot = self.slot(worker_id)
        _wire.store_u64(self.memory, slot + _START_AT, start)
        _wire.store_u64(self.memory, slot + _END_AT, end)

    def word(self, worker_id: int) -> int:
        """Return a number that changes whenever a share is opened or closed."""
        return _wire.load_u64(self.memory, self.slot(worker_id) + _SAVEPOINT_AT)

    def savepoint(self, worker_id: int) -> tuple[int, bool]:
        """Return which copy of a worker's rows holds, and whether a share is open."""
        word = self.word(worker_id)
        return word >> 1 & 1, bool(word & _OPEN)

    def open(self, worker_id: int) -> None:
        """Say that a worker's rows are those of its copy no longer: the share that was noted has begun."""
        cell = self.slot(worker_id) + _SAVEPOINT_AT
        _wire.store_u64(self.memory, cell, _wire.load_u64(self.memory, cell) | _OPEN)

    def close(self, worker_id: int, *, saved: bool) -> None:
        """Say that no share is open.

        Parameters
        ----------
        worker_id : int
            Whose.
        saved : bool
            Whether the other copy has the rows as they are now; else the copy that was valid is.
        """
        cell = self.slot(worker_id) + _SAVEPOINT_AT
        word = _wire.load_u64(self.memory, cell) & ~_OPEN
        _wire.store_u64(self.memory, cell, word + 2 if saved else word)

    def share_of(self, worker_id: int) -> tuple[int, int]:
        """Return the share that a worker runs or has run last."""
        slot = self.slot(worker_id)
        return _wire.load_u64(self.memory, slot + _START_AT), _wire.load_u64(self.memory, slot + _END_AT)

    def worker_of(self, pid: int) -> int | None:
        """Return the number of the worker in a process."""
        for worker_id in range(self.num_workers):
            if pid and _wire.load_u64(self.memory, self.slot(worker_id) + _PID_AT) == pid:
                return worker_id
        return None

    def pid_of(self, worker_id: int) -> int:
        """Return the process of a worker; 0 if the slot is free."""
        return _wire.load_u64(self.memory, self.slot(worker_id) + _PID_AT)

    def current(self, worker_id: int) -> int | None:
        """Return the item a worker is at, or was at when it ended; None between shares."""
        state = _wire.load_u64(self.memory, self.slot(worker_id) + _STATE_AT)
        return state >> _STATE_BITS if state & (_RUNNING | _KILLED) else None

    def fail(self, worker_id: int, index: int) -> None:
        """Note that an item has failed."""
        self.memory[self.mask_at + index] = FAILED
        _wire.add_u64(self.memory, self.slot(worker_id) + _COUNT_AT, 1)

    def began(self, worker_id: int) -> int:
        """Return when the current item began, in monotonic nanoseconds."""
        return _wire.load_u64(self.memory, self.slot(worker_id) + _BEGAN_AT)

    def kill(self, worker_id: int, index: int) -> bool:
        """Claim a worker for death, if it still is at an item."""
        cell = self.slot(worker_id) + _STATE_AT
        return _wire.cas_u64(
            self.memory, cell, index << _STATE_BITS | _RUNNING, index << _STATE_BITS | _KILLED
        )

    def killed(self, worker_id: int) -> bool:
        """Whether a worker was claimed for death."""
        return bool(_wire.load_u64(self.memory, self.slot(worker_id) + _STATE_AT) & _KILLED)

    # ------------------------------------------------------------------ what is left

    def done(self) -> npt.NDArray[np.bool_]:
        """Return which items are done, as of now."""
        done: npt.NDArray[np.bool_] = self.mask == DONE
        return done

    def undone(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the stretches of a range that are neither done nor failed."""
        empty = np.flatnonzero(self.mask[start:end] == UNDONE)
        if not empty.size:
            return []
        breaks = np.flatnonzero(np.diff(empty) > 1) + 1
        return [(start + int(run[0]), start + int(run[-1]) + 1) for run in np.split(empty, breaks)]

    def reopen(self, start: int, end: int) -> int:
        """Take back that items of a range are done; returns how many were. Those that failed have failed."""
        mask = self.mask[start:end]
        done = mask == DONE
        mask[done] = UNDONE
        return int(np.count_nonzero(done))

    def count(self, worker_id: int, items: int) -> None:
        """Count items for a worker; fewer, if the number is negative."""
        _wire.add_u64(self.memory, self.slot(worker_id) + _COUNT_AT, items)

    def __reduce__(self) -> tuple[Any, ...]:
        return Board, (self.memory, self.num_workers, self.items, self.kept)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


# ---------------------------------------------------------------------- memory for the next board

#: A shared board has at least so much memory, whatever it needs, so that the next one may have it too.
_LEAST_BYTES = 4096

# Of the last map, and the process it belongs to: a forked child must not use its parent's. Fresh pages cost
# more than a short map does. `ndshare.shutdown` lets go of it.
_spares: list[tuple[int, npt.NDArray[np.uint8]]] = []


def spare_size(nbytes: int) -> int:
    """Return how much memory to make for a board that needs so much."""
    return max(2 * nbytes, _LEAST_BYTES)


def take_spare(nbytes: int) -> npt.NDArray[np.uint8] | None:
    """Return memory of an earlier board, if there is some of about this size."""
    try:
        owner, memory = _spares.pop()
    except IndexError:
        return None
    fits = nbytes <= memory.nbytes <= 4 * nbytes + _LEAST_BYTES
    return memory if fits and owner == os.getpid() else None


def keep_spare(memory: npt.NDArray[np.uint8]) -> None:
    """Keep the memory of a board that nobody uses any more."""
    _spares[:] = [(os.getpid(), memory)]


def drop_spares() -> None:
    """Let go of it."""
    _spares.clear()
