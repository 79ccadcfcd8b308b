"""Contents by hash: each is once on this machine, in memory that workers map copy-on-write."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator

import numpy as np

from ndshare import segments
from ndshare._freight import Bytes
from ndshare._node_link import Link, Offer
from ndshare._twins import make_segment

#: What is not needed by the share that runs is dropped beyond this, the oldest first.
_KEPT_BYTES = 4 << 30


class Store:
    """Contents that this process has mapped. Used by one thread at a time."""

    def __init__(self) -> None:
        self._held: collections.OrderedDict[bytes, Bytes] = collections.OrderedDict()
        self._link = Link(self._offers)

    def _offers(self) -> Iterator[Offer]:
        for digest, memory in list(self._held.items()):
            block = _block_of(memory)
            yield digest, block.lend(), memory.size, block.uid
            block.release()

    def lacks(self, needed: Iterable[bytes]) -> list[bytes]:
        """Return which of some contents are nowhere on this machine; the others are mapped here now."""
        # In one order everywhere: else two processes that fetch one each would wait for each other.
        return [digest for digest in sorted(needed) if digest not in self._held and not self._fetch(digest)]

    def _fetch(self, digest: bytes) -> bool:
        found = self._link.find(digest)
        if found is None:
            return False
        fd, size, uid = found
        self._keep(digest, segments.attach(uid, os.fstat(fd).st_size, segments.SHARED, fd), size)
        return True

    def _keep(self, digest: bytes, block: segments.Block, size: int) -> Bytes:
        memory = self._held[digest] = block.array(np.uint8, (size,))
        block.release()
        return memory

    def add(self, digest: bytes, content: Bytes) -> None:
        """Keep a content that was sent to this process, for all of this machine."""
        if digest in self._held:
            return
        memory = self._keep(digest, make_segment(content.size, filled=True), content.size)
        memory[:] = content
        block = _block_of(memory)
        fd = block.lend()
        try:
            self._link.offer(digest, fd, content.size, block.uid)
        finally:
            os.close(fd)
            block.release()

    def get(self, digest: bytes) -> Bytes:
        """Return the memory of a content."""
        self._held.move_to_end(digest)
        return self._held[digest]

    def drop(self, digest: bytes) -> None:
        """Let go of a content; who uses its memory keeps it."""
        if self._held.pop(digest, None) is not None:
            self._link.withdraw(digest)

    def make_room(self, needed: set[bytes]) -> None:
        """Drop the oldest of what is not needed, as far as there is too much."""
        total = sum(memory.size for memory in self._held.values())
        for digest in [digest for digest in self._held if digest not in needed]:
            if total <= _KEPT_BYTES:
                return
            total -= self._held[digest].size
            self.drop(digest)


def _block_of(memory: Bytes) -> segments.Block:
    found = segments.block_of(memory)
    assert found is not None
    return found[0]
