"""Decides, for every array of a message, whether it is lent or copied, and builds the parcel.

Shared memory is referred to. By-value memory, in a worker's result, is lent if nothing in this process
can reach it any more and if the result fills at least half of it: a row of a table must not keep the
table. All else is copied, into the message while everything fits there, else into staged segments.

`Settling` does it for everything. Two kinds of message, far more frequent than all others, have a shorter
way: one large array and nothing else out of band (`settle_alone` saves a fifteenth of what a task with 2 MB
takes: right after a large copy, when nothing is in the caches any more, each step that is not taken counts),
and nothing but references to a few segments (`settle_references`).
"""

from __future__ import annotations

import gc
import marshal
from typing import Any

import numpy as np

from ndshare._memory import (
    COPY,
    SEALED,
    SHARED,
    VALUE,
    Block,
    block_of,
    decode_dtype,
    encode_dtype,
    span,
    stage,
    view_of,
)
from ndshare._pickling import ALONE_STREAM, Descriptor, Placed
from ndshare._transport.parcel import (
    ALONE,
    ALONE_HEAD,
    COPIED_BELOW,
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
    release,
)
from ndshare._transport.staging import OWN_MIN, aligned, copy_into, copy_strides, stage_arrays, stage_bytes

_COLLECT_MIN = 1 << 20  # held bytes that are worth a collection of the young generation
_LENT_BLOCKS_MAX = 128  # per message; beyond, small blocks are cheaper to copy than to map one by one
_PIECE_TABLE_BYTES = 64  # about what a piece takes in the table
_REFERENCES_MOST = 16  # arrays; they and a short pickle fit into a message for certain
_TABLE_MAX = 4096  # bytes; more than what describes one array, unless its dtype is pickled
_ORDINARY = (INLINE, 0, "", (), None, 0)


def settle_alone(note: Any, stream: bytes, needs: frozenset[str]) -> Parcel | None:
    """Settle a pickle that asks for one array.

    Parameters
    ----------
    note : numpy.ndarray or Placed
        The array that is to be copied, or where it lies.
    stream : bytes
        The pickle.
    needs : frozenset of str
        See `ndshare._transport.parcel.Parcel`.

    Returns
    -------
    Parcel or None
        None for what the general way has to decide: small arrays, shared ones, results in use.

    Raises
    ------
    CapacityError, SegmentError
        As `ndshare._transport.transport.Draft.settle`.
    """
    if type(note) is Placed:
        block = note.block
        if (
            stream is not ALONE_STREAM
            or note.nbytes < COPIED_BELOW
            or note.nbytes * 2 < block.nbytes
            or block.users
            or not block.lendable
            or type(note.dtype) is bytes
        ):
            return None
        place = block.uid, block.size, block.offset + note.offset
        data = _message((*place, note.dtype, note.shape, note.strides), b"")
        return Parcel(data, (block,), needs, 0, note.nbytes)
    if type(note) is not np.ndarray or note.nbytes < OWN_MIN or len(stream) > INLINE_MAX - _TABLE_MAX:
        return None
    code = encode_dtype(note.dtype)
    if type(code) is bytes:
        return None
    block = stage(note.nbytes)
    try:
        strides = copy_strides(note)
        copy_into(block, 0, strides, note)
        data = _message((block.uid, block.size, block.offset, code, note.shape, strides), stream)
    except BaseException:
        release(block)
        raise
    return Parcel(data, (block,), needs, note.nbytes)


def _message(table: tuple[Any, ...], stream: bytes) -> bytes:
    body = marshal.dumps(table)
    return b"".join((ALONE_HEAD.pack(ALONE, len(body)), body, stream))


def settle_references(notes: tuple[Any, ...], stream: bytes, needs: frozenset[str]) -> Parcel | None:
    """Settle what refers to a few segments of shared memory and to nothing else, as most kernels do.

    Parameters
    ----------
    notes : tuple
        What `ndshare._pickling.recording.Recording` has.
    stream : bytes
        The pickle.
    needs : frozenset of str
        See `ndshare._transport.parcel.Parcel`.

    Returns
    -------
    Parcel or None
        None for what `Settling` has to decide: anything that is not shared memory, many arrays or long
        pickles, several blocks of one segment.
    """
    if len(notes) > _REFERENCES_MOST or len(stream) > INLINE_MAX // 2:
        return None
    blocks: dict[int, Block] = {}
    table: list[tuple[int, int, int]] = []
    pieces: list[Piece] = []
    nbytes = 0
    for note in notes:
        if type(note) is not Placed or note.private:
            return None
        block = note.block
        uid, kind = block.uid, block.kind
        if kind == VALUE or uid in blocks or type(note.dtype) is bytes:
            return None
        pieces.append(
            (
                len(table),
                block.offset + note.offset,
                note.dtype,
                note.shape,
                note.strides,
                0 if note.writeable else READ_ONLY,
            )
        )
        table.append((uid, block.size, kind))
        blocks[uid] = block
        nbytes += note.nbytes
    body = marshal.dumps((table, pieces))
    data = b"".join((TABLE_HEAD.pack(TABLE, len(body), len(stream)), body, stream))
    return Parcel(data, tuple(blocks.values()), needs, 0, nbytes)


def _placed_array(note: Placed) -> np.ndarray[Any, Any]:
    return view_of(note.block, note.offset, decode_dtype(note.dtype), note.shape, note.strides)


class Settling:
    """One settling of a draft: decides for every note, then builds the parcel."""

    def __init__(self, notes: tuple[Any, ...], kind: int, *, frozen: bool = False) -> None:
        self.kind = kind
        self.frozen = READ_ONLY if frozen else 0
        self.pieces: list[Piece] = [_ORDINARY] * len(notes)
        self.segments: list[tuple[int, int, int]] = []
        self.blocks: list[Any] = []  # of segments; and Descriptors
        self.numbers: dict[tuple[int, int], int] = {}
        self.neighbours: dict[tuple[int, int], Block] = {}
        self.nbytes_copied = 0
        self.nbytes_lent = 0
        self.copies: list[tuple[int, np.ndarray[Any, Any], int]] = []  # (piece, array, flags)
        returned: dict[tuple[int, int], list[tuple[int, Placed]]] = {}
        for number, note in enumerate(notes):
            if type(note) is Placed:
                if frozen and note.block.kind == SHARED:
                    self.copies.append((number, _placed_array(note), READ_ONLY))
                elif not note.private and note.block.kind == VALUE:
                    returned.setdefault((note.block.uid, note.block.offset), []).append((number, note))
                else:
                    self._refer(number, note, self.frozen if note.writeable else READ_ONLY)
            elif isinstance(note, np.ndarray):
                self.copies.append((number, note, self.frozen))
            elif type(note) is Descriptor:
                self.pieces[number] = (len(self.blocks), *_ORDINARY[1:])
                self.segments.append((0, 0, note.kind))
                self.blocks.append(note)
            else:
                self._add_buffer(number, note)
        if returned:
            self._settle_returned(list(returned.values()))

    def _segment(self, block: Block, kind: int) -> int:
        number = self.numbers.get((block.uid, kind))
        if number is None:
            number = self.numbers[block.uid, kind] = len(self.segments)
            self.segments.append((block.uid, block.size, kind))
            self.blocks.append(block)
        elif block.offset != self.blocks[number].offset:
            self.neighbours[block.uid, block.offset] = block
        return number

    def _refer(self, number: int, note: Placed, flags: int) -> None:
        block = note.block
        segment = self._segment(block, COPY if note.private else block.kind)
        self.pieces[number] = (
            segment, block.offset + note.offset, note.dtype, note.shape, note.strides, flags
        )  # fmt: skip
        self.nbytes_lent += note.nbytes

    def _add_buffer(self, number: int, note: Any) -> None:
        """Refer to the bytes of some library's buffer, or note them to be copied."""
        data: np.ndarray[Any, Any] = np.frombuffer(note.raw(), np.uint8)
        found = block_of(data)
        if found is not None and found[0].kind in ((SEALED,) if self.frozen else (SHARED, SEALED)):
            placed = Placed(*found, data.dtype.str, 1, data.shape, data.strides, data.flags.writeable)
            self._refer(number, placed, RAW if placed.writeable else RAW | READ_ONLY)
        else:
            self.copies.append((number, data, RAW | self.frozen))

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
                self.copies += [(number, _placed_array(note), self.frozen) for number, note in group]

    def finish(self, parts: tuple[bytes, ...], needs: frozenset[str]) -> Parcel:
        """Copy what has to be copied and put the parcel together."""
        stream_len = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        arrays = [array for _, array, _ in self.copies]
        self.nbytes_copied = sum([array.nbytes for array in arrays])
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


def _covered(group: list[tuple[int, Placed]]) -> int:
    """Return how many bytes of their block some arrays fill; where they overlap, once."""
    if len(group) == 1:
        return group[0][1].nbytes
    extents = []
    for _, note in group:
        extents.append(
            (note.offset, note.offset + span(note.shape, note.strides, note.itemsize), note.nbytes)
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
