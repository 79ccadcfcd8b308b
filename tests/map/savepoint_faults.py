"""Places between a share and its rows where a test has a worker killed: by the call and not by the clock.

A worker imports this module (``preload``), or inherits it by a fork; ``NDSHARE_TEST_FAULT`` names the place,
how many workers are killed there, and a folder that counts them::

    take ─ taken ─ noted ─ opened ─ (items) ─ ended ─ half saved ─ saved ─ closed ─ leaving
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndshare._map import savepoints
from ndshare._system import Board, _wire

VARIABLE = "NDSHARE_TEST_FAULT"
PLACES = ("taken", "noted", "opened", "ended", "half saved", "saved", "closed", "leaving")

_caller = [os.getpid()]  # of the map: whom nobody kills


def reach(where: str) -> None:
    """Be killed here, unless as many as were asked for have been."""
    place, times, folder = os.environ.get(VARIABLE, "||").split("|")
    if where != place or os.getpid() in _caller:
        return
    for number in range(int(times)):
        try:
            os.close(os.open(Path(folder) / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, before: str = "", after: str = "") -> Callable[[], None]:
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reach(before)
        result = plain(*args, **kwargs)
        reach(after)
        return result

    setattr(owner, name, wrapped)
    return lambda: setattr(owner, name, plain)


def install() -> list[Callable[[], None]]:
    """Wrap what is called at these places; returns what puts it back."""
    plain_save, plain_store = savepoints.save_rows, _wire.store_u64

    def save_half(rows: Any, worker_id: int, copy: Any) -> None:
        before = copy.copy()
        plain_save(rows, worker_id, copy)
        whole = copy.copy()
        copy[copy.size // 2 :] = before[copy.size // 2 :]
        reach("half saved")
        copy[:] = whole

    stores: list[int] = []

    def leave(board: Board, worker_id: int) -> None:
        def store(*args: Any) -> None:
            plain_store(*args)
            stores.append(1)
            if len(stores) % 4 == 2:
                reach("leaving")

        _wire.store_u64 = store
        try:
            plain_leave(board, worker_id)
        finally:
            _wire.store_u64 = plain_store

    plain_leave = Board.leave
    savepoints.save_rows = save_half
    Board.leave = leave  # type: ignore[method-assign]

    def restore() -> None:
        savepoints.save_rows = plain_save
        Board.leave = plain_leave  # type: ignore[method-assign]

    return [
        restore,
        _around(Board, "take", after="taken"),
        _around(Board, "begin", after="noted"),
        _around(Board, "open", after="opened"),
        _around(savepoints.Savepoint, "close", before="ended"),
        _around(Board, "close", before="saved", after="closed"),
    ]


if VARIABLE in os.environ:
    _caller.clear()
    install()
