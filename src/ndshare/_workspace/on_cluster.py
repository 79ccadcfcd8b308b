"""Who does the calls of a workspace on a cluster.

::

    values ──► images ──► each machine once ──► workers there map them copy-on-write
      ▲                                               │
      └────────── merged, before the future is done ◄─┘ what a call has changed
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pickle
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._cluster import CallFuture, Calls, Packed, crates_of, find_engine
from ndshare._node import NamedTask, Script, Setting
from ndshare._pool import PoolSettings, describe
from ndshare._processes import without_options
from ndshare._transport import Bytes, Chunks, Content, Manifest, aligned, is_zero
from ndshare._workspace.calls import Handle
from ndshare.errors import InheritedError

#: Smaller blocks share an image: each image is a file on every machine.
_ALONE_BYTES = 1 << 20


@dataclasses.dataclass(slots=True)
class _Image:
    blocks: list[int]
    nbytes: int
    base: bytes | None = None
    contents: dict[bytes, Content] = dataclasses.field(default_factory=dict)


class Images:
    """The images of all blocks that a manifest refers to.

    Parameters
    ----------
    manifest : Manifest
        Its blocks are the values'.

    Attributes
    ----------
    contents : dict
        Contents of the images by hash, when they were looked at.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.contents: dict[bytes, Content] = {}
        self.table: dict[int, tuple[int, int, int]] = {}
        small = _Image([], 0)
        self._images = [small]
        for number, block in enumerate(manifest.blocks):
            block.kept = True  # other manifests leave them to this one
            nbytes = block.memory.size
            if nbytes >= _ALONE_BYTES:
                self.table[number] = len(self._images), 0, nbytes
                self._images.append(_Image([number], nbytes))
            else:
                self.table[number] = 0, small.nbytes, nbytes
                small.blocks.append(number)
                small.nbytes += aligned(nbytes)
        small.nbytes = max(1, small.nbytes)

    def look(self) -> tuple[tuple[int, bytes | None], ...]:
        """Return size and content (a hash, None for zeros) of each image as it is now."""
        contents: dict[bytes, Content] = {}
        for image in self._images:
            memory = self._gathered(image)
            chunks = None if is_zero(memory) else Chunks.of(memory)
            base = None if chunks is None else chunks.digest()
            if base != image.base:
                image.base = base
                image.contents = {} if chunks is None else chunks.contents(memory.copy())
            contents |= image.contents
        self.contents = contents
        return tuple((image.nbytes, image.base) for image in self._images)

    def _gathered(self, image: _Image) -> Bytes:
        """Return the memory of an image; small blocks are copied."""
        if image is not self._images[0]:
            return self._manifest.blocks[image.blocks[0]].memory
        memory = np.zeros(image.nbytes, np.uint8)
        for number in image.blocks:
            _, start, nbytes = self.table[number]
            memory[start : start + nbytes] = self._manifest.blocks[number].memory
        return memory


class ClusterHandle(CallFuture, Handle):
    """One call of a registered function on a cluster."""

    def __init__(self, calls: Calls, pack: Callable[[], Packed], name: str) -> None:
        concurrent.futures.Future.__init__(self)
        self.name = name
        self.pack: Callable[[], Packed] | None = pack
        self._calls = calls

    def cancel(self) -> bool:
        """Cancel the call if no node has begun it, as far as the engine knows."""
        if self.cancelled():
            return True
        if self.done() or not self._calls.revoke(self):
            return False
        return self.cancelled() or self._cancel()

    def _cancel(self) -> bool:
        if not concurrent.futures.Future.cancel(self):
            return False
        self.set_running_or_notify_cancel()
        return True

    def drop(self) -> None:
        """Cancel the call even if a node has begun it: what it writes is not merged."""
        if not self.cancel():
            self._cancel()


class ClusterStaff:
    """Workers on the nodes of a cluster.

    Parameters
    ----------
    engine : distributed.Client, str or Executor
        As of `ndshare.ClusterContext`.
    settings : PoolSettings
        What the workers are like.
    values : dict
        Names and what they stand for, shared.
    """

    def __init__(self, engine: Any, settings: PoolSettings, values: dict[str, Any]) -> None:
        self._pid = os.getpid()
        self._id = uuid.uuid4().hex
        self._names = frozenset(values)
        self._manifest = Manifest()
        content = values, settings.initializer, settings.initargs
        crates = [*crates_of(content, self._manifest, self._names)]
        self._images = Images(self._manifest)
        self._engine = find_engine(engine, None)
        options = {
            "max_workers": self._engine.threads(),
            "max_tasks_per_child": settings.limit,
            "threads_per_worker": settings.threads,
            "env": settings.env,
            "preload": settings.preload,
            "retries": settings.retries,
            "task_timeout": settings.task_timeout,
        }
        script = Script(crates, self._images.table, settings.setup, options)
        self._script = self._manifest.add(np.frombuffer(pickle.dumps(script, 5), np.uint8))
        self._others = frozenset[bytes]().union(*(crate.contents() for crate in crates))
        self._calls = Calls(self._engine)
        self._setting: Setting | None = None  # of the round

    def check(self, _what: str) -> None:
        """See `Staff`."""
        if self._pid != os.getpid():
            raise InheritedError("this Workspace", self._pid, os.getpid())

    @property
    def num_workers(self) -> int:
        """Workers of the cluster, as far as it is known now."""
        return self._engine.processes() * self._engine.threads()

    def handle(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ClusterHandle:
        """See `Staff`."""
        asked = self._calls.options_of(function)
        function = without_options(function)

        def pack() -> Packed:
            if self._setting is None:
                with self._calls.merging:
                    self._setting = Setting(self._script, self._images.look(), self._others)
            manifest = self._manifest.extended()
            manifest.contents |= self._images.contents
            crates = [*crates_of((function, args, kwargs), manifest, self._names)]
            manifest.keep_all()
            blocks = manifest.blocks_of(crates)
            for number in self._images.table.keys() & blocks.keys():
                del blocks[number]
            name = describe(function)
            return NamedTask(self._id, name, crates, blocks, {}, self._setting, asked=asked), manifest

        return ClusterHandle(self._calls, pack, describe(function))

    def submit(self, handle: ClusterHandle) -> None:
        """See `Staff`."""
        assert handle.pack is not None
        pack, handle.pack = handle.pack, None
        self._calls.submit(handle, pack)

    def begin_round(self) -> None:
        """See `Staff`; functions see what was merged until the next call."""
        self._setting = None

    def give_up(self, handles: list[ClusterHandle]) -> None:
        """See `Staff`; on a plain executor what has begun runs to its end, and nobody hears of it."""
        for handle in handles:
            handle.drop()
        self._engine.stop(self._id)  # calls that come late are refused
        self._id = uuid.uuid4().hex

    def abandon(self) -> None:
        """See `Staff`; nodes let go of it when others come."""

    def close(self, exc_type: type[BaseException] | None) -> None:
        """See `Staff`."""
        if exc_type is not None:
            self._calls.cancel()
        if exc_type is None or not issubclass(exc_type, KeyboardInterrupt):
            self._calls.wait()
        self._engine.stop(self._id)
        self._engine.release()
        self._engine.close()
