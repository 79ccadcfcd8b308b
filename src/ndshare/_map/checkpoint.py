"""The checkpoint of a map: its board is a file, so that what is done outlives the processes.

::

    file     identity of the map, and of the system's start
             board          written by the workers while they run: mask, savepoints, copies of rows per worker
             rows per block twice: as they were when the map began, and as ended shares have left them
             two copies     of the mask and of rows, in turn, made by the caller at intervals

    the same call, later
        same start of the system ──► the board itself: of shares that were open nothing is done
        another one              ──► the last copy that was made whole

A worker marks an item when the kernel has returned: what it wrote to a mapped file is in the page cache by
then, and whoever is killed, the board says of each item whether that is so. If the *system* ends, pages are
lost in any order. So the caller now and then copies the board, flushes the files of `alloc(path=)`, and then
the copy: it never says of an item that it is done whose results the disk does not have.

Guarantees
----------
- An item that is done is not run again, wherever all processes are killed; one that was running is, with its
  share if that had added to rows, and rows have each item once.
- After the end of the system the map goes on from the last copy.
- The file of another map is refused, and one that a process works with.

Not guaranteed
--------------
- What kernels write to other files is on the disk before a copy says so only if they flush it themselves.
- Two machines that share a file system do not see each other.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ndshare._arrays import filed_arrays, flush, in_file
from ndshare._map.rows import in_memory
from ndshare._map.savepoints import Blocks, Flat, Rows, restore_rows, save_rows
from ndshare._map.used import which_used
from ndshare._memory import block_of
from ndshare._pool import describe
from ndshare._system import UNDONE, Board, _wire, is_alive
from ndshare.functors import Functor

_MAGIC = "ndshare checkpoint 1"
_HEADER_BYTES = 4096
_COPIES_AT = _HEADER_BYTES - 64  # how many copies were made; its parity says which one holds
_PAGE = 4096

#: A copy is made so often, ...
_INTERVAL_S = 5.0
#: ... and takes at most this part of the time.
_PART = 20
_ATTEMPTS = 200
#: So long it may take until the workers of a caller that was killed are gone.
_PATIENCE_S = 10.0

_open: set[tuple[int, int]] = set()  # files that maps of this process work with


def _pages(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE


def _system_start() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def check_checkpoint(kernel: Callable[..., object], rows: Rows) -> None:
    """Refuse what a checkpoint could not bring back."""
    if rows.reason:
        raise ValueError(
            "map: a checkpoint needs rows that can be taken back, and this kernel uses some from "
            "alloc(..., rollback=False), or that are not whole; make them without"
        )
    if rows.workers and rows.blocks:
        raise ValueError(
            "map: a checkpoint keeps rows per worker or rows per block, and this kernel uses both; use one"
        )
    plain = [array for array in which_used(kernel, in_memory.all()) if array.flags.writeable]
    if plain:
        raise ValueError(
            f"map: the kernel uses an array from alloc() of shape {plain[0].shape} and dtype "
            f"{plain[0].dtype} that is in memory only: after a kill the checkpoint would say that its items "
            "are done, and their results would be gone. Give results a file, alloc(..., path=); make inputs "
            "with share(), or read-only by flags.writeable = False"
        )


class _Layout(NamedTuple):
    """Where things are in the file."""

    board: int
    before: int
    mirror: int
    copies: int
    copy: int  # bytes of each
    end: int

    @classmethod
    def of(cls, workers: int, items: int, kept: int, blocks: int) -> _Layout:
        board = _HEADER_BYTES
        before = board + _pages(Board.nbytes(workers, items, kept))
        mirror = before + _pages(blocks)
        copies = mirror + _pages(blocks)
        copy = _pages(items + workers * kept + blocks)
        return cls(board, before, mirror, copies, copy, copies + 2 * copy)


class Checkpoint:
    """The file of one map, new or gone on with.

    Parameters
    ----------
    path : path-like
        Where it is.
    kernel : callable
        Of the map.
    functor : Functor
        With a length.
    items, workers : int
        How many there are.
    rows : Rows
        That the kernel adds to. What they held when the map was killed is put into them.
    together : int
        Workers whose rows are saved as one.
    block : int
        No share begins within a block of so many items.
    seed : int or None
        Of the map.

    Attributes
    ----------
    board : Board
        Of the map, in the file.
    mirrors : tuple of ndarray
        See `Job`.
    rows : tuple of ndarray
        Rows per worker as they are saved.
    resumed : int
        How many items are done.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kernel: Callable[..., object],
        functor: Functor,
        items: int,
        workers: int,
        rows: Rows,
        together: int = 1,
        block: int = 1,
        seed: int | None = None,
    ) -> None:
        self._block = block
        self._memory: Any
        self._path = os.path.abspath(os.fspath(path))
        self._kernel = kernel
        self.rows = tuple(_together(flat, together) for flat in rows.workers)
        self._blocks = rows.blocks
        kept = sum(flat.shape[1] for flat in self.rows)
        self._facts: dict[str, Any] = {
            "magic": _MAGIC,
            "kernel": describe(kernel),
            "collection": type(functor).__qualname__,
            "items": items,
            "seed": seed,
            "files": sorted(_file_of(array) for array in which_used(kernel, filed_arrays())),
            "rows": [list(flat.shape) for flat in rows.workers],
            "blocks": [[list(flat.shape), per_block] for flat, per_block in rows.blocks],
        }
        self._more: dict[str, Any] = {
            "workers": workers,
            "kept": kept,
            "start": _system_start(),
            "pid": os.getpid(),
        }
        mask = self._go_on() if os.path.lexists(self._path) else None
        size = sum(flat.nbytes for flat, _ in rows.blocks)
        self._layout = layout = _Layout.of(workers, items, kept, size)
        self._begin(layout, mask)
        part = self._memory[layout.board : layout.board + Board.nbytes(workers, items, kept)]
        self.board = Board(part, workers, items, kept)
        self.resumed = 0 if mask is None else int(np.count_nonzero(mask))
        self.mirrors = tuple(_as_blocks(self._memory[layout.mirror :], rows.blocks))
        self._due = time.monotonic() + _INTERVAL_S

    # ------------------------------------------------------------------ going on

    def _go_on(self) -> NDArray[np.uint8]:
        """Put rows into what they were, and return which items are done."""
        with open(self._path, "rb") as file:
            status = os.fstat(file.fileno())
            key = status.st_dev, status.st_ino
            memory = np.fromfile(file, np.uint8)
        facts = _facts_of(memory, self._path)
        for name, what in (
            ("kernel", "the kernel"), ("collection", "the kind of the collection"),
            ("items", "the number of items"), ("seed", "the seed"),
            ("files", "the files of alloc(path=)"), ("rows", "rows per worker"), ("blocks", "rows per block"),
        ):  # fmt: skip
            if facts.get(name) != self._facts[name]:
                raise ValueError(
                    f"map: the checkpoint {self._path!r} is of another map: {what} was {facts.get(name)!r}, "
                    f"and is {self._facts[name]!r} now. Give the map that it belongs to, or remove the file"
                )
        if self.rows and (facts["workers"], facts["kept"]) != (self._more["workers"], self._more["kept"]):
            raise ValueError(
                f"map: the checkpoint {self._path!r} has rows of {facts['workers']} workers, and the context "
                f"has {self._more['workers']}; make one with as many"
            )
        self._wait_for_others(facts, memory, key)
        with open(self._path, "rb") as file:  # now that nobody writes there
            memory = np.fromfile(file, np.uint8)
        layout = _Layout.of(
            facts["workers"], facts["items"], facts["kept"], sum(flat.nbytes for flat, _ in self._blocks)
        )
        if memory.size < layout.end:
            raise ValueError(f"map: {self._path!r} is no checkpoint: it was cut off; remove it")
        if facts["start"] == self._more["start"]:
            return self._from_board(facts, layout, memory)
        return self._from_copy(facts, layout, memory)

    def _wait_for_others(self, facts: dict[str, Any], memory: Flat, key: tuple[int, int]) -> None:
        """Wait until the processes that had worked with the file are gone."""
        if key in _open:
            raise ValueError(f"map: another map of this process works with the checkpoint {self._path!r}")
        if facts["start"] != self._more["start"]:
            return
        layout = _Layout.of(facts["workers"], facts["items"], facts["kept"], 0)
        nbytes = Board.nbytes(facts["workers"], facts["items"], facts["kept"])
        board = Board(
            memory[layout.board : layout.board + nbytes], facts["workers"], facts["items"], facts["kept"]
        )
        pids = {board.pid_of(worker_id) for worker_id in range(board.num_workers)} | {facts["pid"]}
        deadline = time.monotonic() + _PATIENCE_S
        for pid in pids - {0, os.getpid()}:
            while _works_with(pid, key[1]):
                if pid == facts["pid"] or time.monotonic() > deadline:
                    raise ValueError(
                        f"map: process {pid} works with the checkpoint {self._path!r}; wait for its end"
                    )
                time.sleep(0.01)

    def _from_board(self, facts: dict[str, Any], layout: _Layout, memory: Flat) -> NDArray[np.uint8]:
        workers, items, kept = facts["workers"], facts["items"], facts["kept"]
        part = memory[layout.board : layout.board + Board.nbytes(workers, items, kept)]
        board = Board(part, workers, items, kept)
        for worker_id in range(workers):
            holds, is_open = board.savepoint(worker_id)
            if is_open:
                board.reopen(*board.share_of(worker_id))
            if self.rows:
                restore_rows(self.rows, worker_id, board.saves[worker_id, holds])
        mask = board.done().astype(np.uint8)
        self._restore_blocks(mask, memory[layout.before :], memory[layout.mirror :])
        return mask

    def _from_copy(self, facts: dict[str, Any], layout: _Layout, memory: Any) -> NDArray[np.uint8]:
        workers, items, kept = facts["workers"], facts["items"], facts["kept"]
        number = _wire.load_u64(memory, _COPIES_AT)
        if not number:
            return np.zeros(items, np.uint8)  # nothing was ever copied: from the beginning
        copy = memory[layout.copies + layout.copy * (number & 1) :]
        mask: NDArray[np.uint8] = (copy[:items] == 1).astype(np.uint8)
        saved = copy[items : items + workers * kept].reshape(workers, kept)
        for worker_id in range(workers if self.rows else 0):
            restore_rows(self.rows, worker_id, saved[worker_id])
        self._restore_blocks(mask, memory[layout.before :], copy[items + workers * kept :])
        return mask

    def _restore_blocks(self, mask: NDArray[np.uint8], before: Flat, after: Flat) -> None:
        """Put into rows per block what they hold if all of a block is done, else what they held at first."""
        olds, news = _as_blocks(before, self._blocks), _as_blocks(after, self._blocks)
        unit = math.lcm(*(per_block for _, per_block in self._blocks)) if self._blocks else 1
        for start in range(0, len(mask), unit) if unit > 1 else ():
            part = mask[start : start + unit]
            part[:] = part.all()  # in one piece, or not at all
        for (flat, per_block), old, new in zip(self._blocks, olds, news, strict=True):
            whole = np.maximum.reduceat(mask, np.arange(0, len(mask), per_block)) if len(mask) else mask
            flat[: len(whole)] = np.where(whole[:, None, None] == 1, new[: len(whole)], old[: len(whole)])

    # ------------------------------------------------------------------ writing

    def _begin(self, layout: _Layout, mask: NDArray[np.uint8] | None) -> None:
        """Make the file, and give it its name when it is whole."""
        folder, name = os.path.split(self._path)
        other = os.path.join(folder, f".{name}.{secrets.token_hex(6)}")
        self._memory, _, _ = in_file(other, "x", lambda: ((layout.end,), np.dtype(np.uint8), "C"), free=False)
        try:
            text = json.dumps({**self._facts, **self._more}).encode()
            if len(text) > _COPIES_AT:
                raise ValueError(
                    f"map: a checkpoint of {len(self._blocks) + len(self.rows)} arrays: too many"
                )
            self._memory[: len(text)] = np.frombuffer(text, np.uint8)
            nbytes = Board.nbytes(self._more["workers"], self._facts["items"], self._more["kept"])
            board = Board(
                self._memory[layout.board : layout.board + nbytes],
                self._more["workers"], self._facts["items"], self._more["kept"],
            )  # fmt: skip
            if mask is not None:
                board.mask[:] = mask
                board.count(0, int(np.count_nonzero(mask)))
                undone = np.flatnonzero(mask == UNDONE)
                first = int(undone[0]) // self._block * self._block if undone.size else len(mask)
                board.skip(first)
            for worker_id in range(board.num_workers):
                save_rows(self.rows, worker_id, board.saves[worker_id, 0])
            for at in (layout.before, layout.mirror):
                for (flat, _), copy in zip(
                    self._blocks, _as_blocks(self._memory[at:], self._blocks), strict=True
                ):
                    copy[...] = flat
            self._copy_board(board, layout, 1)
            for array in which_used(self._kernel, filed_arrays()):
                flush(array)
            flush(self._memory)
            _wire.store_u64(self._memory, _COPIES_AT, 1)
            flush(self._memory)
            if mask is None:
                os.link(other, self._path)
                os.unlink(other)
            else:
                os.rename(other, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(other)
            raise
        status = os.stat(self._path)
        self._key = status.st_dev, status.st_ino
        _open.add(self._key)

    def _copy_board(self, board: Board, layout: _Layout, number: int) -> bool:
        """Copy mask and rows as they are together at one moment; False if that was not to be had."""
        copy = self._memory[layout.copies + layout.copy * (number & 1) :]
        items, kept = board.items, board.kept
        workers = range(board.num_workers)
        paused = bool(self.rows or self._blocks)
        if paused:
            board.pause(on=True)
        try:
            for attempt in range(_ATTEMPTS):
                words = [board.word(worker_id) for worker_id in workers]
                mask = board.mask.copy()
                shares = [board.share_of(worker_id) for worker_id in workers]
                for worker_id in workers if kept else ():
                    at = items + worker_id * kept
                    copy[at : at + kept] = board.saves[worker_id, words[worker_id] >> 1 & 1]
                at = items + len(workers) * kept
                size = sum(flat.nbytes for flat, _ in self._blocks)
                copy[at : at + size] = self._memory[layout.mirror : layout.mirror + size]
                if not paused or words == [board.word(worker_id) for worker_id in workers]:
                    for word, (start, end) in zip(words, shares, strict=True):
                        if paused and word & 1:
                            mask[start:end] = UNDONE
                    copy[:items] = mask
                    return True
                time.sleep(1e-4 * attempt)
            return False
        finally:
            if paused:
                board.pause(on=False)

    @property
    def wait_s(self) -> float:
        """In so many seconds `tick` has something to do."""
        return max(0.0, self._due - time.monotonic())

    def tick(self) -> None:
        """Copy the board, if it is time, and have the disk hold the results first."""
        began = time.monotonic()
        if began < self._due:
            return
        number = _wire.load_u64(self._memory, _COPIES_AT) + 1
        if self._copy_board(self.board, self._layout, number):
            for array in which_used(self._kernel, filed_arrays()):
                flush(array)
            flush(self._memory)
            _wire.store_u64(self._memory, _COPIES_AT, number)
            flush(self._memory)
        took = time.monotonic() - began
        self._due = time.monotonic() + max(_INTERVAL_S, _PART * took)

    def leave(self, *, complete: bool) -> None:
        """Remove the file if the map has come to its end; else it stays as it is."""
        _open.discard(self._key)
        if complete:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _together(flat: Flat, workers: int) -> Flat:
    """Return rows so that those of some workers are one; what is left over is one by itself."""
    if workers == 1 or len(flat) % workers:
        return flat
    return flat.reshape(len(flat) // workers, -1)


def _as_blocks(memory: Flat, blocks: Blocks) -> list[Flat]:
    """Return arrays in a stretch of memory, of the shapes that rows per block have."""
    found, at = [], 0
    for flat, _ in blocks:
        found.append(memory[at : at + flat.nbytes].reshape(flat.shape))
        at += flat.nbytes
    return found


def _facts_of(memory: Flat, path: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(memory[:_COPIES_AT].tobytes().rstrip(b"\0"))
        if facts["magic"] == _MAGIC and facts["pid"]:
            return facts
    except (ValueError, LookupError, TypeError):
        pass
    raise ValueError(f"map: {path!r} is no checkpoint of this version; remove it, or name another file")


def _file_of(array: NDArray[Any]) -> list[int]:
    """Return number and size of the file that an array is."""
    found = block_of(array)
    if found is None:
        return [0, 0]
    fd = found[0].lend()
    try:
        status = os.fstat(fd)
        return [status.st_ino, status.st_size]
    finally:
        os.close(fd)


def _works_with(pid: int, inode: int) -> bool:
    """Whether a process has a file in its memory."""
    if not is_alive(pid):
        return False
    try:
        with open(f"/proc/{pid}/maps") as maps:
            return any(line.split(maxsplit=5)[4:5] == [str(inode)] for line in maps)
    except OSError:
        return False
