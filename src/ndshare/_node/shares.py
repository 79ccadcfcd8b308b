"""What a caller and the nodes of a cluster send each other: plain data that any engine can pickle."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ndshare._node.twins import Change
from ndshare._processes import TaskOptions
from ndshare._transport import CARRIED_MAX, Bytes, Chunks, Content, Crate


@functools.cache
def _values_getter(kind: Any) -> Callable[[Any], tuple[Any, ...]]:
    return operator.attrgetter(*(field.name for field in dataclasses.fields(kind) if not field.kw_only))


@dataclasses.dataclass(slots=True)
class CallTask:
    """A function and its arguments, to be called on whichever node gets it.

    Attributes
    ----------
    map_id : str
        Of the map or workspace it belongs to; empty for a single call.
    name : str
        Of the kernel or function, for messages.
    crates : list of Crate
        What functions need of ``__main__``; the function and what it uses; for a map the values of the share.
    blocks : dict
        Size and base (hash, or None for zeros) of each block, by number.
    contents : dict
        Contents by hash, if the node lacks them; of large ones the hashes of all chunks,
        and those chunks that it lacks.
    asked : TaskOptions
        Time limit, tries and priority of a call.
    """

    map_id: str
    name: str
    crates: list[Crate]
    blocks: dict[int, tuple[int, bytes | None]]
    contents: dict[bytes, Content]
    asked: TaskOptions = dataclasses.field(default=TaskOptions(), kw_only=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the names of the fields: each share is pickled, and goes through the engine's scheduler."""
        values = _values_getter(type(self))(self)  # type: ignore[arg-type]  # a class can be hashed
        if self.asked == TaskOptions():
            return type(self), values
        return type(self), values, (None, {"asked": self.asked})

    def load(self, known: Mapping[bytes, Content], lacking: Collection[bytes]) -> None:
        """Take along the contents that a node lacks, and those that are too small to ask for; no others."""
        self.contents = {}
        for digest in self.needed():
            content = known[digest]
            if isinstance(content, Chunks):
                self.contents[digest] = content
                self.contents |= {part: known[part] for part in content.parts if part in lacking}
            elif content.nbytes <= CARRIED_MAX or digest in lacking:
                self.contents[digest] = content

    def needed(self) -> set[bytes]:
        """Return the hashes of all contents it refers to, not of their chunks."""
        bases = {base for _, base in self.blocks.values() if base is not None}
        return bases.union(*(crate.contents() for crate in self.crates))

    def __sizeof__(self) -> int:
        """Tell an engine that counts what its processes hold."""
        return object.__sizeof__(self) + self.nbytes()

    def nbytes(self) -> int:
        """Return about how many bytes it takes in a message."""
        arrays = [*self.contents.values(), *(crate.inline for crate in self.crates)]
        return sum(array.nbytes for array in arrays) + sum(len(crate.stream) for crate in self.crates)


@dataclasses.dataclass(slots=True)
class BatchTask(CallTask):
    """Several calls of one function: two crates are the function's, two those of a list of arguments."""


@dataclasses.dataclass(slots=True)
class Script:
    """What does not change of a workspace.

    Attributes
    ----------
    crates : list of Crate
        What functions need of ``__main__``; values, initializer and its arguments.
    table : dict
        Image, place there and size of each block of the values, by its number.
    called : str
        Name of the initializer, for messages.
    options : dict
        Of the executor that a node makes for it.
    """

    crates: list[Crate]
    table: dict[int, tuple[int, int, int]]
    called: str
    options: dict[str, Any]


@dataclasses.dataclass(slots=True, frozen=True)
class Setting:
    """What a call of a workspace's function finds by name.

    Attributes
    ----------
    script : bytes
        Hash of the pickle of a `Script`.
    images : tuple of (int, bytes or None)
        Size and content (a hash, or None for zeros) of the memory in which the values lie.
    others : frozenset of bytes
        Hashes of contents that the crates of the script refer to.
    """

    script: bytes
    images: tuple[tuple[int, bytes | None], ...]
    others: frozenset[bytes]


@dataclasses.dataclass(slots=True)
class NamedTask(CallTask):
    """A call of a workspace's function; `map_id` is that of the workspace."""

    setting: Setting

    def needed(self) -> set[bytes]:
        """See `CallTask.needed`."""
        images = {base for _, base in self.setting.images if base is not None}
        return CallTask.needed(self) | images | {self.setting.script} | self.setting.others


@dataclasses.dataclass(slots=True)
class ShareTask(CallTask):
    """Some items of a map.

    Attributes
    ----------
    start, end : int
        The items.
    first_worker, workers : int
        Numbers of its workers: the rows that are theirs.
    options : dict
        Fields of `ndshare._map.job.Job`.
    patches : list of (int, int, ndarray of uint8)
        Block, place and content of what comes with this share.
    rows : list of (int, int, tuple, tuple)
        Block, place, shape and strides of rows per worker that the death of a worker takes back, as bytes.
    row_blocks : list of (int, int, tuple, tuple, int)
        The same of rows per block, and the items of each.
    """

    start: int
    end: int
    first_worker: int
    workers: int
    options: dict[str, Any]
    patches: list[tuple[int, int, Bytes]]
    rows: list[Any]
    row_blocks: list[Any]

    def nbytes(self) -> int:
        """See `CallTask.nbytes`."""
        return CallTask.nbytes(self) + sum(content.nbytes for *_, content in self.patches)


@dataclasses.dataclass(slots=True)
class TaskResult:
    """What became of a call or a share.

    Attributes
    ----------
    node : str
        Where it ran.
    machine : str
        The same, unambiguous: processes with this in common share memory.
    lacks : list of bytes
        Hashes of contents that the node has not got; nothing was run then.
    mask : bytes
        State of each item of a share, as on a `ndshare._system.board.Board`.
    changes : list of Change
        What was written.
    outcome : Crate or None
        What a function has returned; of a share, reports, errors and deaths of the workers.
    failure : Crate or None
        What a function has raised, or what kept a share from running at all: exception and traceback.
    unopened : bool
        Whether the function was not called at all, because it could not be unpickled.
    lost : tuple of (str, str)
        Name and kind of what a function has changed in vain.
    address : object
        Where the engine finds this process, if it can be told.
    """

    node: str
    machine: str
    lacks: list[bytes] = dataclasses.field(default_factory=list)
    mask: bytes = b""
    changes: list[Change] = dataclasses.field(default_factory=list)
    outcome: Crate | None = None
    failure: Crate | None = None
    unopened: bool = False
    lost: tuple[tuple[str, str], ...] = ()
    address: Any = None

    def __sizeof__(self) -> int:
        """Tell an engine that counts what its processes hold."""
        crates = [crate for crate in (self.outcome, self.failure) if crate is not None]
        inside = sum(len(crate.stream) + crate.inline.nbytes for crate in crates)
        changed = sum(change.nbytes for change in self.changes)
        return object.__sizeof__(self) + len(self.mask) + inside + changed
