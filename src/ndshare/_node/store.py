"""Contents by hash: each is once on this machine, in memory that workers map copy-on-write.

A large one lies there in one piece, and comes in chunks: only those that no other content here has.

Guarantees
----------
- What is kept beyond what the last task needs is bounded, for all processes of the machine together.
- It does not count as memory of this process: an engine that watches its processes would see it grow, and
  stop giving them tasks. Contents are written as files; what is read of them is unmapped again.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ndshare._memory import SHARED, Block, attach, block_of, sparse, stats
from ndshare._node.link import Link, Offer
from ndshare._node.twins import leave, write
from ndshare._transport import Bytes, Chunks, Content


class Store:
    """Contents that this process has mapped. Used by one thread at a time.

    Attributes
    ----------
    limit : int
        What is not needed by the task that runs is dropped, the oldest first, as long as the processes of
        this machine keep more bytes than this: a quarter of what there is.
    """

    def __init__(self) -> None:
        self.limit = 2 * stats().idle_limit  # which is an eighth of the memory of machine or container
        self._grown = False
        self._held: collections.OrderedDict[bytes, Bytes] = collections.OrderedDict()
        self._chunks: dict[bytes, Chunks] = {}  # of those that have several
        self._link = Link(self._offers)

    def _offers(self) -> Iterator[Offer]:
        for digest, memory in list(self._held.items()):
            block = _block_of(memory)
            yield digest, block.lend(), memory.size, block.uid
            block.release()

    def lacks(self, needed: Iterable[bytes], brought: Mapping[bytes, Content]) -> list[bytes]:
        """Return what to send of some contents, or of their chunks; all others are mapped here now.

        Parameters
        ----------
        needed : iterable of bytes
            Hashes of contents.
        brought : mapping of bytes to Content
            What has come with them.
        """
        lacks: list[bytes] = []
        # In one order everywhere: else two processes that fetch one each would wait for each other.
        for digest in sorted(set(needed) - self._held.keys()):
            content = brought.get(digest)
            if isinstance(content, Chunks):
                lacks += self._assemble(digest, content, brought)
            elif content is not None:
                self._add(digest, content.size, [(slice(None), content)])
            elif not self._fetch(digest):
                lacks.append(digest)
        return lacks

    def _assemble(self, digest: bytes, chunks: Chunks, brought: Mapping[bytes, Content]) -> list[bytes]:
        """Put a content together, from what has come and what contents here have in common with it.

        Returns the chunks to send, if some are neither: those that have come now once more, because the next
        process that is asked may not be this one.
        """
        came = brought.keys() & set(chunks.parts)
        if not came and self._fetch(digest):
            self._chunks[digest] = chunks
            return []
        known = {
            part: self._held[whole][place]
            for whole, others in self._chunks.items()
            for part, place in others.places()
        }
        known |= {part: brought[part] for part in came}  # type: ignore[misc]
        lacks = set(chunks.parts) - known.keys()
        if lacks:
            return sorted(lacks | came)
        self._add(digest, chunks.size, [(place, known[part]) for part, place in chunks.places()])
        for whole in self._chunks:
            leave(self._held[whole])
        self._chunks[digest] = chunks
        return []

    def _fetch(self, digest: bytes) -> bool:
        found = self._link.find(digest)
        if found is None:
            return False
        fd, size, uid = found
        self._keep(digest, attach(uid, os.fstat(fd).st_size, SHARED, fd), size)
        return True

    def _keep(self, digest: bytes, block: Block, size: int) -> Bytes:
        memory = self._held[digest] = block.array(np.uint8, (size,))
        block.release()
        self._grown = True
        return memory

    def _add(self, digest: bytes, size: int, pieces: list[tuple[slice, Bytes]]) -> None:
        """Keep a content, for all of this machine."""
        block = _block_of(self._keep(digest, sparse(size, filled=True), size))
        fd = block.lend()
        try:
            for place, content in pieces:
                write(fd, content, place.start or 0)
            self._link.offer(digest, fd, size, block.uid)
        finally:
            os.close(fd)
            block.release()

    def get(self, digest: bytes) -> Bytes:
        """Return the memory of a content."""
        self._held.move_to_end(digest)
        return self._held[digest]

    def drop(self, digest: bytes) -> None:
        """Let go of a content; who uses its memory keeps it."""
        self._chunks.pop(digest, None)
        if self._held.pop(digest, None) is not None:
            self._link.withdraw(digest)

    @property
    def nbytes(self) -> int:
        """What this process keeps."""
        return sum(memory.size for memory in list(self._held.values()))

    def make_room(self, needed: set[bytes]) -> bool:
        """Drop the oldest of what is not needed, as far as there is too much; False if there still is."""
        if not self._grown:
            return True
        for digest in [digest for digest in self._held if digest not in needed]:
            if self._fits():
                break
            self.drop(digest)
        self._grown = not self._fits()
        return not self._grown

    def _fits(self) -> bool:
        if self.nbytes > self.limit:
            return False
        total = self._link.total()
        return total is None or total <= self.limit

    def release(self, needed: set[bytes]) -> None:
        """Drop all that is not needed."""
        for digest in self._held.keys() - needed:
            self.drop(digest)


def _block_of(memory: Bytes) -> Block:
    found = block_of(memory)
    assert found is not None
    return found[0]
