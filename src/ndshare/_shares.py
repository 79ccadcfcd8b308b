"""What the caller of a map and the nodes of a cluster send each other: data that any engine pickles."""

from __future__ import annotations

import dataclasses
from typing import Any

from ndshare._freight import Bytes, Crate
from ndshare._twins import Change


@dataclasses.dataclass(slots=True)
class ShareTask:
    """Some items of a map, to be run on whichever node gets it.

    Attributes
    ----------
    map_id : str
        Of the map.
    name : str
        Of the kernel, for messages.
    start, end : int
        The items.
    first_worker, workers : int
        Numbers of its workers: the rows that are theirs.
    options : dict
        Fields of `ndshare._runner.Job`.
    crates : list of Crate
        What functions need of ``__main__``; the kernel and what it uses; the values of the share.
    blocks : dict
        Size and base (hash, or None for zeros) of each block, by number.
    patches : list of (int, int, ndarray of uint8)
        Block, place and content of what comes with this share.
    contents : dict
        Contents by hash, if the node lacks them.
    """

    map_id: str
    name: str
    start: int
    end: int
    first_worker: int
    workers: int
    options: dict[str, Any]
    crates: list[Crate]
    blocks: dict[int, tuple[int, bytes | None]]
    patches: list[tuple[int, int, Bytes]]
    contents: dict[bytes, Bytes] = dataclasses.field(default_factory=dict)

    def nbytes(self) -> int:
        """Return about how many bytes it takes in a message."""
        arrays = [*self.contents.values(), *(content for *_, content in self.patches)]
        arrays += [crate.inline for crate in self.crates]
        return sum(array.nbytes for array in arrays) + sum(len(crate.stream) for crate in self.crates)

    def needed(self) -> set[bytes]:
        """Return the hashes of all contents it refers to."""
        bases = {base for _, base in self.blocks.values() if base is not None}
        return bases.union(*(crate.contents() for crate in self.crates))


@dataclasses.dataclass(slots=True)
class ShareResult:
    """What became of a share.

    Attributes
    ----------
    node : str
        Where it ran.
    pid : int
        The engine's process there.
    lacks : list of bytes
        Hashes of contents that the node has not got; nothing was run then.
    mask : bytes
        State of each item, as on a `ndshare._board.Board`.
    changes : list of Change
        What was written.
    outcome : Crate or None
        Reports, errors and deaths of the workers.
    failure : Crate or None
        What kept the share from running at all: exception and traceback.
    address : object
        Where the engine finds this process, if it can be told.
    """

    node: str
    pid: int
    lacks: list[bytes] = dataclasses.field(default_factory=list)
    mask: bytes = b""
    changes: list[Change] = dataclasses.field(default_factory=list)
    outcome: Crate | None = None
    failure: Crate | None = None
    address: Any = None
