"""How an object gets from one process to another: pack, settle, send, unpack.

::

    sender                                                     receiver
    pack(obj) ─► Draft          pickle; arrays are only noted
        (a worker drops everything its task used here)
    draft.settle() ─► Parcel    copy ordinary arrays, lend
                                the others
    parcel.data, parcel.descriptors() ──► SEQPACKET socket ──► unpack(data, fds) ─► obj

Shared arrays go by reference: the message names segment, offset and strides. Ordinary arrays are
copied once, into recycled segments (`ndshare.staging`). A worker's result lies in a by-value segment
already (NumPy in a worker allocates there); it is lent without any copy if nothing in the worker can
still reach it.

Guarantees
----------
* What a receiver gets by value is its own: writable, and no other process writes there.
* The rules do not depend on size.
* A failure while packing leaves nothing allocated; `unpack` closes every descriptor it was given.
* Thread-safe.

Not guaranteed
--------------
* An ordinary array and a view of it arrive as two arrays, as with pickle. Views of one block in a
  worker's *result* keep sharing memory with each other.
"""

from __future__ import annotations

import gc
import marshal
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from ndshare import segments
from ndshare.errors import TransportError
from ndshare.layout import decode_dtype, encode_dtype, span, view_of
from ndshare.parcel import (
    BARE,
    BARE_TAG,
    INLINE,
    INLINE_MAX,
    RAW,
    READ_ONLY,
    STORED,
    STORED_HEAD,
    TABLE,
    TABLE_HEAD,
    Parcel,
    Piece,
    close_all,
    release,
)
from ndshare.pickling import Placed, Recording, by_value_modules, record
from ndshare.staging import aligned, copy_into, copy_strides, stage_arrays, stage_bytes

__all__ = ["INLINE_MAX", "Draft", "Parcel", "by_value_modules", "pack", "unpack"]

# The receiver copies smaller pieces: they would keep a whole segment from its owner.
_COPY_OUT_MAX = 64 * 1024
_COLLECT_MIN = 1 << 20  # held bytes that are worth a collection of the young generation
_LENT_BLOCKS_MAX = 128  # per message; beyond, small blocks are cheaper to copy than to map one by one
_PIECE_TABLE_BYTES = 64  # about what a piece takes in the table
_ORDINARY = (INLINE, 0, "", (), None, 0)


class Draft:
    """A pickled object whose arrays are noted but not copied yet.

    Attributes
    ----------
    needs : frozenset of str
        Names of the caller's ``__main__`` that the receiver must have.
    delivers : dict or None
        What `mainspace.deliver` sends with this draft; None for others.
    """

    __slots__ = ("_recording", "delivers", "needs")

    def __init__(self, recording: Recording, delivers: dict[str, object] | None = None) -> None:
        self._recording: Recording | None = recording
        self.needs = recording.needs
        self.delivers = delivers

    def settle(self, *, broadcast: bool = False) -> Parcel:
        """Copy or lend what was noted.

        Parameters
        ----------
        broadcast : bool
            The parcel goes to several receivers: they map its copies copy-on-write.

        Raises
        ------
        CapacityError
            If the memory for copies does not fit.
        """
        recording = self._recording
        if recording is None:
            raise ValueError(
                "Draft.settle: this draft is settled already; a parcel may be sent several times"
            )
        self._recording = None
        parts, notes = recording.parts, recording.notes
        del recording
        if not notes and len(parts) == 1 and len(parts[0]) < INLINE_MAX:
            return Parcel(BARE_TAG + parts[0], (), self.needs)
        return _Settling(notes, segments.COPY if broadcast else segments.VALUE).finish(parts, self.needs)


def pack(obj: object, *, lend_values: bool = False) -> Draft:
    """Pickle an object; copy nothing yet.

    Parameters
    ----------
    obj : object
        What to send.
    lend_values : bool
        For a worker's results: by-value memory that nobody here uses when the draft is settled is
        lent instead of copied.

    Raises
    ------
    Exception
        Whatever pickling raises.
    """
    return Draft(record(obj, lend=lend_values))


class _Settling:
    """One settling of a draft: decides for every note, then builds the parcel."""

    def __init__(self, notes: tuple[Any, ...], kind: int) -> None:
        self.kind = kind
        self.pieces: list[Piece] = [_ORDINARY] * len(notes)
        self.segments: list[tuple[int, int, int]] = []
        self.blocks: list[segments.Block] = []
        self.numbers: dict[int, int] = {}
        self.neighbours: dict[tuple[int, int], segments.Block] = {}
        self.nbytes_copied = 0
        self.nbytes_lent = 0
        self.copies: list[tuple[int, np.ndarray[Any, Any], int]] = []  # (piece, array, flags)
        returned: dict[tuple[int, int], list[tuple[int, Placed]]] = {}
        for number, note in enumerate(notes):
            if type(note) is Placed:
                if note.block.kind == segments.VALUE:
                    returned.setdefault((note.block.uid, note.block.offset), []).append((number, note))
                else:
                    self._refer(number, note, 0 if note.writeable else READ_ONLY)
            elif isinstance(note, np.ndarray):
                self.copies.append((number, note, 0))
            else:
                self.copies.append((number, np.frombuffer(note.raw(), np.uint8), RAW))
        if returned:
            self._settle_returned(list(returned.values()))

    def _segment(self, block: segments.Block, kind: int) -> int:
        number = self.numbers.get(block.uid)
        if number is None:
            number = self.numbers[block.uid] = len(self.segments)
            self.segments.append((block.uid, block.size, kind))
            self.blocks.append(block)
        elif block.offset != self.blocks[number].offset:
            self.neighbours[block.uid, block.offset] = block
        return number

    def _refer(self, number: int, note: Placed, flags: int) -> None:
        block = note.block
        segment = self._segment(block, block.kind)
        self.pieces[number] = (
            segment, block.offset + note.offset, note.dtype, note.shape, note.strides, flags
        )  # fmt: skip
        self.nbytes_lent += _nbytes(note)

    def _settle_returned(self, groups: list[list[tuple[int, Placed]]]) -> None:
        """Lend the blocks nobody can reach any more, as far as the result fills them; copy the rest."""
        worth = [group for group in groups if _covered(group) * 2 >= group[0][1].block.nbytes]
        if len(worth) > _LENT_BLOCKS_MAX:
            worth.sort(key=lambda group: -group[0][1].block.nbytes)
            del worth[_LENT_BLOCKS_MAX:]
        held = sum(group[0][1].block.nbytes for group in worth if group[0][1].block.users)
        if held > _COLLECT_MIN:
            gc.collect(0)  # cycles of the task: bound methods, tracebacks, closures that know themselves
        lent = set()
        for group in worth:
            if group[0][1].block.users == 0 and group[0][1].block.lendable:
                lent.add(id(group))
                for number, note in group:
                    self._refer(number, note, 0)
        for group in groups:
            if id(group) not in lent:
                for number, note in group:
                    array = view_of(
                        note.block, note.offset, decode_dtype(note.dtype), note.shape, note.strides
                    )
                    self.copies.append((number, array, 0))

    def finish(self, parts: tuple[bytes, ...], needs: frozenset[str]) -> Parcel:
        """Copy what has to be copied and put the parcel together."""
        stream_len = sum(map(len, parts))
        arrays = [array for _, array, _ in self.copies]
        self.nbytes_copied = sum(array.nbytes for array in arrays)
        small = (
            self.nbytes_copied + stream_len + _PIECE_TABLE_BYTES * (len(self.pieces) + len(arrays))
            < INLINE_MAX
        )
        if small:
            inline = self._copy_inline()
        else:
            inline = b""
            self._copy_staged(arrays)
        table = marshal.dumps((self.segments, self.pieces))
        head = TABLE_HEAD.pack(TABLE, len(table), stream_len)
        if len(head) + len(table) + stream_len + len(inline) <= INLINE_MAX:
            data = b"".join((head, table, *parts, inline))
        else:
            if inline:  # the table turned out longer than estimated
                self._copy_staged(arrays)
                table = marshal.dumps((self.segments, self.pieces))
            body = stage_bytes((table, *parts))
            data = STORED_HEAD.pack(
                STORED, body.uid, body.size, body.offset, self.kind, len(table), stream_len
            )
            self.blocks.insert(0, body)
        return Parcel(
            data,
            tuple(self.blocks),
            needs,
            self.nbytes_copied,
            self.nbytes_lent,
            tuple(self.neighbours.values()),
        )

    def _copy_inline(self) -> bytes | bytearray:
        if not self.copies:
            return b""
        room = bytearray(sum(aligned(array.nbytes) for _, array, _ in self.copies))
        offset = 0
        for number, array, flags in self.copies:
            strides = copy_strides(array)
            copy_into(room, offset, strides, array)
            self.pieces[number] = (INLINE, offset, encode_dtype(array.dtype), array.shape, strides, flags)
            offset += aligned(array.nbytes)
        return room

    def _copy_staged(self, arrays: list[np.ndarray[Any, Any]]) -> None:
        places = stage_arrays(arrays)
        for (number, array, flags), place in zip(self.copies, places, strict=True):
            self.pieces[number] = (
                self._segment(place.block, self.kind),
                place.block.offset + place.offset,
                encode_dtype(array.dtype),
                array.shape,
                place.strides,
                flags,
            )


def _nbytes(note: Placed) -> int:
    count = note.itemsize
    for n in note.shape:
        count *= n
    return count


def _covered(group: list[tuple[int, Placed]]) -> int:
    """Return how many bytes of their block some arrays fill; where they overlap, once."""
    if len(group) == 1:
        return _nbytes(group[0][1])
    extents = []
    for _, note in group:
        extents.append(
            (note.offset, note.offset + span(note.shape, note.strides, note.itemsize), _nbytes(note))
        )
    extents.sort()
    covered = 0
    start, end, filled = extents[0]
    for low, high, nbytes in extents[1:]:
        if low >= end:
            covered += min(filled, end - start)
            start, end, filled = low, high, nbytes
        else:
            end = max(end, high)
            filled += nbytes
    return covered + min(filled, end - start)


def unpack(data: bytes | bytearray | memoryview, fds: Sequence[int]) -> Any:
    """Rebuild the object of a parcel.

    Parameters
    ----------
    data : bytes-like
        `Parcel.data`; may be reused as soon as this returns.
    fds : sequence of int
        The descriptors of the parcel, in order. They are taken over: on any error, too, none is left.

    Raises
    ------
    TransportError
        If the message is not one of ours or has lost descriptors.
    Exception
        Whatever unpickling raises.
    """
    if data[0] == BARE:
        close_all(fds)
        return pickle.loads(memoryview(data)[1:])
    left = list(reversed(fds))
    try:
        with memoryview(data) as view:
            if data[0] == TABLE:
                _, table_len, stream_len = TABLE_HEAD.unpack_from(view)
                start = TABLE_HEAD.size
                return _rebuild(view[start:], table_len, stream_len, left)
            if data[0] != STORED:
                raise TransportError(
                    "a message was refused", f"its first byte is {data[0]}", "send parcels only"
                )
            _, uid, size, offset, kind, table_len, stream_len = STORED_HEAD.unpack_from(view)
        body = segments.attach(uid, size, kind, _next(left))
        try:
            with memoryview(body) as whole:
                start = offset - body.offset
                return _rebuild(whole[start : start + table_len + stream_len], table_len, stream_len, left)
        finally:
            release(body)
    finally:
        close_all(left)


def _next(fds: list[int]) -> int:
    if not fds:
        raise TransportError(
            "a message was refused",
            "it arrived without some of its descriptors",
            "raise the limit of open files (ulimit -n) or keep fewer arrays",
        )
    return fds.pop()


def _rebuild(body: memoryview, table_len: int, stream_len: int, fds: list[int]) -> Any:
    table, pieces = marshal.loads(body[:table_len])
    blocks: list[segments.Block] = []
    try:
        blocks.extend(segments.attach(uid, size, kind, _next(fds)) for uid, size, kind in table)
        by_value = [kind not in (segments.SHARED, segments.SEALED) for _, _, kind in table]
        copy_out = [v and segments.should_copy_out(b) for v, b in zip(by_value, blocks, strict=True)]
        inline = body[table_len + stream_len :]
        arrays = []
        for segment, offset, code, shape, strides, flags in pieces:
            dtype = decode_dtype(code)
            array: Any
            if segment == INLINE:
                array = _copied(view_of(inline, offset, dtype, shape, strides))
            else:
                block = blocks[segment]
                offset -= block.offset
                if by_value[segment] and (copy_out[segment] or _is_small(dtype, shape)):
                    array = _copied(view_of(block, offset, dtype, shape, strides))
                else:
                    array = block.array(dtype, shape, strides, offset)
                    if flags & READ_ONLY:
                        array.flags.writeable = False
            arrays.append(memoryview(array) if flags & RAW else array)
            del array
        arrays.reverse()
        return pickle.loads(body[table_len : table_len + stream_len], buffers=_handed_out(arrays))
    finally:
        for block in blocks:
            release(block)


def _copied(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.copy("C" if array.flags.c_contiguous else "K")  # "K" zeroes the strides of an empty array


def _handed_out(arrays: list[Any]) -> Any:
    while arrays:
        yield arrays.pop()


def _is_small(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    return nbytes < _COPY_OUT_MAX
