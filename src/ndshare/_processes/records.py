"""Log records of workers: made there, handled by the caller's handlers.

::

    worker   logging ──► Forwarder ── LOG ──►  caller   handle_waiting() ──► logger of the same name

A worker has the caller's levels. Its records reach the caller before the result of the task that made
them, and are not lost with the worker. While the caller has no handler, a worker logs as any process does.
"""

from __future__ import annotations

import collections
import logging
import os
import pickle
import threading
import traceback
from collections.abc import Callable
from typing import Any

from ndshare._system import warn_caller
from ndshare.errors import SilentWriteWarning

_TEXT_MOST = (16_000, 1_000)  # characters of a message or traceback; fewer if all together are too many
_SENT_MOST = 48 * 1024  # bytes of a record: it goes in one piece
_MARK = -1  # no level
_LOST = "ndshare_lost_write"
_HEAD_BYTES = 64
_PATIENCE_S = 1.0  # for a handler in another thread, before a result is given to who waits for it

_USUAL_LEVELS = dict(logging._nameToLevel)  # WARN and FATAL among them, which are names of no level

_current_item: Callable[[], int | None] | None = None

Settings = tuple[int, int, dict[str, int]] | None
"""Level of the root logger, what `logging.disable` was told, levels by logger; None without handlers."""


def name_items(current_item: Callable[[], int | None]) -> None:
    """Have records say at which item of a map their thread is, or None, as this function tells."""
    global _current_item
    _current_item = current_item


def settings() -> Settings:
    """Return the caller's settings, as workers are to have them."""
    root = logging.root
    loggers = {
        name: logger
        for name, logger in list(root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger)
    }
    if not root.handlers and not any(logger.handlers for logger in loggers.values()):
        return None
    levels = {name: logger.level for name, logger in loggers.items() if logger.level != logging.NOTSET}
    return root.level, root.manager.disable, levels


def mark() -> None:
    """Note that the levels are known: whoever sets a level empties the cache in which the mark lies."""
    logging.root._cache[_MARK] = True  # type: ignore[attr-defined]


def is_marked() -> bool:
    """Whether no level was set since `mark`."""
    return _MARK in logging.root._cache  # type: ignore[attr-defined]


def name_levels(names: dict[int, str]) -> None:
    """Have these names for levels, and no others."""
    if names != logging._levelToName:
        logging._levelToName.clear()
        logging._nameToLevel.clear()
        logging._nameToLevel.update(_USUAL_LEVELS)
        for level, name in names.items():
            logging.addLevelName(level, name)


class Forwarder(logging.Handler):
    """Sends records to the caller.

    Parameters
    ----------
    send : callable
        Takes a pickled record. Returns False if the caller cannot be reached from this process.
    """

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._send = send
        self._levels: dict[str, int] = {}
        self._installed = False

    def apply(self, wanted: Settings) -> None:
        """Have the levels of the caller, and send to it if it has handlers."""
        root = logging.root
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.NOTSET)
        self._levels = {}
        if wanted is None:
            root.removeHandler(self)
            self._installed = False
            return
        level, disabled, self._levels = wanted
        root.setLevel(level)
        logging.disable(disabled)
        for name, own in self._levels.items():
            logging.getLogger(name).setLevel(own)
        if not self._installed:  # else, if it is not there, a task has put other handlers in its place
            root.addHandler(self)
            self._installed = True

    def levels(self) -> list[int]:
        """Return the levels of the loggers that have one from the caller, as they are now."""
        return [logging.getLogger(name).level for name in self._levels]

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, formatted so far that anybody can unpickle it."""
        try:
            content = record.__dict__ | {
                "msg": record.getMessage(),
                "args": None,
                "exc_info": None,
                "ndshare_item": _current_item() if _current_item else None,
            }
            if record.exc_info and not record.exc_text:
                content["exc_text"] = logging.Formatter().formatException(record.exc_info)
            if not self._send(_pickled(content)) and logging.lastResort is not None:
                logging.lastResort.handle(record)
        except Exception:
            self.handleError(record)


def lost_write(name: str, what: str) -> bytes:
    """Return a record of which the caller makes a `SilentWriteWarning`."""
    return pickle.dumps({_LOST: (name, what)})


def is_news(record: bytes, told: set[bytes]) -> bool:
    """Tell whether a record is to be handled: of what was lost the first, whichever worker says it."""
    if _LOST.encode() not in record[:_HEAD_BYTES]:
        return True
    known = len(told)
    told.add(bytes(record))
    return len(told) > known


def tell_lost(name: str, what: str) -> None:
    """Warn of what a task changed in vain: no task is to fail for what becomes of the warning."""
    try:
        warn_caller(SilentWriteWarning(name, what))
    except Exception:
        traceback.print_exc()


def _pickled(content: dict[str, Any]) -> bytes:
    for most in _TEXT_MOST:
        data = pickle.dumps({name: _plain(value, most) for name, value in content.items()}, 5)
        if len(data) <= _SENT_MOST:
            return data
    return pickle.dumps(
        {name: _plain(content[name], most) for name in ("name", "levelno", "levelname", "msg")}
    )


def _plain(value: Any, most: int) -> Any:
    if value is None or type(value) in (int, float, bool):
        return value
    text = value if type(value) is str else repr(value)
    return text if len(text) <= most else text[:most] + " ..."


#: Records that have arrived, in their order.
waiting: collections.deque[bytes] = collections.deque()

_busy: list[int] = []  # threads that handle some
_lock = threading.RLock()


def handle_waiting() -> None:
    """Give the records that have arrived to the handlers of this process.

    When it returns, no other thread is still at one of them; unless its handler takes long, as one would
    that itself waits for a result.
    """
    if not waiting and not _busy:
        return
    if not _lock.acquire(timeout=_PATIENCE_S):
        return
    try:
        _busy.append(threading.get_ident())
        while waiting:
            _handle(waiting.popleft())
    finally:
        _busy.pop()
        _lock.release()


def _begin_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _busy.clear()
    waiting.clear()


os.register_at_fork(after_in_child=_begin_in_child)


def _handle(data: bytes) -> None:
    try:
        content = pickle.loads(data)
        if _LOST in content:
            warn_caller(SilentWriteWarning(*content[_LOST]))
            return
        record = logging.makeLogRecord(content)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:  # of a filter or handler of the user's: no task is to fail for it
        traceback.print_exc()
