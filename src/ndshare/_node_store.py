"""Contents that this process has been sent, by hash, in memory that its workers map copy-on-write."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable

import numpy as np

from ndshare._freight import Bytes
from ndshare._twins import make_segment

#: What is not needed by the share that runs is dropped beyond this, the oldest first.
_KEPT_BYTES = 4 << 30


class Store:
    """Contents by hash.

    A content that is needed by a share is kept until another map needs the room.
    """

    def __init__(self) -> None:
        self._held: collections.OrderedDict[bytes, Bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def lacks(self, needed: Iterable[bytes]) -> list[bytes]:
        """Return which of some contents are not here."""
        return [digest for digest in needed if digest not in self._held]

    def add(self, digest: bytes, content: Bytes) -> None:
        """Keep a content."""
        with self._lock:
            if digest in self._held:
                return
            block = make_segment(content.size)
            memory = block.array(np.uint8, (content.size,))
            memory[:] = content
            block.release()
            self._held[digest] = memory

    def get(self, digest: bytes) -> Bytes:
        """Return the memory of a content."""
        self._held.move_to_end(digest)
        return self._held[digest]

    def make_room(self, needed: set[bytes]) -> None:
        """Drop the oldest of what is not needed, as far as there is too much."""
        with self._lock:
            total = sum(memory.size for memory in self._held.values())
            for digest in [digest for digest in self._held if digest not in needed]:
                if total <= _KEPT_BYTES:
                    return
                total -= self._held.pop(digest).size
