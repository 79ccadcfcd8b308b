"""How an object of one machine gets to another: its arrays by content, what lies in shared memory by number.

::

    caller                                    node                                    worker there
    Manifest.crate(recording) ─► Crate ─────► unpacked(…): arrays on the node's ────► open_crate
       │  pickle, small arrays                memory, by reference or
       │                                      copy-on-write
       ├─ blocks     shared memory of the caller, by number; each node has a copy
       └─ contents   bytes by their 128-bit hash, large ones chunk by chunk; each node gets them once

Bytes are named by their hash, a large content by those of its chunks, which are sent one by one. The nodes'
own processes never unpickle what is in a crate: only workers have the caller's ``__main__``.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ndshare._memory import SHARED, Block, available, block_of, decode_dtype, digest, encode_dtype, view_of
from ndshare._pickling import Descriptor, Placed, Recording, record
from ndshare._transport.parcel import RAW, READ_ONLY
from ndshare._transport.staging import aligned, copy_into, copy_strides
from ndshare.errors import CapacityError, TransportError

if TYPE_CHECKING:
    import numpy.typing as npt

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

CHUNK_BYTES = 64 << 20
"""Contents of more bytes are sent in chunks: of one that has changed in one place, only that chunk."""


@dataclasses.dataclass(slots=True, frozen=True)
class Chunks:
    """The chunks of a content; on a node they lie together again.

    Attributes
    ----------
    size : int
        Of all of them together.
    parts : tuple of bytes
        Their hashes. Of a content that is not large it is one: its own.
    """

    size: int
    parts: tuple[bytes, ...]

    @classmethod
    def of(cls, content: Bytes, hash_of: Callable[[Bytes], bytes] = digest) -> Chunks:
        """Return those of a content; `hash_of` hashes each."""
        starts = range(0, max(1, content.size), CHUNK_BYTES)
        return cls(content.size, tuple(hash_of(content[start : start + CHUNK_BYTES]) for start in starts))

    @property
    def nbytes(self) -> int:
        """What this takes in a message."""
        return sum(map(len, self.parts))

    def digest(self) -> bytes:
        """Return the hash that stands for the content."""
        if len(self.parts) == 1:
            return self.parts[0]
        text = b"".join((b"chunks", self.size.to_bytes(8, "little"), *self.parts))
        return digest(np.frombuffer(text, np.uint8))

    def places(self) -> Iterator[tuple[bytes, slice]]:
        """Yield hash and place of each chunk."""
        for number, part in enumerate(self.parts):
            start = number * CHUNK_BYTES
            yield part, slice(start, min(start + CHUNK_BYTES, self.size))

    def contents(self, content: Bytes) -> dict[bytes, Content]:
        """Return by hash all that can be sent of a content: itself, or this list and the chunks."""
        found: dict[bytes, Content] = {part: content[place] for part, place in self.places()}
        return found if len(self.parts) == 1 else found | {self.digest(): self}


Content = Bytes | Chunks


def parts_of(key: bytes, contents: Mapping[bytes, Content]) -> set[bytes]:
    """Return the hash of a content, or of a large one those of its chunks."""
    content = contents.get(key)
    return {*content.parts} if isinstance(content, Chunks) else {key}


BLOCK, CONTENT, INLINE = "block", "content", "inline"

CARRIED_MAX = 64 * 1024
"""Arrays up to this size travel with each share; larger ones once per node, for a hash and a message."""

# One array: where it is, block number or hash or None, lowest byte, dtype code, shape, strides, flags.
Piece = tuple[str, Any, int, str | bytes, tuple[int, ...], tuple[int, ...] | None, int]


def _no_bytes() -> Bytes:
    return np.zeros(0, np.uint8)


@dataclasses.dataclass(slots=True)
class Crate:
    """A pickled object and the places of its arrays.

    Attributes
    ----------
    stream : bytes
        The pickle; it asks for the arrays in their order.
    pieces : list of tuple
        Where each of them is.
    inline : ndarray of uint8, optional
        Small ones.
    """

    stream: bytes
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    inline: Bytes = dataclasses.field(default_factory=_no_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without arrays it takes little more than the pickle: there are three in each share."""
        return Crate, (self.stream, self.pieces, self.inline)[: 3 if self.inline.size else 2]

    def blocks(self) -> set[int]:
        """Return the numbers of the blocks it refers to."""
        return {key for where, key, *_ in self.pieces if where == BLOCK}

    def contents(self) -> set[bytes]:
        """Return the hashes of the contents it refers to."""
        return {key for where, key, *_ in self.pieces if where == CONTENT}


class SharedBlock:
    """Shared memory of the caller that a map may write to.

    Attributes
    ----------
    memory : ndarray of uint8
        All of it.
    base : bytes or None
        Hash of what it held when the map began; None: zeros, or what comes with each share.
    kept : bool
        Whether that was looked at.
    """

    __slots__ = ("base", "kept", "memory")

    def __init__(self, memory: Bytes) -> None:
        self.memory = memory
        self.base: bytes | None = None
        self.kept = False


class Manifest:
    """Everything that one map or call sends by number or by hash.

    Parameters
    ----------
    inline_max : int, optional
        Arrays up to so many bytes travel with the object.
    """

    def __init__(self, inline_max: int = CARRIED_MAX) -> None:
        self._inline_max = inline_max
        self.blocks: list[SharedBlock] = []
        self.contents: dict[bytes, Content] = {}
        self._numbers: dict[tuple[int, int], int] = {}

    def extended(self) -> Manifest:
        """Return one that has all of this one, to which more can be added."""
        more = Manifest(self._inline_max)
        more.take_from(self)
        return more

    def take_from(self, other: Manifest) -> None:
        """Refer to all that another one refers to; numbers stay the same."""
        self.blocks = list(other.blocks)
        self.contents = dict(other.contents)
        self._numbers = dict(other._numbers)

    def block_number(self, block: Block) -> int:
        """Return the number of a block of shared memory."""
        key = block.uid, block.offset
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.blocks)
            self.blocks.append(SharedBlock(block.array(np.uint8, (block.nbytes,))))
        return number

    def find(self, array: npt.NDArray[Any]) -> tuple[int, int] | None:
        """Return block number and offset of an array, if it is in a block that the map refers to."""
        found = block_of(array)
        if found is None:
            return None
        block, low = found
        number = self._numbers.get((block.uid, block.offset))
        return None if number is None else (number, low)

    def blocks_of(self, crates: Iterable[Crate]) -> dict[int, tuple[int, bytes | None]]:
        """Return size and base of the blocks that crates refer to, by number."""
        used: set[int] = set().union(*(crate.blocks() for crate in crates))
        return {
            number: (self.blocks[number].memory.size, self.blocks[number].base) for number in sorted(used)
        }

    def keep(self, number: int) -> None:
        """Note what a block holds now: nodes begin with it."""
        block = self.blocks[number]
        if block.kept:
            return
        block.kept = True
        if is_zero(block.memory):
            return
        if (room := available())[0] < block.memory.size:
            raise CapacityError(block.memory.size, *room)
        content = block.memory.copy()  # while the map runs, results are merged into the block itself
        block.base = self.add(content)

    def keep_all(self) -> None:
        """Note what all blocks hold that were not looked at."""
        for number in range(len(self.blocks)):
            self.keep(number)

    def add(self, content: Bytes) -> bytes:
        """Note a content; returns its hash."""
        chunks = Chunks.of(content, self._hash)
        for key, part in chunks.contents(content).items():
            self.contents.setdefault(key, part)
        return chunks.digest()

    def _hash(self, content: Bytes) -> bytes:
        return digest(content)

    def crate(self, recording: Recording) -> Crate:
        """Return a recorded object with the places of its arrays."""
        pieces: list[Piece] = []
        small: list[tuple[int, npt.NDArray[Any], int]] = []
        for note in recording.notes:
            flags = 0
            if isinstance(note, Placed):
                if note.block.kind == SHARED and self._inline_max < sys.maxsize:
                    place = self.block_number(note.block), note.offset, note.dtype, note.shape, note.strides
                    pieces.append((BLOCK, *place, 0 if note.writeable else READ_ONLY))
                    continue
                flags = 0 if note.writeable else READ_ONLY
                array = view_of(note.block, note.offset, decode_dtype(note.dtype), note.shape, note.strides)
            elif isinstance(note, np.ndarray):
                array = note
            elif isinstance(note, Descriptor):
                raise TypeError(
                    "an open file, such as those of an ndshare.Queue, a pipe or a socket, was to go to other "
                    "machines; these join processes of one machine: write results into an array from alloc"
                )
            else:
                array, flags = np.frombuffer(note.raw(), np.uint8), RAW
            strides = copy_strides(array)
            code = encode_dtype(array.dtype)
            if array.nbytes > self._inline_max:
                key = self.add(_bytes_of(array, strides))
                pieces.append((CONTENT, key, 0, code, array.shape, strides, flags))
            else:
                small.append((len(pieces), array, flags))
                pieces.append((INLINE, None, 0, code, array.shape, strides, flags))
        inline = np.zeros(sum(aligned(array.nbytes) for _, array, _ in small), np.uint8)
        offset = 0
        for number, array, flags in small:
            _, _, _, code, shape, strides, _ = pieces[number]
            copy_into(inline, offset, strides, array)
            pieces[number] = INLINE, None, offset, code, shape, strides, flags
            offset += aligned(array.nbytes)
        return Crate(b"".join(recording.parts), pieces, inline)


def is_zero(memory: Bytes) -> bool:
    """Whether all bytes are 0."""
    whole = memory.size & -8
    step = 1 << 20
    words = memory[:whole].view(np.uint64)
    return not memory[whole:].any() and not any(
        words[start : start + step].any() for start in range(0, len(words), step)
    )


def _bytes_of(array: npt.NDArray[Any], strides: tuple[int, ...] | None) -> Bytes:
    """Return the bytes of an array in the order of a dense copy; without a copy if they lie so."""
    if strides is None:
        return array.reshape(-1).view(np.uint8)
    if strides == array.strides:
        order = sorted(range(array.ndim), key=lambda axis: -strides[axis])
        return array.transpose(order).reshape(-1).view(np.uint8)
    content = np.empty(array.nbytes, np.uint8)
    copy_into(content, 0, strides, array)
    return content


# ---------------------------------------------------------------------- at the receiver


def arrays_of(crate: Crate, place: Callable[[Piece], Any]) -> list[tuple[Any, int]]:
    """Return the arrays of a crate and their flags; `place` makes those that are not inline."""
    found = []
    for piece in crate.pieces:
        where, _, offset, code, shape, strides, flags = piece
        if where == INLINE:
            found.append((view_of(crate.inline, offset, decode_dtype(code), shape, strides), flags))
        else:
            found.append((place(piece), flags))
    return found


def open_crate(stream: bytes, arrays: list[tuple[Any, int]]) -> Any:
    """Return the object of a crate."""
    return pickle.loads(stream, buffers=_handed_out(arrays))


def reply(content: object) -> Crate:
    """Pack something for the caller: its classes go back as their names, arrays as bytes."""
    return Manifest(sys.maxsize).crate(record(content, lend=True))


def open_reply(crate: Crate) -> Any:
    """Return the content of what a node has sent."""

    def place(piece: Piece) -> Any:
        raise TransportError(
            "a result of a cluster was refused", f"it refers to memory there ({piece[0]})", "return copies"
        )

    return open_crate(crate.stream, [(_own(array), flags) for array, flags in arrays_of(crate, place)])


def _own(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.copy("C" if array.flags.c_contiguous else "K")


def _handed_out(arrays: list[tuple[Any, int]]) -> Iterator[Any]:
    for array, flags in arrays:
        if flags & READ_ONLY:
            array.flags.writeable = False
        yield memoryview(array) if flags & RAW else array
