"""Bytes that are named by their hash: a large content by those of its chunks, which are sent one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ndshare._memory import digest as digest_heap

Bytes = npt.NDArray[np.uint8]

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
    def of(cls, content: Bytes, digest: Callable[[Bytes], bytes] = digest_heap) -> Chunks:
        """Return those of a content; `digest` hashes each."""
        starts = range(0, max(1, content.size), CHUNK_BYTES)
        return cls(content.size, tuple(digest(content[start : start + CHUNK_BYTES]) for start in starts))

    @property
    def nbytes(self) -> int:
        """What this takes in a message."""
        return sum(map(len, self.parts))

    def digest(self) -> bytes:
        """Return the hash that stands for the content."""
        if len(self.parts) == 1:
            return self.parts[0]
        text = b"".join((b"chunks", self.size.to_bytes(8, "little"), *self.parts))
        return digest_heap(np.frombuffer(text, np.uint8))

    def places(self) -> Iterator[tuple[bytes, slice]]:
        """Yield hash and place of each chunk."""
        for number, digest in enumerate(self.parts):
            start = number * CHUNK_BYTES
            yield digest, slice(start, min(start + CHUNK_BYTES, self.size))

    def contents(self, content: Bytes) -> dict[bytes, Content]:
        """Return by hash all that can be sent of a content: itself, or this list and the chunks."""
        found: dict[bytes, Content] = {part: content[place] for part, place in self.places()}
        return found if len(self.parts) == 1 else found | {self.digest(): self}


Content = Bytes | Chunks


def parts_of(digest: bytes, contents: Mapping[bytes, Content]) -> set[bytes]:
    """Return the hash of a content, or of a large one those of its chunks."""
    content = contents.get(digest)
    return {*content.parts} if isinstance(content, Chunks) else {digest}
