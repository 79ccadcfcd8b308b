"""A workspace in one process of an engine: its workers, which know the names, and the memory of the values.

The values are contents of the machine's store, held once there; each worker maps them copy-on-write. When
they have changed in the caller, workers stay, and bring in what is different (`ndshare._node.names`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._memory import block_of, sparse
from ndshare._node.names import Content, Give, Spot, Table, call_named
from ndshare._node.shares import NamedTask, Script
from ndshare._node.store import Store
from ndshare._node.worker import Named, Opened
from ndshare._pickling import CopyOnWrite, Placed
from ndshare._pool import ProcessPoolExecutor
from ndshare._processes import with_options
from ndshare._transport import BLOCK, Bytes, Piece, arrays_of

#: So many workspaces are kept, beside those that are at work.
_KEPT_MOST = 2


class NodeWorkspace:
    """What a process keeps of a workspace.

    Parameters
    ----------
    task : NamedTask
        The first one; the store has all that it needs.
    store : Store
        Of this process.
    place : callable
        Makes the arrays of crates that are not in blocks of the values.
    """

    def __init__(self, task: NamedTask, store: Store, place: Callable[[Piece], Any]) -> None:
        script: Script = pickle.loads(store.get(task.setting.script).tobytes())
        self.table: Table = script.table
        self._store = store
        self._first = [base for _, base in task.setting.images]
        self._bases = self._first
        self._running: set[concurrent.futures.Future[Any]] = set()
        memory = [
            (_zeros(nbytes) if base is None else store.get(base), base is not None)
            for nbytes, base in task.setting.images
        ]
        here = functools.partial(self.place, other=place)

        def content() -> Content:
            crates = [(crate.stream, arrays_of(crate, here)) for crate in script.crates]
            images = [
                (_copy_on_write(image), _read_only(image) if filled else None) for image, filled in memory
            ]
            return crates, images, self.table

        self._give = Give(content, script.called)
        self._executor = ProcessPoolExecutor(initializer=self._give, **script.options)

    def place(self, piece: Piece, other: Callable[[Piece], Any]) -> Any:
        """Return what stands for an array of a crate."""
        where, key, offset, code, shape, strides, _ = piece
        return (
            Spot(key, offset, code, shape, strides) if where == BLOCK and key in self.table else other(piece)
        )

    def call(self, task: NamedTask, crates: Opened) -> concurrent.futures.Future[Any]:
        """Have a worker call a function; called under the node's lock."""
        bases = [base for _, base in task.setting.images]
        if bases != self._bases:
            self._drop({*self._bases} - {*bases, *self._first})
            self._bases = bases
        new = {
            image: None if base is None else _read_only(self._store.get(base))
            for image, (base, first) in enumerate(zip(bases, self._first, strict=True))
            if base != first
        }
        named = with_options(Named(call_named, task.name), task.asked)
        call = self._executor.submit(named, tuple(bases), new, crates)
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        return call

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return not self._running

    def end(self) -> None:
        """End its workers, whatever they do; returns at once. Called in any thread."""
        if self.idle:
            self._executor.shutdown(wait=False)
        else:
            self._executor.kill_workers()
        self._give.end()  # it, the executor and this refer to each other

    def forget(self) -> None:
        """Let go of the values; called under the node's lock."""
        self._drop({*self._first, *self._bases})

    def needed(self) -> set[bytes]:
        """Return the contents of its values."""
        return {base for base in (*self._first, *self._bases) if base is not None}

    def _drop(self, bases: set[bytes | None]) -> None:
        for base in bases:
            if base is not None:
                self._store.drop(base)


class NodeWorkspaces:
    """The workspaces of a process: the last few, because most engines do not tell when one is left.

    Parameters
    ----------
    store : Store
        Of this process.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: collections.OrderedDict[str, NodeWorkspace] = collections.OrderedDict()

    def make_room(self, task: NamedTask) -> None:
        """End others, before it is looked what the store has for a task; called under the node's lock."""
        if task.map_id not in self._open:
            while len(self._open) >= _KEPT_MOST and self.end_idle():
                pass

    def find(self, task: NamedTask, place: Callable[[Piece], Any]) -> NodeWorkspace:
        """Return the workspace of a task; called under the node's lock."""
        found = self._open.get(task.map_id)
        if found is None:
            found = self._open[task.map_id] = NodeWorkspace(task, self._store, place)
        self._open.move_to_end(task.map_id)
        return found

    def needed(self) -> set[bytes]:
        """Return the contents of the values of all of them."""
        return set[bytes]().union(*(workspace.needed() for workspace in list(self._open.values())))

    def end_idle(self, wanted: str = "") -> bool:
        """End the oldest one that has no call, except the `wanted` one; called under the node's lock."""
        idle = (number for number, workspace in self._open.items() if workspace.idle and number != wanted)
        found = self.end(next(idle, ""))
        if found is None:
            return False
        found.forget()
        return True

    def end(self, number: str) -> NodeWorkspace | None:
        """End a workspace, if it is there, and return it. Called in any thread."""
        found = self._open.pop(number, None)
        if found is not None:
            found.end()
        return found


def _zeros(nbytes: int) -> Bytes:
    return sparse(nbytes, filled=False).array(np.uint8, (nbytes,))


def _read_only(memory: Bytes) -> Bytes:
    view = memory[:]
    view.flags.writeable = False
    return view


def _copy_on_write(memory: Bytes) -> CopyOnWrite:
    found = block_of(memory)
    assert found is not None
    block, low = found
    return CopyOnWrite(Placed(block, low, "|u1", 1, memory.shape, (1,), True, private=True))
