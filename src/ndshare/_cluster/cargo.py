"""What a map on a cluster sends: the kernel as a pickle, arrays by content, items and rows with their share.

::

    Cargo.pack()   kernel, functor, globals ──► crates, blocks, contents (`ndshare._transport.freight`)
    Cargo.task()   a share: crates, its values, its rows ──► ShareTask
    Cargo.merge()  what a share has changed ──► the caller's arrays

Three kinds of shared memory are told apart: arrays with rows per worker, whose rows come with each share; a
mapped array of its own, whose items come with each share; and all others, which nodes have as a whole.
"""

from __future__ import annotations

import collections
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ndshare._locks import leaving_machine
from ndshare._map import Batch, Job, Traffic, account, known_rows, module_data
from ndshare._memory import block_of, is_shared
from ndshare._node import Change, ShareTask
from ndshare._pickling import Recording, record
from ndshare._pool import describe
from ndshare._transport import CONTENT, Bytes, Content, Crate, Manifest, by_value_modules, mainspace, parts_of
from ndshare.functors import values_of


class _Tally:
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

        return account(kernel, functor, sent)

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


_OPTIONS = ("errors", "on_error", "share_items", "block", "timed", "trace", "seed", "timeout", "retries")

_Stretch = tuple[int, int, int]  # block, offset, bytes per item or row


class Cargo:
    """What one map sends and gets back.

    Parameters
    ----------
    job : Job
        The map.
    per_group : int
        Workers that run a share.
    """

    def __init__(self, job: Job, per_group: int) -> None:
        self.map_id = uuid.uuid4().hex
        self._job = job
        self._per_group = per_group
        self._manifest = Manifest()
        self._crates: list[Crate] = []
        self._windows: list[_Stretch] = []
        self._rows: list[_Stretch] = []
        self._tally = _Tally()

    @property
    def has_rows(self) -> bool:
        """Whether shares of a group must follow each other."""
        return bool(self._rows)

    @property
    def has_bases(self) -> bool:
        """Whether nodes keep more than what shares touch."""
        return any(block.base is not None for block in self._manifest.blocks)

    def pack(self) -> None:
        """Pack kernel and functor; may be called again, numbers of blocks stay.

        Raises
        ------
        Exception
            Whatever pickling raises.
        """
        job, manifest = self._job, self._manifest
        self._windows, self._rows = [], []
        data: dict[str, object] = {}
        arrays = {
            module: values
            for module, values in module_data(job.kernel).items()
            if module not in by_value_modules
        }
        whole = None if _is_cut(job.functor) else job.functor
        with leaving_machine():
            kernel_only = mainspace.pack_with_data((job.kernel, None, data, arrays), data).take()
            content = kernel_only
            if whole is not None:
                content = mainspace.pack_with_data((job.kernel, whole, data, arrays), data).take()
            update = mainspace.deliver(content.needs, {}, brought=frozenset(data))
        first = manifest.crate(kernel_only)
        self._find_window(first)
        self._crates = [
            manifest.crate(Recording((b"N.",)) if update is None else update.take()),
            manifest.crate(content),
        ]
        self._find_rows()
        private = {number for number, _, _ in (*self._rows, *self._windows)}
        for number in range(len(manifest.blocks)):
            if number not in private:
                manifest.keep(number)

    def _find_window(self, kernel: Crate) -> None:
        """See whether the items lie in shared memory of their own, so that each share can bring its items."""
        values: Any = values_of(self._job.functor)
        if not isinstance(values, np.ndarray) or not is_shared(values):
            return
        if values.size == 0 or not values.flags.c_contiguous:
            return
        found = block_of(values)
        if found is None:
            return
        number = self._manifest.block_number(found[0])
        if number not in kernel.blocks():
            self._windows.append((number, found[1], values.nbytes // len(values)))

    def _find_rows(self) -> None:
        for array in known_rows.per_worker():
            found = self._manifest.find(array)
            if found is not None and array.nbytes:
                noted = known_rows.of(array)
                axis = array.ndim - 1 if noted is not None and noted[0] == "F" else 0
                self._rows.append((*found, array.nbytes // array.shape[axis]))

    def _patches(self, start: int, end: int, first_worker: int) -> list[tuple[int, int, Any]]:
        """Return what a share brings along besides its values."""
        stretches = [
            (number, offset + first_worker * size, self._per_group * size)
            for number, offset, size in self._rows
        ]
        stretches += [
            (number, offset + start * size, (end - start) * size) for number, offset, size in self._windows
        ]
        patches = []
        for number, low, nbytes in stretches:
            content = self._manifest.blocks[number].memory[low : low + nbytes]
            if content.any():
                patches.append((number, low, content.copy()))
        return patches

    def _kept_rows(self, start: int, end: int, first_worker: int) -> tuple[list[Any], list[Any]]:
        """Return the rows of a share that the death of a worker takes back: per worker, and per block."""
        rows, blocks = [], []
        for flat in self._job.rows:
            part = flat[first_worker : first_worker + self._per_group]
            if (found := self._manifest.find(part)) is not None:
                rows.append((*found, part.shape, part.strides))
        for flat, items in self._job.blocks:
            part = flat[start // items : -(-end // items)]
            if (found := self._manifest.find(part)) is not None:
                blocks.append((*found, part.shape, part.strides, items))
        return rows, blocks

    def task(
        self, start: int, end: int, first_worker: int, per_item_s: float, contents: Collection[bytes]
    ) -> ShareTask:
        """Return a share, with its rows and items as they are now, and the contents that a node lacks."""
        job, manifest = self._job, self._manifest
        options = {name: getattr(job, name) for name in _OPTIONS}
        options |= {"first": job.first + start, "first_worker": first_worker, "usual_ns": per_item_s * 1e9}
        crates = list(self._crates)
        part = _part_of(job.functor, start, end)
        if part is not None:
            with leaving_machine():
                crate = manifest.crate(record(part))
            known = set().union(*(crate.blocks() for crate in self._crates))
            for number in crate.blocks() - known:
                manifest.keep(number)
            crates.append(crate)
        task = ShareTask(
            self.map_id, describe(job.kernel), crates, manifest.blocks_of(crates), {}, start, end,
            first_worker, self._per_group, options, self._patches(start, end, first_worker),
            *self._kept_rows(start, end, first_worker),
        )  # fmt: skip
        task.load(manifest.contents, contents)
        self._tally.count(task, None if part is None else crates[-1])
        return task

    def merge(self, changes: Iterable[Change]) -> None:
        """Write what a share has changed into the caller's arrays."""
        for change in changes:
            change.merge(self._manifest.blocks[change.block].memory)

    def account(self) -> dict[str, Traffic]:
        """Return how many bytes of each variable, and of the collection, were sent so far."""
        job = self._job
        return self._tally.account(job.kernel, job.functor, self._manifest, cut=_is_cut(job.functor))


def _is_cut(functor: Any) -> bool:
    """Whether the values of a share can travel without the others."""
    if type(functor) is Batch:
        return True
    values = values_of(functor)
    if isinstance(values, np.ndarray):
        return not is_shared(values)
    return type(values) in (list, tuple, range, str, bytes)


def _part_of(functor: Any, start: int, end: int) -> Batch | None:
    """Return the functor of a share; None if it is there as a whole."""
    if not _is_cut(functor):
        return None
    if type(functor) is Batch:
        return functor.part(start, end)
    return Batch(values_of(functor)[start:end], start)
