"""How many bytes a map on a cluster has sent, for the variables that its kernel uses."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from ndshare._map import Traffic
from ndshare._map import account as account_captured
from ndshare._node import ShareTask
from ndshare._pickling import record
from ndshare._transport import CONTENT, Bytes, Content, Crate, Manifest, parts_of


class Tally:
    """Counts what the shares of one map carry."""

    def __init__(self) -> None:
        self._contents: collections.Counter[bytes] = collections.Counter()  # how often each was sent
        self._blocks: collections.Counter[int] = collections.Counter()  # bytes of rows and items of each
        self._parts = 0  # bytes of the items of shares

    def count(self, task: ShareTask, part: Crate | None) -> None:
        """Count a share; `part` has its items, if they are not in shared memory."""
        self._contents.update(task.contents.keys())
        for number, _, content in task.patches:
            self._blocks[number] += content.nbytes
        if part is not None:
            contents = task.contents
            large = set[bytes]().union(*(parts_of(digest, contents) for digest in part.contents()))
            self._parts += len(part.stream) + part.inline.nbytes
            self._parts += sum(contents[digest].nbytes for digest in large & contents.keys())

    def account(self, kernel: Any, functor: Any, manifest: Manifest, *, cut: bool) -> dict[str, Traffic]:
        """Return how many bytes of each variable, and of the collection, were sent.

        Parameters
        ----------
        kernel, functor
            Of the map.
        manifest : Manifest
            What its shares refer to.
        cut : bool
            Whether each share brings its own part of the functor.
        """
        known = _Known(manifest)

        def sent(value: object) -> Traffic | None:
            if cut and value is functor:
                return Traffic(0, 0, self._parts)
            try:
                return self._sum(known.crate(record(value)), known)
            except Exception:
                return None

        return account_captured(kernel, functor, sent)

    def _sum(self, crate: Crate, known: Manifest) -> Traffic:
        machines, shares = 0, len(crate.stream) + crate.inline.nbytes
        for number in crate.blocks():
            block = known.blocks[number]
            if number in self._blocks:
                shares += self._blocks[number]
            elif block.base is not None:
                machines += self._sent(block.base, known.contents)
        for where, digest, *_ in crate.pieces:
            if where == CONTENT:
                machines += self._sent(digest, known.contents)
        return Traffic(0, machines, shares)

    def _sent(self, digest: bytes, contents: Mapping[bytes, Content]) -> int:
        return sum(self._contents[part] * contents[part].nbytes for part in parts_of(digest, contents))


class _Known(Manifest):
    """A manifest that does not hash again what another one has hashed."""

    def __init__(self, other: Manifest) -> None:
        super().__init__()
        self.take_from(other)
        self._places = {
            _place(content): digest
            for digest, content in other.contents.items()
            if isinstance(content, np.ndarray)
        }

    def _hash(self, content: Bytes) -> bytes:
        return self._places.get(_place(content)) or super()._hash(content)


def _place(content: Bytes) -> tuple[int, int]:
    address: int = content.__array_interface__["data"][0]
    return address, content.nbytes
