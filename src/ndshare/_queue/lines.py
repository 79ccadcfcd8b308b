"""The lines of this process, one per queue, and what a fork does to them."""

from __future__ import annotations

import os
import threading
import weakref

from ndshare._queue import at_exit
from ndshare._queue.line import Line
from ndshare._queue.memory import Files
from ndshare._queue.wire import Wire
from ndshare._system import _wire

_lines: weakref.WeakValueDictionary[tuple[int, int], Line] = weakref.WeakValueDictionary()
_all: weakref.WeakSet[Line] = weakref.WeakSet()  # also those closed that still send
_registry_lock = threading.RLock()
_forks = threading.local()  # lines whose locks a fork that is under way has taken


def line_of(files: Files) -> Line:
    """Return this process's line of a queue; the files are taken over."""
    status = os.fstat(files.memory)
    key = status.st_dev, status.st_ino
    with _registry_lock:
        line = _lines.get(key)
        if line is not None and line.wire.heard:
            for fd in set(files).difference(line.wire.files):
                os.close(fd)
        else:
            _wire.shield_main(threading.main_thread().ident or 0)
            line = _lines[key] = Line(Wire(files))
            _all.add(line)
        line.open()
        return line


def _before_fork() -> None:
    _registry_lock.acquire()
    _forks.lines = list(_all)
    for line in _forks.lines:
        line.before_fork()


def _after_fork() -> None:
    for line in _forks.__dict__.pop("lines", ()):
        line.after_fork()
    _registry_lock.release()


def _begin_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    _wire.shield_main(threading.main_thread().ident or 0)
    at_exit.begin_in_child()
    for line in _forks.__dict__.pop("lines", ()):
        line.begin_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_begin_in_child)
