"""How the use of a `SharedDict` by a process ends, and who writes its snapshot."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from ndshare._dict import file as _dict_file
from ndshare._dict import layout as _dict_layout
from ndshare._dict import snapshot as _dict_snapshot
from ndshare._dict.writing import WritableDict
from ndshare.errors import KeyLockError

if TYPE_CHECKING:
    from ndshare._dict._store import Store

_CLOSE_POLL_S = 0.001  # while other threads of this process finish what they do with it
_SYNC_BYTE = (1 << 60) - 1  # locked while a snapshot is written, so that an older one never comes last

_FLOCK = struct.Struct("hhqqi4x")  # struct flock
_writing = threading.Lock()
os.register_at_fork(after_in_child=lambda: _writing._at_fork_reinit())  # type: ignore[attr-defined]


@contextlib.contextmanager
def _writing_snapshot(fd: int) -> Iterator[None]:
    """Have the right to write the snapshot, among all threads and processes."""

    def lock(kind: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, _SYNC_BYTE, 1, 0))

    with _writing:
        try:  # Ctrl-C comes behind the call that has locked it
            lock(fcntl.F_WRLCK)
            yield
        finally:
            lock(fcntl.F_UNLCK)


class ClosableDict(WritableDict):
    """What ends."""

    def sync(self) -> None:
        """Write a snapshot of all values, of one instant, to `path`; returns when it is on the disk.

        Raises
        ------
        ValueError
            If the dict has no path.
        OSError
            If it cannot be written. The snapshot before it is still there.
        """
        self._check_open()
        if self._layout.path is None:
            raise ValueError(f"the SharedDict {self._name!r} has no path; give one when it is made")
        self._save(self._layout.path)

    def _save(self, path: str) -> None:
        layout = self._layout
        _, head = _dict_layout.encode(layout.specs, layout.created, path, self._store.persistent)
        with _writing_snapshot(self._store.fd):
            copies, _ = self._store.snapshot(range(len(self._keys)))
            arrays = dict(zip(layout.specs, copies, strict=True))
            _dict_snapshot.save(path, arrays, head[_dict_layout.HEADER_BYTES :], self._name)

    def close(self) -> None:
        """Give it up in this process; the last one who does removes it, unless it is persistent.

        With a path, a snapshot is written first. What other threads of this process do with it is waited for.
        Closing again does nothing.

        Raises
        ------
        KeyLockError
            Inside a block of `locked`, or a function of `update`, of this thread.
        """
        mine = self._store.held()
        if mine and not self.closed:
            raise KeyLockError(
                "of all others, to close the dict,",
                ", ".join(repr(self._keys[number]) for number in mine),
                "leave the block first",
            )
        self._store.shut()
        while self._store.busy:
            time.sleep(_CLOSE_POLL_S)
        try:
            if self._store.fd >= 0 and self._layout.path is not None:
                self._save(self._layout.path)
        finally:
            self._finalizer()

    def unlink(self) -> None:
        """Make a persistent dict an ordinary one: the last user that closes removes it."""
        self._check_open()
        self._store.persistent = False

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def end(store: Store, file: str) -> None:
    """Close; remove the file if nobody else uses it."""
    store.shut()
    if store.fd >= 0:
        try:
            _dict_file.remove_unused(store.fd, file)
        finally:
            store.close()


def end_with_multiprocessing(shared: object, store: Store, file: str) -> None:
    """End also where a process of multiprocessing ends: without what `atexit` and `weakref.finalize` have."""
    import multiprocessing.util

    def with_process(obj: object) -> None:
        multiprocessing.util.Finalize(obj, end, (store, file), exitpriority=0)

    multiprocessing.util.register_after_fork(shared, with_process)
    if multiprocessing.parent_process() is not None:
        with_process(shared)
