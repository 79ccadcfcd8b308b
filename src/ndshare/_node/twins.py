"""A node's copy of the arrays that a map writes to, and what a share has changed in them.

::

    Twin ── work    what kernels see and write to, in shared memory of all workers of the node
        ├── base    what it held when the map began: zeros, or a content of the node's store
        └── patches what came with this share: rows per worker, items of a shared collection

    begin(patches) ──► kernels write ──► changes() ──► [Change] ──► the caller merges ──► reset()

A copy is a file with holes: what a share does not touch takes no memory and is not looked at. Where the base
is not zeros, all of it is compared. Large ones are unmapped as soon as they were looked at (`leave`): pages
that a process has mapped count as its own, and an engine may stop, or kill, what seems too large.

References
----------
Twins and diffs, several writers to one page: Keleher et al., TreadMarks, USENIX Winter 1994.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import mmap
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ndshare._memory import sparse
from ndshare._node import _twin
from ndshare._transport import Bytes

#: Compared at a time: what is found is sent in pieces of at most this size.
_PIECE_BYTES = 4 << 20
#: So much of a twin that is not `resident` is mapped at a time.
_MAPPED_BYTES = 64 << 20
#: Shorter runs than this, on average, are those of counts, labels and masks, which compress well.
_SHORT_RUN_BYTES = 16


def write(fd: int, content: Bytes, start: int) -> None:
    """Write into a segment as a file: it is not mapped for that, and fresh pages come faster so."""
    left = memoryview(content.data)
    while left:
        done = os.pwrite(fd, left, start)
        left, start = left[done:], start + done


def leave(memory: Bytes) -> None:
    """Unmap the pages of a whole block of shared memory; they are mapped again where they are looked at."""
    if memory.size:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.size), mmap.MADV_DONTNEED
        )


@dataclasses.dataclass(slots=True)
class Change:
    """What changed in a stretch of a block.

    Attributes
    ----------
    block, start, length : int
        Which stretch.
    runs : bytes
        Lengths of unchanged and changed runs, see `ndshare._node._twin`.
    data : ndarray of uint8
        The bytes of the changed ones.
    packed : int
        Which of the two are compressed: 1 the runs, 2 the data.
    """

    block: int
    start: int
    length: int
    runs: bytes
    data: Any
    packed: int

    @property
    def nbytes(self) -> int:
        """What it takes in a message."""
        return len(self.runs) + len(self.data)

    def merge(self, memory: Bytes) -> int:
        """Write what changed into a block; returns the number of bytes."""
        runs = zlib.decompress(self.runs) if self.packed & 1 else self.runs
        data = zlib.decompress(self.data) if self.packed & 2 else self.data
        return _twin.merge(memory[self.start : self.start + self.length].data, runs, data)


def find_changes(block: int, start: int, now: Bytes, before: Bytes | None) -> Change | None:
    """Compare a stretch with what it was (None: zeros); None if nothing has changed."""
    runs, data = _twin.changes(now.data, None if before is None else before.data)
    if not runs:
        return None
    packed = 0
    if len(data) < len(runs) * (_SHORT_RUN_BYTES // 2):
        packed = 3
        data = zlib.compress(data, 1)
    elif len(runs) * 50 > len(data):
        packed = 1
    if packed:
        runs = zlib.compress(runs, 1)
    return Change(block, start, now.size, runs, np.frombuffer(data, np.uint8), packed)


Patch = tuple[int, Bytes]  # where, what


class Twin:
    """A node's copy of one block.

    Parameters
    ----------
    number : int
        Of the block.
    nbytes : int
        Its size.
    base : ndarray of uint8 or None
        What it holds when a share begins; None: zeros.

    Attributes
    ----------
    resident : bool
        Whether what was looked at may stay mapped.
    """

    def __init__(self, number: int, nbytes: int, base: Bytes | None) -> None:
        self.number = number
        self.base = base
        self.resident = True
        self.block = sparse(nbytes, filled=base is not None)
        self.work: Bytes = self.block.array(np.uint8, (nbytes,))
        self._file = self.block.lend()
        self._patches: list[Patch] = []
        self._changes: list[Change] | None = None  # if it was looked since `begin`
        if base is not None:
            write(self._file, base, 0)
            leave(base)

    def view(
        self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...] | None
    ) -> np.ndarray[Any, Any]:
        """Return an array in it, by its lowest byte."""
        return self.block.array(dtype, shape, strides, offset)

    def begin(self, patches: list[Patch]) -> None:
        """Bring in what a share brings along."""
        self._patches = sorted(patches, key=lambda patch: patch[0])
        self._changes = None
        for start, content in self._patches:
            self.work[start : start + content.size] = content

    def changes(self) -> list[Change]:
        """Return what has changed since `begin`."""
        found = self._changes = []
        mapped = 0
        for start, end in self._touched():
            for low, high, before in self._pieces(start, end):
                change = find_changes(self.number, low, self.work[low:high], before)
                if change is not None:
                    found.append(change)
                mapped += high - low
                if mapped >= _MAPPED_BYTES:
                    mapped = self._leave()
        self._leave()
        return found

    def _leave(self) -> int:
        if not self.resident:
            for memory in (self.work, self.base):
                if memory is not None:
                    leave(memory)
        return 0

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, Bytes | None]]:
        """Cut a stretch where patches begin and end; yield each part and what it held before."""
        at = start
        for patch_start, content in [*self._patches, (end, np.empty(0, np.uint8))]:
            patch_end = patch_start + content.size
            while at < min(patch_start, end):
                high = min(patch_start, end, at + _PIECE_BYTES)
                yield at, high, None if self.base is None else self.base[at:high]
                at = high
            while patch_start <= at < min(patch_end, end):
                high = min(patch_end, end, at + _PIECE_BYTES)
                yield at, high, content[at - patch_start : high - patch_start]
                at = high

    def _touched(self) -> Iterator[tuple[int, int]]:
        """Yield the stretches that have memory at all."""
        size = self.work.size
        if self.base is not None:
            yield 0, size
            return
        at = 0
        while at < size:
            try:
                start = os.lseek(self._file, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing behind
                return
            at = os.lseek(self._file, start, os.SEEK_HOLE)
            if start < size:
                yield start, min(at, size)

    def reset(self) -> None:
        """Bring it back to the base; nobody has written to it since `changes`, if that was called."""
        if self.base is None:
            try:
                _punch(self._file, self.block.size)
            except OSError:  # the pages stay, then
                self.work[:] = 0
            return
        for change in self.changes() if self._changes is None else self._changes:
            stretch = slice(change.start, change.start + change.length)
            self.work[stretch] = self.base[stretch]
        for start, content in self._patches:
            self.work[start : start + content.size] = self.base[start : start + content.size]
        self._patches = []
        self._leave()

    def close(self) -> None:
        """Give its memory back, also that of workers which still have it mapped."""
        with contextlib.suppress(OSError):
            _punch(self._file, self.block.size)
        os.close(self._file)
        del self.work
        self.block.release()


def _punch(fd: int, size: int) -> None:
    with mmap.mmap(fd, size) as memory:
        memory.madvise(mmap.MADV_REMOVE)
