"""How a process comes to be a user of a SharedDict of its own, and how its use ends.

A fork copies the descriptor but not the file description behind it, which holds the locks: the child would
keep its parent's locks alive, and closing would take the lock of both. So before a fork each open dict gets a
second description with a lock of its own. The child keeps that one and closes the other; the parent the
reverse. From the first instant both are counted.

What the C library forks without Python's knowledge is not seen here.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref

from ndshare._dict import files
from ndshare._dict._store import Store

_lock = threading.RLock()
_stores: weakref.WeakKeyDictionary[Store, tuple[int, int]] = weakref.WeakKeyDictionary()
_tokens: list[tuple[Store, int]] = []


def watch(store: Store, file: tuple[int, int]) -> None:
    """From now on, see to it that forked children have this one too; `file` is its device and inode."""
    with _lock:
        _stores[store] = file


def _before() -> None:
    _lock.acquire()
    for store, file in list(_stores.items()):
        if store.fd >= 0:
            store.recall()
            token = -1
            with contextlib.suppress(OSError):  # short of descriptors: the child will find it closed
                token = files.reopen(store.fd)
            if token >= 0 and files.identity(token) != file:
                os.close(token)  # another thread has closed it meanwhile, and the number is another file's
                token = -1
            _tokens.append((store, token))


def _in_parent() -> None:
    for _, token in _tokens:
        if token >= 0:
            os.close(token)
    _tokens.clear()
    _lock.release()


def _in_child() -> None:
    for store, token in _tokens:
        own = token
        with contextlib.suppress(OSError):  # else the kernel goes on naming the parent as its holder
            own = files.reopen(token)
        store.adopt(own)
        if own != token:
            os.close(token)
    _tokens.clear()
    _lock.release()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def end(store: Store, file: str) -> None:
    """Close; remove the file if nobody else uses it."""
    store.shut()
    if store.fd >= 0:
        try:
            files.remove_unused(store.fd, file)
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
